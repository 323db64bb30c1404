#include "base/grammar/schema_types.h"

#include <algorithm>
#include <cmath>

namespace lowkey::grammar {

namespace json = boost::json;

std::string_view view(json::string_view text) {
  return {text.data(), text.size()};
}

bool equal(const json::value& a, const json::value& b) {
  if (a.is_number() && b.is_number()) return a.to_number<double>() == b.to_number<double>();
  return a == b;
}

bool is_number_type(std::string_view type) {
  return type == "number" || type == "integer";
}

std::string type_of(const json::value& value) {
  if (value.is_null()) return "null";
  if (value.is_bool()) return "boolean";
  if (value.is_string()) return "string";
  if (value.is_array()) return "array";
  if (value.is_object()) return "object";
  if (value.is_double() && value.get_double() != std::floor(value.get_double())) return "number";
  return "integer";
}

bool has_type(const json::value& value, const std::vector<std::string>& types) {
  const std::string type = type_of(value);
  return std::ranges::any_of(
      types, [&](const std::string& t) { return t == type || (t == "number" && type == "integer"); });
}

std::vector<std::string> types_of(const json::object& schema) {
  std::vector<std::string> types;
  const auto* value = schema.if_contains("type");
  if (!value) return {"object", "array", "string", "number", "boolean", "null"};
  if (const auto* one = value->if_string()) types.emplace_back(view(*one));
  if (const auto* several = value->if_array())
    for (const auto& item : *several)
      if (item.is_string()) types.emplace_back(view(item.get_string()));
  return types;
}

const json::array* enum_of(const json::object& schema) {
  const auto* value = schema.if_contains("enum");
  return value ? value->if_array() : nullptr;
}

json::array types_of_both(const json::object& a, const json::object& b) {
  json::array both;
  const auto of_a = types_of(a), of_b = types_of(b);
  const auto has = [](const std::vector<std::string>& types, const std::string& type) {
    return std::ranges::find(types, type) != types.end();
  };
  for (const std::string& type : of_a) {
    if (has(of_b, type) || (type == "integer" && has(of_b, "number"))) both.emplace_back(type);
    if (type == "number" && !has(of_b, "number") && has(of_b, "integer") && !has(of_a, "integer"))
      both.emplace_back("integer");
  }
  return both;
}

}  // namespace lowkey::grammar
