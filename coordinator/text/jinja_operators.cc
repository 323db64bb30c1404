#include "coordinator/text/jinja_operators.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/jinja_tests.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator::jinja {
namespace {

[[noreturn]] void bad_operands(std::string_view op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) throw TemplateError{value->undefined_message()};
  }
  throw TemplateError{
      fmt::format("the operator {} is not supported for {} and {}", op, a.type_name(), b.type_name())};
}

int64_t checked(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  const bool overflow = op == "+"   ? __builtin_add_overflow(a, b, &result)
                        : op == "-" ? __builtin_sub_overflow(a, b, &result)
                                    : __builtin_mul_overflow(a, b, &result);
  if (overflow) throw TemplateError{"an integer is out of range"};
  return result;
}

// Python rounds towards minus infinity; the remainder has the sign of the divisor.
Value divide_integers(std::string_view op, int64_t a, int64_t b) {
  if (b == -1) return Value(op == "//" ? checked("-", 0, a) : int64_t{0});
  const int64_t quotient = a / b, rest = a % b;
  const bool adjust = rest != 0 && (rest < 0) != (b < 0);
  return Value(op == "//" ? quotient - (adjust ? 1 : 0) : rest + (adjust ? b : 0));
}

Value numeric(std::string_view op, const Value& a, const Value& b) {
  const bool divides = op == "/" || op == "//" || op == "%";
  if (divides && b.as_double() == 0) throw TemplateError{"division by zero"};
  if (op != "/" && !a.is_float() && !b.is_float()) {
    return divides ? divide_integers(op, a.as_int(), b.as_int()) : Value(checked(op, a.as_int(), b.as_int()));
  }
  const double x = a.as_double(), y = b.as_double();
  if (op == "+") return Value(x + y);
  if (op == "-") return Value(x - y);
  if (op == "*") return Value(x * y);
  if (op == "/") return Value(x / y);
  return Value(op == "//" ? std::floor(x / y) : x - y * std::floor(x / y));
}

Value repeat(const std::string& text, int64_t times, Budget& budget) {
  std::string out;
  if (text.empty() || times <= 0) return Value(std::move(out));
  size_t bytes = 0;
  if (__builtin_mul_overflow(text.size(), static_cast<size_t>(times), &bytes)) bytes = SIZE_MAX;
  budget.bytes(bytes);
  out.reserve(bytes);
  for (int64_t i = 0; i < times; ++i) out += text;
  return Value(std::move(out));
}

Value concatenate(const List& a, const List& b, Budget& budget) {
  budget.bytes((a.size() + b.size()) * sizeof(Value));
  List items = a;
  items.insert(items.end(), b.begin(), b.end());
  return Value(std::move(items));
}

// In characters, as Value::items() has them.
int64_t length_of(const std::string& text) {
  int64_t length = 0;
  for (size_t pos = 0; pos < text.size(); pos += next_utf8(text, pos).bytes) ++length;
  return length;
}

int64_t position(const Value& bound, int64_t size, int64_t fallback, bool backwards) {
  if (bound.is_none()) return fallback;
  int64_t at = bound.as_int();
  if (at < 0) at = std::max(at, -size - 1) + size;
  return backwards ? std::clamp<int64_t>(at, -1, size - 1) : std::clamp<int64_t>(at, 0, size);
}

}  // namespace

Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (op == "~" || (op == "+" && a.string() && b.string())) {
    std::string text = a.text();
    text += b.text();
    budget.bytes(text.size());
    return Value(std::move(text));
  }
  if (a.is_number() && b.is_number()) return numeric(op, a, b);
  if (op == "+" && a.list() && b.list()) return concatenate(*a.list(), *b.list(), budget);
  if (op == "*" && a.string() && b.is_int()) return repeat(*a.string(), b.as_int(), budget);
  if (op == "*" && a.is_int() && b.string()) return repeat(*b.string(), a.as_int(), budget);
  bad_operands(op, a, b);
}

Value negate(const Value& value) {
  if (value.is_float()) return Value(-value.as_double());
  return Value(checked("-", 0, value.as_int()));
}

bool holds(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (op == "==") return equal(a, b, budget);
  if (op == "!=") return !equal(a, b, budget);
  if (op == "in" || op == "not in") {
    Arguments container;
    container.positional.push_back(b);
    return apply_test("in", a, container, budget) == (op == "in");
  }
  const int order = compare(a, b);
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  return op == ">" ? order > 0 : order >= 0;
}

Value item_of(const Value& self, const Value& index) {
  if (self.is_undefined()) throw TemplateError{self.undefined_message()};
  if (index.string()) return attribute_of(self, *index.string());
  if (self.dict() || !index.is_number() || index.is_float()) return Value::undefined(index.text());
  const std::string* text = self.string();
  if (!text && !self.list()) return Value::undefined(index.text());
  int64_t at = index.as_int();
  const int64_t size = text ? length_of(*text) : static_cast<int64_t>(self.list()->size());
  if (at < 0) at += size;
  if (at < 0 || at >= size) return Value::undefined(fmt::format("item {}", index.text()));
  if (!text) return (*self.list())[static_cast<size_t>(at)];
  size_t begin = 0;
  while (at-- > 0) begin += next_utf8(*text, begin).bytes;
  return Value(text->substr(begin, next_utf8(*text, begin).bytes));
}

Value slice_of(const Value& self, const Value& begin, const Value& end, const Value& step, Budget& budget) {
  if (self.is_undefined()) throw TemplateError{self.undefined_message()};
  if (!self.string() && !self.list())
    throw TemplateError{fmt::format("a value of type {} cannot be sliced", self.type_name())};
  const List items = self.items();
  budget.bytes(items.size() * sizeof(Value));
  const auto size = static_cast<int64_t>(items.size());
  const int64_t stride = step.is_none() ? 1 : step.as_int();
  if (stride == 0) throw TemplateError{"a slice's step is zero"};
  const bool backwards = stride < 0;
  const int64_t last = position(end, size, backwards ? -1 : size, backwards);
  List out;
  for (int64_t i = position(begin, size, backwards ? size - 1 : 0, backwards);
       backwards ? i > last : i < last;) {
    out.push_back(items[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  if (!self.string()) return Value(std::move(out));
  std::string text;
  for (const Value& item : out) text += *item.string();
  return Value(std::move(text));
}

}  // namespace lowkey::coordinator::jinja
