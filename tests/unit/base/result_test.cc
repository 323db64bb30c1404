#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace lowkey {
namespace {

Result<int> half(int x) {
  if (x % 2) return Error{Code::kInvalidArgument, fmt::format("{} is odd", x), "x"};
  return x / 2;
}

Result<std::unique_ptr<int>> quarter(int x) {
  LOWKEY_ASSIGN(once, half(x));
  LOWKEY_ASSIGN(twice, half(once));
  return std::make_unique<int>(twice);
}

Status check_quarter(int x) {
  LOWKEY_TRY([&]() -> Status {
    auto result = quarter(x);
    if (!result.ok()) return result.error();
    return {};
  }());
  return {};
}

TEST(Result, PassesValuesAndErrors) {
  EXPECT_EQ(**quarter(8), 2);
  EXPECT_EQ(quarter(6).error().message, "3 is odd");
  EXPECT_TRUE(check_quarter(8).ok());
  EXPECT_EQ(check_quarter(7).error().param, "x");
}

TEST(ResultDeathTest, ValueOfAnErrorIsABug) {
  EXPECT_DEATH((void)half(3).value(), "3 is odd");
}

}  // namespace
}  // namespace lowkey
