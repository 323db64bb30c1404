// Typed, checked access to the fields of a JSON file. The first thing found wrong is kept as one line
// "FILE: field 'x': expected ..., found ..."; later reads return harmless values, so that a caller reads all
// its fields and asks status() once. Private to worker/model (it pulls in Boost.JSON).
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lowkey::worker {

// The whole file, at most `max_bytes` of it: kBadInput when it is missing, unreadable or larger.
Result<std::string> read_text_file(const std::filesystem::path& path, uint64_t max_bytes);

// A file that holds one JSON object.
Result<boost::json::object> read_json_object(const std::filesystem::path& path, uint64_t max_bytes);

// A JSON value as it stands in an error line: short, on one line.
std::string describe(const boost::json::value* value);

class JsonFields {
 public:
  // `object` outlives this. `prefix` names the enclosing field: "rope_scaling.".
  JsonFields(const boost::json::object& object, std::string file, std::string prefix = {})
      : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {}

  const Status& status() const { return status_; }
  // The value, or null when the field is missing or JSON null.
  const boost::json::value* find(std::string_view name) const;
  bool contains(std::string_view name) const;  // also as null

  // Required when there is no fallback.
  int64_t integer(std::string_view name, int64_t min, int64_t max, std::optional<int64_t> fallback = {});
  double number(std::string_view name, double min, double max, std::optional<double> fallback = {});
  bool boolean(std::string_view name, bool fallback);
  std::string text(std::string_view name, std::optional<std::string> fallback = {});
  const boost::json::object* child(std::string_view name);  // null when missing

  void fail(std::string_view name, std::string_view expected);  // found: the field's value
  void fail(std::string_view name, std::string_view expected, std::string_view found);

 private:
  const boost::json::object& object_;
  std::string file_;
  std::string prefix_;
  Status status_;
};

}  // namespace lowkey::worker
