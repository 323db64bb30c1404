// LOWKEY_CHECK: a broken invariant aborts with its values. Never reachable from request or file content.
#pragma once

#include <spdlog/fmt/fmt.h>

#include <string>

namespace lowkey {

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace lowkey

#define LOWKEY_CHECK(condition, ...)                                                         \
  do {                                                                                       \
    if (!(condition)) [[unlikely]]                                                           \
      ::lowkey::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)
