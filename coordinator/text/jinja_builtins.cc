#include "coordinator/text/jinja_builtins.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "coordinator/text/jinja_json.h"
#include "coordinator/text/jinja_sorting.h"
#include "coordinator/text/jinja_strings.h"
#include "coordinator/text/jinja_tests.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator::jinja {
namespace {

constexpr int64_t kMaxPrecision = 15;  // decimals of a double

struct Call {
  const Value& self;
  const Arguments& arguments;
  Budget& budget;

  const Value* argument(size_t index, std::string_view name) const { return arguments.find(index, name); }
  std::string text(size_t index, std::string_view name, std::string_view fallback) const {
    const Value* value = argument(index, name);
    return value ? value->text() : std::string(fallback);
  }
};

Value length_of(const Value& value) {
  if (const auto* text = value.string()) return Value(static_cast<int64_t>(count_characters(*text)));
  if (const auto* list = value.list()) return Value(static_cast<int64_t>(list->size()));
  if (const auto* dict = value.dict()) return Value(static_cast<int64_t>(dict->entries().size()));
  if (value.is_undefined()) return Value(int64_t{0});
  throw TemplateError{fmt::format("a value of type {} has no length", value.type_name())};
}

Value pair_list(const Dict& dict) {
  List pairs;
  for (const auto& [key, value] : dict.entries()) pairs.emplace_back(List{Value(key), value});
  return Value(std::move(pairs));
}

Value join(const Call& call) {
  const std::string separator = call.text(0, "d", "");
  const Value* attribute = call.argument(1, "attribute");
  std::string out;
  bool first = true;
  for (const Value& item : call.self.items()) {
    if (!first) out += separator;
    first = false;
    out += attribute ? attribute_of(item, attribute->text()).text() : item.text();
    call.budget.bytes(separator.size() + 1);
    check_text(out);
  }
  return Value(std::move(out));
}

Value to_integer(const Call& call) {
  const Value* fallback = call.argument(0, "default");
  const Value otherwise = fallback ? *fallback : Value(int64_t{0});
  if (call.self.is_int() || call.self.is_bool()) return Value(call.self.as_int());
  if (call.self.is_float()) {
    const double value = call.self.as_double();
    return std::abs(value) < 9e18 ? Value(static_cast<int64_t>(value)) : otherwise;
  }
  const std::string text(trim_whitespace(call.self.text()));
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? Value(value) : otherwise;
}

Value to_float(const Call& call) {
  if (call.self.is_number()) return Value(call.self.as_double());
  const Value* fallback = call.argument(0, "default");
  const std::string text(trim_whitespace(call.self.text()));
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc{} && end == text.data() + text.size()) return Value(value);
  return fallback ? *fallback : Value(0.0);
}

Value with_default(const Call& call) {
  const Value* fallback = call.argument(0, "default_value");
  const Value* boolean = call.argument(1, "boolean");
  const bool missing = call.self.is_undefined() || (boolean && boolean->truth() && !call.self.truth());
  if (!missing) return call.self;
  return fallback ? *fallback : Value(std::string());
}

Value tojson(const Call& call) {
  const Value* indent = call.argument(0, "indent");
  const int64_t width = indent && !indent->is_none() ? indent->as_int() : -1;
  if (width > 16) throw TemplateError{fmt::format("tojson: indent {} is more than 16", width)};
  return Value(to_json(call.self, static_cast<int>(std::max<int64_t>(width, -1))));
}

Value reversed(const Call& call) {
  List items = call.self.items();
  std::reverse(items.begin(), items.end());
  if (!call.self.string()) return Value(std::move(items));
  std::string out;
  for (const Value& item : items) out += *item.string();
  return Value(std::move(out));
}

