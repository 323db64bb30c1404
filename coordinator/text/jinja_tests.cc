#include "coordinator/text/jinja_tests.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator::jinja {
namespace {

using Test = bool (*)(const Value& self, const Arguments& arguments, Budget& budget);

const Value& other(const Arguments& arguments) {
  if (arguments.positional.size() != 1) throw TemplateError{"the test takes one argument"};
  return arguments.positional[0];
}

int64_t modulo(const Value& self, int64_t divisor) {
  if (divisor == 0) throw TemplateError{"divisibleby: division by zero"};
  return divisor == -1 ? 0 : self.as_int() % divisor;
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const auto* text = container.string()) {
    if (!item.string())
      throw TemplateError{fmt::format("'in' a string needs a string, found {}", item.type_name())};
    return text->find(*item.string()) != std::string::npos;
  }
  if (const auto* dict = container.dict()) return item.string() && dict->find(*item.string());
  if (container.is_undefined()) return false;
  const List* items = container.list();
  if (!items) throw TemplateError{fmt::format("'in' needs a sequence, found {}", container.type_name())};
  budget.bytes(items->size());  // the search costs time, not memory; one budget serves for both
  return std::ranges::any_of(*items, [&](const Value& each) { return equal(each, item, budget); });
}

#define LOWKEY_TEST(condition)                                                                  \
  [](const Value& v, [[maybe_unused]] const Arguments& a, [[maybe_unused]] Budget& b) -> bool { \
    return condition;                                                                           \
  }

const std::map<std::string_view, Test>& tests() {
  static const std::map<std::string_view, Test> kTests = {
      {"defined", LOWKEY_TEST(!v.is_undefined())},
      {"undefined", LOWKEY_TEST(v.is_undefined())},
      {"none", LOWKEY_TEST(v.is_none())},
      {"boolean", LOWKEY_TEST(v.is_bool())},
      {"true", LOWKEY_TEST(v.is_bool() && v.truth())},
      {"false", LOWKEY_TEST(v.is_bool() && !v.truth())},
      {"integer", LOWKEY_TEST(v.is_int())},
      {"float", LOWKEY_TEST(v.is_float())},
      {"number", LOWKEY_TEST(v.is_number())},
      {"string", LOWKEY_TEST(v.string() != nullptr)},
      {"mapping", LOWKEY_TEST(v.dict() != nullptr)},
      {"sequence", LOWKEY_TEST(v.string() || v.list() || v.dict() || v.is_undefined())},
      {"iterable", LOWKEY_TEST(v.string() || v.list() || v.dict() || v.is_undefined())},
      {"callable", LOWKEY_TEST(v.function() != nullptr)},
      {"odd", LOWKEY_TEST(modulo(v, 2) != 0)},
      {"even", LOWKEY_TEST(modulo(v, 2) == 0)},
      {"divisibleby", LOWKEY_TEST(modulo(v, other(a).as_int()) == 0)},
      {"in", LOWKEY_TEST(contains(other(a), v, b))},
      {"equalto", LOWKEY_TEST(equal(v, other(a), b))},
      {"==", LOWKEY_TEST(equal(v, other(a), b))},
      {"eq", LOWKEY_TEST(equal(v, other(a), b))},
      {"sameas", LOWKEY_TEST(equal(v, other(a), b))},
      {"ne", LOWKEY_TEST(!equal(v, other(a), b))},
      {"!=", LOWKEY_TEST(!equal(v, other(a), b))},
      {"lt", LOWKEY_TEST(compare(v, other(a)) < 0)},
      {"<", LOWKEY_TEST(compare(v, other(a)) < 0)},
      {"le", LOWKEY_TEST(compare(v, other(a)) <= 0)},
      {"<=", LOWKEY_TEST(compare(v, other(a)) <= 0)},
      {"gt", LOWKEY_TEST(compare(v, other(a)) > 0)},
      {">", LOWKEY_TEST(compare(v, other(a)) > 0)},
      {"ge", LOWKEY_TEST(compare(v, other(a)) >= 0)},
      {">=", LOWKEY_TEST(compare(v, other(a)) >= 0)},
      {"lower", LOWKEY_TEST(v.text() == to_lower(v.text()))},
      {"upper", LOWKEY_TEST(v.text() == to_upper(v.text()))},
  };
  return kTests;
}

#undef LOWKEY_TEST

}  // namespace

bool has_test(std::string_view name) {
  return tests().contains(name);
}

bool apply_test(std::string_view name, const Value& self, const Arguments& arguments, Budget& budget) {
  return tests().at(name)(self, arguments, budget);
}

}  // namespace lowkey::coordinator::jinja
