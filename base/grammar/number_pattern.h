// JSON numbers between bounds, digit by digit.
#pragma once

#include <optional>
#include <string>

#include "base/grammar/automaton.h"
#include "base/result.h"

namespace lowkey::grammar {

struct NumberBound {
  std::string digits;  // of the absolute value: "12" or "0.5"; no exponent, no sign
  bool negative = false;
  bool exclusive = false;
};

struct NumberLimits {
  std::optional<NumberBound> low, high;
  bool whole = false;  // integers alone
};

// Digits that numbers have at most, before and behind the point: enough for what a double holds.
inline constexpr int kMaxDigits = 15;

// Numbers without bounds may have an exponent of two digits; with bounds they have none.
void write_number(const NumberLimits& limits, AutomatonBuilder& builder, NodeId from, NodeId to);

}  // namespace lowkey::grammar