Value map_items(const Call& call) {
  List out;
  const Value* attribute = call.arguments.find(SIZE_MAX, "attribute");
  const Value* fallback = call.arguments.find(SIZE_MAX, "default");
  Arguments rest;
  std::string filter;
  if (!attribute) {
    filter = call.text(0, "", "");
    if (!has_filter(filter))
      throw TemplateError{fmt::format("map: the filter '{}' is not supported", filter)};
    if (filter == "map") throw TemplateError{"map: nested maps are not supported"};
    rest.positional.assign(call.arguments.positional.begin() + 1, call.arguments.positional.end());
  }
  for (const Value& item : call.self.items()) {
    call.budget.step();
    if (!attribute) {
      out.push_back(apply_filter(filter, item, rest, call.budget));
      continue;
    }
    Value value = attribute_of(item, attribute->text());
    out.push_back(value.is_undefined() && fallback ? *fallback : std::move(value));
  }
  return Value(std::move(out));
}

// select and reject: by truth, or by the test named by the first argument. ...attr: of an attribute of each
// item.
Value select(const Call& call, bool by_attribute, bool keep) {
  const auto& given = call.arguments.positional;
  const size_t skip = by_attribute ? 1 : 0;
  if (given.size() < skip) throw TemplateError{"selectattr needs the name of an attribute"};
  const std::string attribute = by_attribute ? given[0].text() : "";
  const std::string test = given.size() > skip ? given[skip].text() : "";
  if (!test.empty() && !has_test(test))
    throw TemplateError{fmt::format("the test '{}' is not supported", test)};
  Arguments rest;
  if (given.size() > skip + 1)
    rest.positional.assign(given.begin() + static_cast<ptrdiff_t>(skip) + 1, given.end());
  List out;
  for (const Value& item : call.self.items()) {
    call.budget.step();
    const Value subject = by_attribute ? attribute_of(item, attribute) : item;
    if ((test.empty() ? subject.truth() : apply_test(test, subject, rest, call.budget)) == keep)
      out.push_back(item);
  }
  return Value(std::move(out));
}

Value first_of(const Call& call) {
  const List items = call.self.items();
  return items.empty() ? Value::undefined("first item of an empty sequence") : items.front();
}

Value last_of(const Call& call) {
  const List items = call.self.items();
  return items.empty() ? Value::undefined("last item of an empty sequence") : items.back();
}

Value absolute(const Call& call) {
  if (call.self.is_float()) return Value(std::abs(call.self.as_double()));
  const int64_t value = call.self.as_int();
  return Value(value < 0 && value != INT64_MIN ? -value : value);
}

Value items_of(const Call& call) {
  if (call.self.is_undefined()) return Value(List{});
  const Dict* dict = call.self.dict();
  if (!dict) throw TemplateError{fmt::format("items: expected a dict, found {}", call.self.type_name())};
  return pair_list(*dict);
}

// As Python's round(): to the nearest decimal of the exact value, halves to even.
Value rounded(const Call& call) {
  const Value* digits = call.argument(0, "precision");
  const int64_t precision = digits ? digits->as_int() : 0;
  if (std::abs(precision) > kMaxPrecision)
    throw TemplateError{fmt::format("round: a precision of {} is more than {}", precision, kMaxPrecision)};
  const std::string method = call.text(1, "method", "common");
  const double power = std::pow(10.0, static_cast<double>(precision));
  const double value = call.self.as_double();
  if (method == "ceil") return Value(std::ceil(value * power) / power);
  if (method == "floor") return Value(std::floor(value * power) / power);
  if (method != "common") throw TemplateError{fmt::format("round: the method '{}' is not known", method)};
  if (!call.self.is_float() && precision >= 0) return Value(call.self.as_int());
  if (!call.self.is_float()) return Value(int64_t{std::lrint(value * power) * std::lrint(1 / power)});
  if (precision < 0) return Value(std::nearbyint(value * power) / power);
  return Value(std::strtod(fmt::format("{:.{}f}", value, precision).c_str(), nullptr));
}

using Filter = Value (*)(const Call& call);

