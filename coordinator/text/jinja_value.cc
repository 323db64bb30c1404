#include "coordinator/text/jinja_value.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator::jinja {
namespace {

// Deeper nesting can only come from a template that builds it on purpose.
constexpr int kMaxNesting = 32;

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  std::string text(buffer, end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

void write_string_repr(std::string& out, std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  for (const char c : text) {
    if (c == quote || c == '\\') {
      (out += '\\') += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<int>(c));
    } else {
      out += c;
    }
  }
  out += quote;
}

}  // namespace

void check_nesting(int depth) {
  if (depth > kMaxNesting) throw TemplateError{"nests values too deep"};
}

void check_text(const std::string& text) {
  if (text.size() > kMostText) throw TemplateError{"makes too much text"};
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : entries_) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Dict::set(std::string_view key, Value value) {
  for (auto& [name, old] : entries_) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  entries_.emplace_back(key, std::move(value));
}

Value::Value(List items) {
  for (const Value& item : items) nesting_ = std::max(nesting_, item.nesting_);
  check_nesting(++nesting_);
  state_ = std::make_shared<const List>(std::move(items));
}

Value::Value(Dict dict) {
  for (const auto& [key, value] : dict.entries()) nesting_ = std::max(nesting_, value.nesting_);
  check_nesting(++nesting_);
  state_ = std::make_shared<Dict>(std::move(dict));
}

Value Value::undefined(std::string_view name) {
  Value value;
  value.state_ = Undefined{std::make_shared<const std::string>(name)};
  return value;
}

std::string Value::undefined_message() const {
  return fmt::format("'{}' is undefined", *std::get<Undefined>(state_).name);
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return as_double() != 0;
  if (const auto* text = string()) return !text->empty();
  if (const auto* items = list()) return !items->empty();
  if (const auto* entries = dict()) return !entries->entries().empty();
  return true;
}

double Value::as_double() const {
  if (is_float()) return std::get<double>(state_);
  return static_cast<double>(as_int());
}

int64_t Value::as_int() const {
  if (is_int()) return std::get<int64_t>(state_);
  if (is_bool()) return std::get<bool>(state_) ? 1 : 0;
  if (is_undefined()) throw TemplateError{undefined_message()};
  throw TemplateError{fmt::format("expected an integer, found {}", type_name())};
}

const char* Value::type_name() const {
  constexpr const char* kNames[] = {"undefined", "NoneType", "bool", "int",     "float",
                                    "str",       "list",     "dict", "function"};
  return kNames[state_.index()];
}

std::string Value::text() const {
  if (is_undefined()) return {};
  if (const auto* text = string()) return *text;
  return repr();
}

std::string Value::repr() const {
  std::string out;
  write_repr(out, 0);
  return out;
}

void Value::write_repr(std::string& out, int depth) const {
  check_nesting(depth);
  check_text(out);
  if (is_undefined()) {
    out += "Undefined";
  } else if (is_none()) {
    out += "None";
  } else if (is_bool()) {
    out += truth() ? "True" : "False";
  } else if (is_int()) {
    out += std::to_string(as_int());
  } else if (is_float()) {
    out += float_text(as_double());
  } else if (const auto* text = string()) {
    write_string_repr(out, *text);
  } else if (const auto* items = list()) {
    out += '[';
    for (size_t i = 0; i < items->size(); ++i) {
      if (i > 0) out += ", ";
      (*items)[i].write_repr(out, depth + 1);
    }
    out += ']';
  } else if (const auto* entries = dict()) {
    out += '{';
    bool first = true;
    for (const auto& [key, value] : entries->entries()) {
      if (!first) out += ", ";
      first = false;
      write_string_repr(out, key);
      out += ": ";
      value.write_repr(out, depth + 1);
    }
    out += '}';
  } else {
    out += "<function>";
  }
}

List Value::items() const {
  if (const auto* items = list()) return *items;
  List out;
  if (is_undefined()) return out;
  if (const auto* entries = dict()) {
    for (const auto& [key, value] : entries->entries()) out.emplace_back(key);
    return out;
  }
  const auto* text = string();
  if (!text) throw TemplateError{fmt::format("a value of type {} cannot be iterated", type_name())};
  for (size_t pos = 0; pos < text->size();) {
    const uint8_t bytes = next_utf8(*text, pos).bytes;
    out.emplace_back(text->substr(pos, bytes));
    pos += bytes;
  }
  return out;
}

bool equal(const Value& a, const Value& b, Budget& budget, int depth) {
  check_nesting(depth);
  if (depth > 0) budget.step();
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.as_double() == b.as_double() : a.as_int() == b.as_int();
  }
  if (a.state_.index() != b.state_.index()) return false;
  if (const auto* text = a.string()) {
    if (text->size() != b.string()->size()) return false;
    budget.bytes(text->size());  // time, not memory; one budget serves for both
    return *text == *b.string();
  }
  if (const auto* items = a.list()) {
    return std::equal(items->begin(), items->end(), b.list()->begin(), b.list()->end(),
                      [&](const Value& x, const Value& y) { return equal(x, y, budget, depth + 1); });
  }
  if (const auto* dict = a.dict()) {
    if (dict == b.dict()) return true;
    if (dict->entries().size() != b.dict()->entries().size()) return false;
    return std::all_of(dict->entries().begin(), dict->entries().end(), [&](const auto& entry) {
      const Value* other = b.dict()->find(entry.first);
      return other && equal(entry.second, *other, budget, depth + 1);
    });
  }
  return !a.function() || a.function() == b.function();
}

const Value* Arguments::find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

int compare(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    const double x = a.as_double(), y = b.as_double();
    return x < y ? -1 : x > y ? 1 : 0;
  }
  if (a.string() && b.string()) {
    const int order = a.string()->compare(*b.string());
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) throw TemplateError{value->undefined_message()};
  }
  throw TemplateError{fmt::format("{} and {} cannot be ordered", a.type_name(), b.type_name())};
}

}  // namespace lowkey::coordinator::jinja
