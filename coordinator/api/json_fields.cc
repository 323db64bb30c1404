#include "coordinator/api/json_fields.h"

#include <cmath>

namespace lowkey::coordinator {

namespace json = boost::json;

namespace {
// Requests nest four deep, and their JSON schemas as deep as what they describe; more is an attack on the
// stack.
constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxDescribedBytes = 60;
}  // namespace

Result<json::object> parse_object(std::string_view body) {
  json::parse_options options;
  options.max_depth = kMaxDepth;
  json::stream_parser parser({}, options);
  json::error_code ec;
  size_t position = parser.write_some(body.data(), body.size(), ec);
  if (!ec && position < body.size() && body.find_first_not_of(" \t\r\n", position) != std::string_view::npos)
    ec = json::error::extra_data;
  if (!ec) parser.finish(ec);
  if (ec) {
    return Error{Code::kInvalidArgument,
                 fmt::format("The request body is not valid JSON: {} at byte {}.", ec.message(), position)};
  }
  json::value value = parser.release();
  if (!value.is_object())
    return Error{Code::kInvalidArgument,
                 fmt::format("The request body must be a JSON object; found {}.", describe(value))};
  return std::move(value.get_object());
}

Error invalid_param(std::string param, std::string message) {
  return Error{Code::kInvalidArgument, std::move(message), std::move(param)};
}

std::string describe(const json::value& value) {
  if (value.is_array()) return fmt::format("an array of {}", value.get_array().size());
  if (value.is_object()) return "an object";
  std::string text = json::serialize(value);
  if (text.size() <= kMaxDescribedBytes) return text;
  size_t end = kMaxDescribedBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not inside a character
  return text.substr(0, end) + "...";
}

std::optional<int64_t> as_integer(const json::value& value, int64_t low, int64_t high) {
  std::optional<int64_t> result;
  if (value.is_int64()) {
    result = value.get_int64();
  } else if (value.is_double() && std::abs(value.get_double()) < 9e15 &&
             value.get_double() == std::floor(value.get_double())) {
    result = static_cast<int64_t>(value.get_double());
  }
  if (!result || *result < low || *result > high) return std::nullopt;
  return result;
}

const json::value* Fields::find(std::string_view name) const {
  const auto* value = object_.if_contains({name.data(), name.size()});
  return value && !value->is_null() ? value : nullptr;
}

std::optional<double> Fields::number(std::string_view name, double low, double high) {
  const auto* value = find(name);
  if (!value || error_) return std::nullopt;
  std::optional<double> result;
  if (value->is_number()) result = value->to_number<double>();
  if (result && *result >= low && *result <= high) return result;
  fail(name, fmt::format("'{}' must be a number from {} to {}; found {}.", param(name), low, high,
                         describe(*value)));
  return std::nullopt;
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t low, int64_t high) {
  const auto* value = find(name);
  if (!value || error_) return std::nullopt;
  if (auto result = as_integer(*value, low, high)) return result;
  fail(name, fmt::format("'{}' must be an integer from {} to {}; found {}.", param(name), low, high,
                         describe(*value)));
  return std::nullopt;
}

std::optional<bool> Fields::boolean(std::string_view name) {
  const auto* value = find(name);
  if (!value || error_) return std::nullopt;
  if (value->is_bool()) return value->get_bool();
  fail(name, fmt::format("'{}' must be true or false; found {}.", param(name), describe(*value)));
  return std::nullopt;
}

std::optional<std::string> Fields::text(std::string_view name) {
  const auto* value = find(name);
  if (!value || error_) return std::nullopt;
  if (value->is_string()) return std::string(value->get_string().data(), value->get_string().size());
  fail(name, fmt::format("'{}' must be a string; found {}.", param(name), describe(*value)));
  return std::nullopt;
}

void Fields::fail(std::string_view name, std::string message) {
  if (!error_) error_ = invalid_param(param(name), std::move(message));
}

}  // namespace lowkey::coordinator
