#include "base/grammar/number_pattern.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace lowkey::grammar {
namespace {

// Up to `count` digits.
void some_digits(AutomatonBuilder& builder, NodeId from, int count, NodeId to) {
  for (int i = 0; i < count; ++i) {
    builder.empty(from, to);
    const NodeId next = builder.add_node();
    builder.bytes(from, '0', '9', next);
    from = next;
  }
  builder.empty(from, to);
}

// A bound as digits before and behind the point.
struct Digits {
  std::string whole, fraction;
  bool exclusive = false;

  explicit Digits(const NumberBound& bound) : exclusive(bound.exclusive) {
    const size_t point = bound.digits.find('.');
    whole = bound.digits.substr(0, point);
    if (point != std::string::npos) fraction = bound.digits.substr(point + 1);
    while (fraction.ends_with('0')) fraction.pop_back();
  }
  bool is_zero() const { return whole == "0" && fraction.empty(); }
};

// Absolute values from low to high, as long as the number so far is a beginning of the one or the other
// bound.
class Between {
 public:
  Between(const Digits& low, const std::optional<Digits>& high, bool whole, AutomatonBuilder& builder,
          NodeId to)
      : low_(low), high_(high), whole_(whole), builder_(builder), to_(to) {}

  void write(NodeId from) {
    const int longest = high_ ? static_cast<int>(high_->whole.size()) : kMaxDigits;
    for (int length = static_cast<int>(low_.whole.size()); length <= longest; ++length) {
      const bool at_low = length == static_cast<int>(low_.whole.size());
      const bool at_high = high_ && length == longest;
      length_ = length;
      nodes_.clear();
      builder_.empty(from, node(0, at_low, at_high));
    }
  }

 private:
  // `pos` digits are written, of which all equal the bound's that is still followed.
  NodeId node(int pos, bool at_low, bool at_high) {
    const auto [found, is_new] = nodes_.try_emplace({pos, at_low, at_high}, 0);
    if (!is_new) return found->second;
    const NodeId made = builder_.add_node();
    found->second = made;
    if (pos >= length_ && may_end(pos, at_low, at_high)) builder_.empty(made, to_);
    if (pos < length_) {
      digits(made, pos, at_low, at_high);
    } else if (!whole_ && pos == length_) {  // at least one digit behind the point
      const NodeId point = builder_.add_node();
      builder_.bytes(made, '.', '.', point);
      digits(point, pos, at_low, at_high);
    } else if (!whole_ && pos < length_ + kMaxDigits) {
      digits(made, pos, at_low, at_high);
    }
    return made;
  }

  char digit_of(const Digits& bound, int pos) const {
    if (pos < length_) return bound.whole[pos];
    const auto behind = static_cast<size_t>(pos - length_);
    return behind < bound.fraction.size() ? bound.fraction[behind] : '0';
  }
  bool exhausted(const Digits& bound, int pos) const {
    return pos >= length_ && static_cast<size_t>(pos - length_) >= bound.fraction.size();
  }

  void digits(NodeId from, int pos, bool at_low, bool at_high) {
    char first = at_low ? digit_of(low_, pos) : '0', last = at_high ? digit_of(*high_, pos) : '9';
    if (pos == 0 && length_ > 1) first = std::max(first, '1');  // no zero before other digits
    for (char digit = first; digit <= last; ++digit) {
      const bool low = at_low && digit == digit_of(low_, pos),
                 high = at_high && digit == digit_of(*high_, pos);
      builder_.bytes(from, static_cast<uint8_t>(digit), static_cast<uint8_t>(digit),
                     node(pos + 1, low, high));
    }
  }

  // The number is what is written, zeros behind it.
  bool may_end(int pos, bool at_low, bool at_high) const {
    if (at_low && (!exhausted(low_, pos) || low_.exclusive)) return false;
    return !(at_high && exhausted(*high_, pos) && high_->exclusive);
  }

  const Digits& low_;
  const std::optional<Digits>& high_;
  const bool whole_;
  AutomatonBuilder& builder_;
  const NodeId to_;
  int length_ = 0;
  std::map<std::tuple<int, bool, bool>, NodeId> nodes_;
};

void write_unbounded(bool whole, AutomatonBuilder& builder, NodeId from, NodeId to) {
  const NodeId digits = builder.add_node(), integer = builder.add_node(), more = builder.add_node();
  builder.bytes(from, '-', '-', digits);
  builder.empty(from, digits);
  builder.bytes(digits, '0', '0', integer);
  builder.bytes(digits, '1', '9', more);
  some_digits(builder, more, kMaxDigits - 1, integer);
  builder.empty(integer, to);
  if (whole) return;
  const NodeId point = builder.add_node(), first = builder.add_node(), number = builder.add_node();
  builder.bytes(integer, '.', '.', point);
  builder.bytes(point, '0', '9', first);
  some_digits(builder, first, kMaxDigits - 1, number);
  builder.empty(number, to);
  const NodeId e = builder.add_node(), sign = builder.add_node(), last = builder.add_node();
  for (const NodeId before : {integer, number}) {
    builder.bytes(before, 'e', 'e', e);
    builder.bytes(before, 'E', 'E', e);
  }
  builder.empty(e, sign);
  builder.bytes(e, '+', '+', sign);
  builder.bytes(e, '-', '-', sign);
  builder.bytes(sign, '0', '9', last);
  some_digits(builder, last, 1, to);
}

}  // namespace

void write_number(const NumberLimits& limits, AutomatonBuilder& builder, NodeId from, NodeId to) {
  if (!limits.low && !limits.high) return write_unbounded(limits.whole, builder, from, to);
  const NumberBound zero{.digits = "0"};
  const auto optional = [](const std::optional<NumberBound>& bound) {
    return bound ? std::optional(Digits(*bound)) : std::nullopt;
  };
  // Zero and above, up to `high`; below zero, down to `low`.
  if (!(limits.high && limits.high->negative)) {
    const bool from_zero = !limits.low || limits.low->negative;
    const Digits low(from_zero ? zero : *limits.low);
    Between(low, optional(limits.high), limits.whole, builder, to).write(from);
  }
  if (limits.low && !limits.low->negative) return;
  const NodeId minus = builder.add_node();
  builder.bytes(from, '-', '-', minus);
  NumberBound above = limits.high && limits.high->negative ? *limits.high : zero;
  above.exclusive |= above.digits == "0";  // no "-0"
  const Digits least(above);
  Between(least, optional(limits.low), limits.whole, builder, to).write(minus);
}

}  // namespace lowkey::grammar
