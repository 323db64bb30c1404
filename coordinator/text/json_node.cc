#include "coordinator/text/json_node.h"

#include <boost/json/value.hpp>

namespace lowkey::coordinator {
namespace {

std::string describe(const boost::json::value& value) {
  switch (value.kind()) {
    case boost::json::kind::null:
      return "null";
    case boost::json::kind::bool_:
      return value.get_bool() ? "true" : "false";
    case boost::json::kind::int64:
      return std::to_string(value.get_int64());
    case boost::json::kind::uint64:
      return std::to_string(value.get_uint64());
    case boost::json::kind::double_:
      return std::to_string(value.get_double());
    case boost::json::kind::string:
      return "a string";
    case boost::json::kind::array:
      return "an array";
    case boost::json::kind::object:
      return "an object";
  }
  return "?";
}

}  // namespace

Error JsonNode::wrong(std::string_view expected) const {
  return bad(fmt::format("expected {}, found {}", expected, describe(*value_)));
}

Error JsonNode::bad(const std::string& problem) const {
  return Error{Code::kBadInput, where() + ": " + problem, {}};
}

Error JsonNode::unsupported(std::string_view type, std::string_view supported) const {
  return bad(fmt::format("type '{}' is not supported (supported: {})", type, supported));
}

std::optional<JsonNode> JsonNode::child(std::string_view key) const {
  const auto* object = value_->if_object();
  const auto* found = object ? object->if_contains({key.data(), key.size()}) : nullptr;
  if (!found || found->is_null()) return std::nullopt;
  return JsonNode(*found, file_, path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key));
}

Result<JsonNode> JsonNode::object(std::string_view key) const {
  if (!value_->is_object()) return wrong("an object");
  auto node = child(key);
  if (!node) return bad(fmt::format("expected an object '{}', found none", key));
  if (!node->value_->is_object()) return node->wrong("an object");
  return *node;
}

Result<std::string> JsonNode::string(std::string_view key) const {
  if (!value_->is_object()) return wrong("an object");
  const auto node = child(key);
  if (!node) return bad(fmt::format("expected a string '{}', found none", key));
  if (!node->value_->is_string()) return node->wrong("a string");
  return std::string(node->value_->get_string());
}

Result<std::string> JsonNode::string_or(std::string_view key, std::string_view fallback) const {
  return child(key) ? string(key) : std::string(fallback);
}

Result<bool> JsonNode::bool_or(std::string_view key, bool fallback) const {
  const auto node = child(key);
  if (!node) return fallback;
  if (!node->value_->is_bool()) return node->wrong("true or false");
  return node->value_->get_bool();
}

Result<int64_t> JsonNode::integer(std::string_view key, int64_t limit) const {
  if (!value_->is_object()) return wrong("an object");
  const auto node = child(key);
  if (!node) return bad(fmt::format("expected an integer '{}', found none", key));
  const auto* number = node->value_->if_int64();
  if (!number || *number < 0 || *number > limit)
    return node->wrong(fmt::format("an integer in 0..{}", limit));
  return *number;
}

Result<int64_t> JsonNode::integer_or(std::string_view key, int64_t limit, int64_t fallback) const {
  return child(key) ? integer(key, limit) : fallback;
}

Result<std::vector<JsonNode>> JsonNode::array(std::string_view key) const {
  const auto node = child(key);
  if (!node) return bad(fmt::format("expected an array '{}', found none", key));
  const auto* values = node->value_->if_array();
  if (!values) return node->wrong("an array");
  std::vector<JsonNode> items;
  items.reserve(values->size());
  for (size_t i = 0; i < values->size(); ++i) {
    items.emplace_back((*values)[i], file_, fmt::format("{}[{}]", node->path_, i));
  }
  return items;
}

}  // namespace lowkey::coordinator
