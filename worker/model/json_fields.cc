#include "worker/model/json_fields.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <fstream>

namespace lowkey::worker {

namespace json = boost::json;

Result<std::string> read_text_file(const std::filesystem::path& path, uint64_t max_bytes) {
  std::error_code ec;
  if (!std::filesystem::is_regular_file(path, ec))
    return Error{Code::kBadInput,
                 fmt::format("{}: expected a file, found {}", path.string(),
                             std::filesystem::exists(path, ec) ? "something else" : "nothing")};
  const uint64_t size = std::filesystem::file_size(path, ec);
  if (ec) return Error{Code::kBadInput, fmt::format("{}: {}", path.string(), ec.message())};
  if (size > max_bytes)
    return Error{Code::kBadInput,
                 fmt::format("{}: expected at most {} bytes, found {}", path.string(), max_bytes, size)};
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  if (!in || static_cast<uint64_t>(in.gcount()) != size)
    return Error{Code::kBadInput, fmt::format("{}: expected {} readable bytes, found {}", path.string(), size,
                                              std::max<std::streamsize>(in.gcount(), 0))};
  return text;
}

Result<json::object> read_json_object(const std::filesystem::path& path, uint64_t max_bytes) {
  LOWKEY_ASSIGN(text, read_text_file(path, max_bytes));
  json::error_code ec;
  json::value value = json::parse(text, ec);
  if (ec)
    return Error{Code::kBadInput, fmt::format("{}: expected JSON, found {}", path.string(), ec.message())};
  if (!value.is_object())
    return Error{Code::kBadInput,
                 fmt::format("{}: expected a JSON object, found {}", path.string(), describe(&value))};
  return std::move(value.as_object());
}

std::string describe(const json::value* value) {
  if (value == nullptr) return "nothing";
  constexpr size_t kMaxShown = 60;
  std::string text = json::serialize(*value);
  if (text.size() > kMaxShown) {
    text.resize(kMaxShown);
    while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0x80) != 0) text.pop_back();
    text += "...";
  }
  return text;
}

const json::value* JsonFields::find(std::string_view name) const {
  const json::value* value = object_.if_contains(name);
  return value != nullptr && value->is_null() ? nullptr : value;
}

bool JsonFields::contains(std::string_view name) const {
  return object_.if_contains(name) != nullptr;
}

void JsonFields::fail(std::string_view name, std::string_view expected) {
  fail(name, expected, describe(object_.if_contains(name)));
}

void JsonFields::fail(std::string_view name, std::string_view expected, std::string_view found) {
  if (!status_.ok()) return;
  status_ = Error{Code::kBadInput, fmt::format("{}: field '{}{}': expected {}, found {}", file_, prefix_,
                                               name, expected, found)};
}

int64_t JsonFields::integer(std::string_view name, int64_t min, int64_t max,
                            std::optional<int64_t> fallback) {
  const json::value* value = find(name);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_int64() && value->get_int64() >= min && value->get_int64() <= max)
    return value->get_int64();
  fail(name, fmt::format("an integer from {} to {}", min, max));
  return min;
}

double JsonFields::number(std::string_view name, double min, double max, std::optional<double> fallback) {
  const json::value* value = find(name);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_number()) {
    const double found = value->to_number<double>();
    if (std::isfinite(found) && found >= min && found <= max) return found;
  }
  fail(name, fmt::format("a number from {} to {}", min, max));
  return min;
}

bool JsonFields::boolean(std::string_view name, bool fallback) {
  const json::value* value = find(name);
  if (value == nullptr) return fallback;
  if (value->is_bool()) return value->get_bool();
  fail(name, "true or false");
  return fallback;
}

std::string JsonFields::text(std::string_view name, std::optional<std::string> fallback) {
  const json::value* value = find(name);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_string()) return std::string(value->get_string());
  fail(name, "a string");
  return {};
}

const json::object* JsonFields::child(std::string_view name) {
  const json::value* value = find(name);
  if (value == nullptr) return nullptr;
  if (value->is_object()) return &value->get_object();
  fail(name, "an object");
  return nullptr;
}

}  // namespace lowkey::worker
