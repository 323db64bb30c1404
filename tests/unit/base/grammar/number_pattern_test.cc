#include "base/grammar/number_pattern.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/unit/base/grammar/byte_matcher.h"

namespace lowkey::grammar {
namespace {

std::string text_of(double value) {
  std::string text = fmt::format("{}", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

std::optional<NumberBound> bound_of(double value, bool exclusive) {
  return NumberBound{text_of(std::abs(value)), value < 0, exclusive};
}

TEST(NumberPattern, BoundsAgainstComparison) {
  std::mt19937 random(3);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 400; ++round) {
    const auto number = [&] {
      const int scale = random() % 3 == 0 ? 1 : random() % 2 ? 10 : 100;
      return (static_cast<int>(random() % 4001) - 2000) / static_cast<double>(scale);
    };
    double low = number(), high = number();
    if (low > high) std::swap(low, high);
    const bool has_low = random() % 4 != 0, has_high = !has_low || random() % 4 != 0,
               whole = random() % 3 == 0;
    const bool above = random() % 3 == 0, below = random() % 3 == 0;
    AutomatonBuilder builder;
    const auto rule = builder.add_rule();
    write_number({.low = has_low ? bound_of(low, above) : std::nullopt,
                  .high = has_high ? bound_of(high, below) : std::nullopt,
                  .whole = whole},
                 builder, rule.start, rule.end);
    auto automaton = builder.finish(rule.id);
    if (!automaton.ok()) {  // nothing lies between
      EXPECT_LT(std::floor(high) - (below && high == std::floor(high)),
                std::ceil(low) + (above && low == std::ceil(low)));
      continue;
    }
    ByteMatcher matcher(std::move(*automaton));
    for (int i = 0; i < 60; ++i) {
      double value = i < 20 ? number() : i < 40 ? low + (i - 30) * 0.01 : high + (i - 50) * 0.01;
      value = std::round(value * 1000) / 1000;
      if (value == 0) value = 0;  // no "-0"
      const std::string text = text_of(value);
      const bool is_whole = text.find('.') == std::string::npos;
      const double exact = std::stod(text);
      const bool fits = (!has_low || (above ? exact > low : exact >= low)) &&
                        (!has_high || (below ? exact < high : exact <= high)) && (!whole || is_whole);
      EXPECT_EQ(matcher.accepts(text), fits)
          << text << " in " << low << ".." << high << " " << above << below << whole;
      ++(fits ? accepted : refused);
    }
  }
  EXPECT_GT(accepted, 3000);
  EXPECT_GT(refused, 3000);
}

TEST(NumberPattern, WithoutBoundsWhatJsonAllows) {
  AutomatonBuilder builder;
  const auto rule = builder.add_rule();
  write_number({}, builder, rule.start, rule.end);
  ByteMatcher matcher(std::move(*builder.finish(rule.id)));
  for (const char* text :
       {"0", "-0", "12", "-3.50", "1e9", "1.5E-07", "123456789012345", "0.123456789012345"})
    EXPECT_TRUE(matcher.accepts(text)) << text;
  for (const char* text : {"", "-", "01", "1.", ".5", "+1", "1e", "1e123", "1234567890123456", "NaN", "0x1"})
    EXPECT_FALSE(matcher.accepts(text)) << text;
}

}  // namespace
}  // namespace lowkey::grammar
