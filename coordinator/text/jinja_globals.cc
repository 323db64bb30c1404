#include "coordinator/text/jinja_globals.h"

#include <cstdint>
#include <ctime>

namespace lowkey::coordinator::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;

Value strftime_now(const Arguments& arguments) {
  const Value* format = arguments.find(0, "format");
  if (!format || !format->string()) throw TemplateError{"strftime_now expects a format"};
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[256];
  return Value(std::string(buffer, std::strftime(buffer, sizeof buffer, format->string()->c_str(), &local)));
}

Value range(const Arguments& arguments) {
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) throw TemplateError{"range expects one to three integers"};
  const int64_t begin = given.size() > 1 ? given[0].as_int() : 0;
  const int64_t end = given[given.size() > 1 ? 1 : 0].as_int();
  const int64_t step = given.size() > 2 ? given[2].as_int() : 1;
  if (step == 0) throw TemplateError{"range: the step is zero"};
  List items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) throw TemplateError{"range: too long"};
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return Value(std::move(items));
}

Value make_dict(const Arguments& arguments) {
  Dict dict;
  for (const auto& [name, value] : arguments.named) dict.set(name, value);
  return Value(std::move(dict));
}

Value raise_exception(const Arguments& arguments) {
  const Value* message = arguments.find(0, "message");
  throw TemplateError{message ? message->text() : "refused"};
}

}  // namespace

std::vector<std::pair<std::string_view, Function>> global_functions() {
  return {{"range", range},
          {"dict", make_dict},
          {"strftime_now", strftime_now},
          {"raise_exception", raise_exception}};
}

}  // namespace lowkey::coordinator::jinja
