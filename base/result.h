// Expected failures are values: Result<T> holds a T or an Error. Broken invariants are LOWKEY_CHECK
// (check.h).
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "base/check.h"

namespace lowkey {

enum class Code {
  kUsage,              // bad flag or setting: exit code 2
  kBadInput,           // malformed file: exit code 3
  kInvalidArgument,    // bad value in a request: HTTP 400
  kUnauthenticated,    // HTTP 401, or a peer without the cluster secret
  kNotFound,           // HTTP 404, or a cache miss
  kTooLarge,           // HTTP 413
  kResourceExhausted,  // a bounded queue, pool or budget is full: HTTP 429
  kUnavailable,        // peer gone, not ready, draining: HTTP 503
  kDeadlineExceeded,
  kCancelled,
  kDataLoss,  // checksum mismatch: treated as a miss, counted
  kInternal,
};

const char* to_string(Code code);

struct Error {
  Code code = Code::kInternal;
  std::string message;  // one line: what, where, expected, found
  std::string param;    // the request parameter or setting it is about; may be empty
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    LOWKEY_CHECK(ok(), "value() of a failed result: {}", std::get<1>(state_).message);
    return std::get<0>(state_);
  }
  const T& value() const& {
    LOWKEY_CHECK(ok(), "value() of a failed result: {}", std::get<1>(state_).message);
    return std::get<0>(state_);
  }
  T&& value() && {
    LOWKEY_CHECK(ok(), "value() of a failed result: {}", std::get<1>(state_).message);
    return std::move(std::get<0>(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // REQUIRES: !ok()
  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

// Returns the error to the caller, or goes on.
#define LOWKEY_TRY(expression)                                              \
  do {                                                                      \
    if (auto status_ = (expression); !status_.ok()) return status_.error(); \
  } while (false)

// Declares `name` from a Result, or returns its error.
#define LOWKEY_ASSIGN(name, expression) LOWKEY_ASSIGN_(name, expression, __LINE__)
#define LOWKEY_ASSIGN_(name, expression, line) LOWKEY_ASSIGN__(name, expression, line)
#define LOWKEY_ASSIGN__(name, expression, line)          \
  auto result_##line = (expression);                     \
  if (!result_##line.ok()) return result_##line.error(); \
  auto name = std::move(result_##line).value()

}  // namespace lowkey