#define LOWKEY_FILTER(expression) [](const Call& call) -> Value { return expression; }

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> kFilters = {
      {"trim", LOWKEY_FILTER(strip_text(call.self.text(), call.argument(0, "chars"), true, true))},
      {"upper", LOWKEY_FILTER(to_upper(call.self.text()))},
      {"lower", LOWKEY_FILTER(to_lower(call.self.text()))},
      {"capitalize", LOWKEY_FILTER(capitalize(call.self.text()))},
      {"title", LOWKEY_FILTER(title_case(call.self.text()))},
      {"string", LOWKEY_FILTER(call.self.text())},
      {"safe", LOWKEY_FILTER(call.self)},  // nothing is escaped
      {"length", LOWKEY_FILTER(length_of(call.self))},
      {"count", LOWKEY_FILTER(length_of(call.self))},
      {"list", LOWKEY_FILTER(call.self.items())},
      {"join", join},
      {"first", first_of},
      {"last", last_of},
      {"reverse", reversed},
      {"default", with_default},
      {"d", with_default},
      {"tojson", tojson},
      {"int", to_integer},
      {"float", to_float},
      {"abs", absolute},
      {"round", rounded},
      {"sort", LOWKEY_FILTER(sort_items(call.self, call.arguments, call.budget))},
      {"dictsort", LOWKEY_FILTER(sort_dict(call.self, call.arguments, call.budget))},
      {"unique", LOWKEY_FILTER(unique_items(call.self, call.arguments, call.budget))},
      {"indent", LOWKEY_FILTER(indent_text(call.self.text(), call.arguments, call.budget))},
      {"items", items_of},
      {"map", map_items},
      {"select", LOWKEY_FILTER(select(call, false, true))},
      {"reject", LOWKEY_FILTER(select(call, false, false))},
      {"selectattr", LOWKEY_FILTER(select(call, true, true))},
      {"rejectattr", LOWKEY_FILTER(select(call, true, false))},
      {"replace", LOWKEY_FILTER(replace_text(call.self.text(), call.arguments, call.budget))},
  };
  return kFilters;
}

#undef LOWKEY_FILTER

Value call_dict_method(std::string_view name, const Dict& dict, const Arguments& arguments) {
  if (name == "items") return pair_list(dict);
  List out;
  for (const auto& [key, value] : dict.entries()) {
    if (name == "keys") out.emplace_back(key);
    if (name == "values") out.push_back(value);
  }
  if (name != "get") return Value(std::move(out));
  const Value* key = arguments.find(0, "key");
  const Value* found = key && key->string() ? dict.find(*key->string()) : nullptr;
  const Value* fallback = arguments.find(1, "default");
  return found ? *found : fallback ? *fallback : Value();
}

}  // namespace

bool has_filter(std::string_view name) {
  return filters().contains(name);
}

bool has_method(const Value& self, std::string_view name) {
  if (self.dict()) return name == "items" || name == "keys" || name == "values" || name == "get";
  return self.string() && has_string_method(name);
}

Value apply_filter(std::string_view name, const Value& self, const Arguments& arguments, Budget& budget) {
  Value result = filters().at(name)({self, arguments, budget});
  if (const auto* text = result.string()) budget.bytes(text->size());
  if (const auto* list = result.list()) budget.bytes(list->size() * sizeof(Value));
  return result;
}

Value call_method(std::string_view name, const Value& self, const Arguments& arguments, Budget& budget) {
  if (const Dict* dict = self.dict()) return call_dict_method(name, *dict, arguments);
  return call_string_method(name, *self.string(), arguments, budget);
}

Value attribute_of(const Value& self, std::string_view name) {
  if (self.is_undefined()) throw TemplateError{self.undefined_message()};
  const Dict* dict = self.dict();
  const Value* found = dict ? dict->find(name) : nullptr;
  return found ? *found : Value::undefined(name);
}

}  // namespace lowkey::coordinator::jinja
