#include "coordinator/text/jinja_sorting.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator::jinja {
namespace {

struct Keyed {
  Value key;
  Value item;
};

bool flag(const Arguments& arguments, size_t index, std::string_view name) {
  const Value* value = arguments.find(index, name);
  return value != nullptr && value->truth();
}

Value key_of(Value value, const Value* attribute, bool case_sensitive, Budget& budget) {
  if (attribute != nullptr && !attribute->is_none()) {
    const std::string path = attribute->text();
    for (size_t at = 0; at <= path.size();) {
      const size_t end = std::min(path.find('.', at), path.size());
      value = attribute_of(value, std::string_view(path).substr(at, end - at));
      at = end + 1;
    }
  }
  if (case_sensitive || value.string() == nullptr) return value;
  budget.bytes(value.string()->size());
  return Value(to_lower(*value.string()));
}

// What comparing two strings may cost.
void charge(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.string() != nullptr && b.string() != nullptr)
    budget.bytes(std::min(a.string()->size(), b.string()->size()));
}

void sort(std::vector<Keyed>& items, bool reverse, Budget& budget) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    charge(a.key, b.key, budget);
    return reverse ? compare(b.key, a.key) < 0 : compare(a.key, b.key) < 0;
  });
}

Value items_of(std::vector<Keyed> items) {
  List list;
  for (Keyed& each : items) list.push_back(std::move(each.item));
  return Value(std::move(list));
}

}  // namespace

Value sort_items(const Value& self, const Arguments& arguments, Budget& budget) {
  const bool case_sensitive = flag(arguments, 1, "case_sensitive");
  const Value* attribute = arguments.find(2, "attribute");
  std::vector<Keyed> items;
  for (const Value& item : self.items())
    items.push_back({key_of(item, attribute, case_sensitive, budget), item});
  sort(items, flag(arguments, 0, "reverse"), budget);
  return items_of(std::move(items));
}

Value sort_dict(const Value& self, const Arguments& arguments, Budget& budget) {
  const Dict* dict = self.dict();
  if (dict == nullptr)
    throw TemplateError{fmt::format("dictsort: expected a dict, found {}", self.type_name())};
  const bool case_sensitive = flag(arguments, 0, "case_sensitive");
  const Value* by = arguments.find(1, "by");
  const std::string side = by == nullptr ? "key" : by->text();
  if (side != "key" && side != "value")
    throw TemplateError{fmt::format("dictsort: by is key or value, found '{}'", side)};
  std::vector<Keyed> items;
  for (const auto& [key, value] : dict->entries())
    items.push_back({key_of(side == "key" ? Value(key) : value, nullptr, case_sensitive, budget),
                     Value(List{Value(key), value})});
  sort(items, flag(arguments, 2, "reverse"), budget);
  return items_of(std::move(items));
}

Value unique_items(const Value& self, const Arguments& arguments, Budget& budget) {
  const bool case_sensitive = flag(arguments, 0, "case_sensitive");
  const Value* attribute = arguments.find(1, "attribute");
  std::vector<Keyed> kept;
  for (const Value& item : self.items()) {
    Value key = key_of(item, attribute, case_sensitive, budget);
    const bool seen = std::any_of(kept.begin(), kept.end(), [&](const Keyed& other) {
      charge(other.key, key, budget);
      return equal(other.key, key, budget);
    });
    if (!seen) kept.push_back({std::move(key), item});
  }
  return items_of(std::move(kept));
}

}  // namespace lowkey::coordinator::jinja
