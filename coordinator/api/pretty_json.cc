#include "coordinator/api/pretty_json.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

constexpr size_t kLineWidth = 110;

std::string scalar(const json::value& value) {
  // Boost writes 0.25 as 2.5E-1.
  if (const auto* number = value.if_double())
    return std::isfinite(*number) ? fmt::format("{:.6g}", *number) : "null";  // JSON has neither
  return json::serialize(value);
}

std::string on_one_line(const json::value& value) {
  std::string text, separator;
  if (const auto* object = value.if_object()) {
    for (const auto& [key, member] : *object)
      text += std::exchange(separator, ", ") + json::serialize(key) + ": " + on_one_line(member);
    return "{" + text + "}";
  }
  if (const auto* array = value.if_array()) {
    for (const auto& member : *array) text += std::exchange(separator, ", ") + on_one_line(member);
    return "[" + text + "]";
  }
  return scalar(value);
}

bool is_flat(const json::value& value) {
  const auto scalars = [](const json::value& member) { return !member.is_object() && !member.is_array(); };
  if (const auto* object = value.if_object())
    return std::all_of(object->begin(), object->end(),
                       [&](const auto& member) { return scalars(member.value()); });
  if (const auto* array = value.if_array()) return std::all_of(array->begin(), array->end(), scalars);
  return true;
}

void write(const json::value& value, size_t indent, std::string& out) {
  if (is_flat(value)) {
    const std::string line = on_one_line(value);
    if (indent + line.size() <= kLineWidth) {
      out += line;
      return;
    }
  }
  const std::string margin(indent + 2, ' ');
  std::string separator = "\n";
  if (const auto* object = value.if_object()) {
    out += '{';
    for (const auto& [key, member] : *object) {
      out += std::exchange(separator, ",\n") + margin + json::serialize(key) + ": ";
      write(member, indent + 2, out);
    }
    out += '\n' + std::string(indent, ' ') + '}';
  } else if (const auto* array = value.if_array()) {
    out += '[';
    for (const auto& member : *array) {
      out += std::exchange(separator, ",\n") + margin;
      write(member, indent + 2, out);
    }
    out += '\n' + std::string(indent, ' ') + ']';
  } else {
    out += scalar(value);
  }
}

}  // namespace

std::string pretty_json(const json::value& value) {
  std::string text;
  write(value, 0, text);
  return text + '\n';
}

}  // namespace lowkey::coordinator
