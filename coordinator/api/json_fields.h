// Typed, range-checked reading of a JSON request. Private to coordinator/api: keeps Boost.JSON out of its
// headers.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lowkey::coordinator {

// The document as an object; kInvalidArgument with the byte position when it is malformed or something else.
Result<boost::json::object> parse_object(std::string_view body);

Error invalid_param(std::string param, std::string message);
std::string describe(const boost::json::value& value);  // for messages: short, quoted

// null counts as absent. The first error sticks; later reads return nothing.
class Fields {
 public:
  explicit Fields(const boost::json::object& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  const boost::json::value* find(std::string_view name) const;
  std::optional<double> number(std::string_view name, double low, double high);
  std::optional<int64_t> integer(std::string_view name, int64_t low, int64_t high);
  std::optional<bool> boolean(std::string_view name);
  std::optional<std::string> text(std::string_view name);

  void fail(std::string_view name, std::string message);
  std::string param(std::string_view name) const { return prefix_ + std::string(name); }
  const std::optional<Error>& error() const { return error_; }

 private:
  const boost::json::object& object_;
  std::string prefix_;
  std::optional<Error> error_;
};

// An integer in range, also when written as 16.0.
std::optional<int64_t> as_integer(const boost::json::value& value, int64_t low, int64_t high);

}  // namespace lowkey::coordinator
