#include "base/grammar/schema_merge.h"

#include <algorithm>
#include <set>

#include "base/grammar/schema_types.h"

namespace lowkey::grammar {
namespace {

namespace json = boost::json;

constexpr int kMaxDepth = 32;
// Values in the schemas that are copied and merged, for one document: about 0.1 us each.
constexpr size_t kMaxWork = 300'000;
constexpr size_t kComparisonsPerValue = 16;
constexpr size_t kMaxAlternatives = 256;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw SchemaError{fmt::format("{}: {}", path, what)};
}

size_t values_in(const json::value& value) {
  size_t count = 1;
  if (const auto* array = value.if_array())
    for (const auto& item : *array) count += values_in(item);
  if (const auto* object = value.if_object())
    for (const auto& entry : *object) count += values_in(entry.value());
  return count;
}

json::value all_of(const json::value& a, const json::value& b) {
  return json::object{{"allOf", json::array{a, b}}};
}

// The tighter of two numbers.
void tighten(const json::object& a, const json::object& b, std::string_view key, bool larger,
             json::object* out) {
  const auto *first = a.if_contains(key), *second = b.if_contains(key);
  if (!first && !second) return;
  if (!first || !second) {
    (*out)[key] = first ? *first : *second;
    return;
  }
  if (!first->is_number() || !second->is_number()) {
    (*out)[key] = first->is_number() ? *second : *first;  // refused when it is compiled
    return;
  }
  const bool takes_first = (first->to_number<double>() > second->to_number<double>()) == larger;
  (*out)[key] = takes_first ? *first : *second;
}

// The schema that an object gives a property which it does not name.
json::value additional(const json::object& schema) {
  const auto* value = schema.if_contains("additionalProperties");
  return value ? *value : json::value(true);
}

bool is(const json::value& schema, bool value) {
  return schema.is_bool() && schema.get_bool() == value;
}

// False: there is no value that both name.
bool merge_enums(const json::object& a, const json::object& b, json::object* out) {
  const auto *ours = enum_of(a), *theirs = enum_of(b);
  if (ours || theirs) {
    json::array both;
    for (const auto& value : ours ? *ours : *theirs) {
      const bool kept =
          !ours || !theirs || std::ranges::any_of(*theirs, [&](const auto& v) { return equal(v, value); });
      if (kept) both.push_back(value);
    }
    if (both.empty()) return false;
    (*out)["enum"] = std::move(both);
  }
  return true;
}

void merge_items(const json::object& a, const json::object& b, const std::string& path, json::object* out) {
  const auto *items = a.if_contains("items"), *others = b.if_contains("items");
  const bool tuple = a.contains("prefixItems"), other_tuple = b.contains("prefixItems");
  if ((tuple && (other_tuple || others)) || (other_tuple && items))
    fail(path, "'prefixItems' and 'items' in schemas that must hold together are not supported");
  if (items && others)
    (*out)["items"] = all_of(*items, *others);
  else if (items || others)
    (*out)["items"] = items ? *items : *others;
}

void merge_alternatives(const json::object& a, const json::object& b, const std::string& path,
                        json::object* out) {
  const auto *left = a.if_contains("anyOf"), *right = b.if_contains("anyOf");
  if (left && right && left->is_array() && right->is_array()) {
    if (left->get_array().size() * right->get_array().size() > kMaxAlternatives)
      fail(path, fmt::format("more than {} combinations of alternatives", kMaxAlternatives));
    json::array pairs;
    for (const auto& l : left->get_array())
      for (const auto& r : right->get_array()) pairs.push_back(all_of(l, r));
    (*out)["anyOf"] = std::move(pairs);
  } else if (left || right) {
    (*out)["anyOf"] = left ? *left : *right;
  }
}

}  // namespace

const Schema& SchemaMerger::resolve(std::string_view reference, const std::string& path) const {
  if (!reference.starts_with('#'))
    fail(path, fmt::format("'$ref' to another document, '{}', is not supported", reference));
  const std::string_view pointer = reference.substr(1);
  if (pointer.empty()) return document_;
  boost::system::error_code error;
  const json::value* found = pointer.starts_with('/') ? document_.find_pointer(pointer, error) : nullptr;
  if (found == nullptr) fail(path, fmt::format("'$ref' names '{}', and there is nothing", reference));
  return *found;
}

Schema SchemaMerger::normalized(const Schema& schema, const std::string& path, int depth) const {
  if (schema.is_bool()) return schema;
  if (!schema.is_object()) fail(path, "a schema must be an object, true or false");
  charge(schema, path);
  if (depth > kMaxDepth) fail(path, "its '$ref' and 'allOf' nest too deeply, or refer to each other");
  json::object own = schema.get_object();
  std::vector<Schema> parts;
  if (const auto* reference = own.if_contains("$ref")) {
    if (!reference->is_string()) fail(path, "'$ref' must be a string");
    parts.push_back(resolve(view(reference->get_string()), path));
    own.erase("$ref");
  }
  if (const auto* all = own.if_contains("allOf")) {
    if (!all->is_array() || all->get_array().empty()) fail(path, "'allOf' must be an array of schemas");
    for (const auto& part : all->get_array()) parts.push_back(part);
    own.erase("allOf");
  }
  if (const auto* value = own.if_contains("const")) {
    parts.push_back(json::object{{"enum", json::array{*value}}});
    own.erase("const");
  }
  if (const auto* one = own.if_contains("oneOf")) {
    if (!one->is_array() || one->get_array().empty()) fail(path, "'oneOf' must be an array of schemas");
    json::array options = one->get_array();
    if (options.size() > kMaxAlternatives)
      fail(path, fmt::format("'oneOf' of more than {}", kMaxAlternatives));
    for (json::value& option : options) option = normalized(option, path, depth + 1);
    for (size_t i = 0; i < options.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (!are_disjoint(options[j], options[i], path, depth + 1))
          fail(path,
               fmt::format("'oneOf': a value may satisfy both alternative {} and {}; use 'anyOf'", j, i));
    parts.push_back(json::object{{"anyOf", one->get_array()}});
    own.erase("oneOf");
  }
  Schema result = std::move(own);
  for (const Schema& part : parts) result = merged(result, normalized(part, path, depth + 1), path);
  return result;
}

void SchemaMerger::charge(const Schema& schema, const std::string& path) const {
  add_work(values_in(schema), path);
}

// Each value of the one list is compared with each of the other.
void SchemaMerger::charge_pairs(const json::array* a, const json::array* b, const std::string& path) const {
  if (a && b) add_work(a->size() * b->size() / kComparisonsPerValue, path);
}

void SchemaMerger::add_work(size_t work, const std::string& path) const {
  work_ += work;
  if (work_ > kMaxWork) fail(path, "merging what its '$ref', 'allOf' and 'oneOf' say takes too long");
}

Schema SchemaMerger::merged(const Schema& first, const Schema& second, const std::string& path) const {
  charge(first, path);
  charge(second, path);
  if (is(first, false) || is(second, false)) return false;
  if (is(first, true)) return second;
  if (is(second, true)) return first;
  const json::object &a = first.get_object(), &b = second.get_object();
  static const std::set<std::string_view> kMerged = {"type",       "enum",
                                                     "minimum",    "exclusiveMinimum",
                                                     "maximum",    "exclusiveMaximum",
                                                     "minLength",  "maxLength",
                                                     "minItems",   "maxItems",
                                                     "properties", "required",
                                                     "items",      "additionalProperties",
                                                     "anyOf"};
  static const std::set<std::string_view> kAnnotations = {
      "title",   "description", "default",  "examples", "deprecated",  "readOnly",     "writeOnly",
      "$schema", "$id",         "$comment", "$defs",    "definitions", "discriminator"};
  json::object out;
  for (const auto& entry : a)
    if (!kMerged.contains(view(entry.key()))) out[entry.key()] = entry.value();
  for (const auto& entry : b) {
    if (kMerged.contains(view(entry.key()))) continue;
    const auto* other = out.if_contains(entry.key());
    if (other && *other != entry.value() && !kAnnotations.contains(view(entry.key())))
      fail(path, fmt::format("'{}' twice, in schemas that must hold together, is not supported",
                             view(entry.key())));
    out[entry.key()] = entry.value();
  }
  if (a.contains("type") || b.contains("type")) {
    out["type"] = types_of_both(a, b);
    if (out["type"].get_array().empty()) return false;
  }
  charge_pairs(enum_of(a), enum_of(b), path);
  if (!merge_enums(a, b, &out)) return false;
  for (const char* key : {"minimum", "exclusiveMinimum", "minLength", "minItems"})
    tighten(a, b, key, true, &out);
  for (const char* key : {"maximum", "exclusiveMaximum", "maxLength", "maxItems"})
    tighten(a, b, key, false, &out);
  merge_objects(a, b, &out);
  merge_items(a, b, path, &out);
  merge_alternatives(a, b, path, &out);
  return out;
}

// A property that one of them does not name is what its additionalProperties says.
void SchemaMerger::merge_objects(const json::object& a, const json::object& b, json::object* out) const {
  const auto properties = [](const json::object& schema) {
    const auto* value = schema.if_contains("properties");
    return value && value->is_object() ? &value->get_object() : nullptr;
  };
  const json::object *ours = properties(a), *theirs = properties(b);
  json::object both;
  const auto add = [&](const json::object* from, const json::object* other, const json::value& otherwise) {
    if (!from) return;
    for (const auto& entry : *from) {
      if (both.contains(entry.key())) continue;
      const auto* second = other ? other->if_contains(entry.key()) : nullptr;
      const json::value& beside = second ? *second : otherwise;
      both[entry.key()] = is(beside, true)    ? entry.value()
                          : is(beside, false) ? beside
                                              : all_of(entry.value(), beside);
    }
  };
  add(ours, theirs, additional(b));
  add(theirs, ours, additional(a));
  if (ours || theirs) (*out)["properties"] = std::move(both);
  const auto *rest = a.if_contains("additionalProperties"), *other = b.if_contains("additionalProperties");
  if (rest && other) {
    (*out)["additionalProperties"] = is(*rest, false) || is(*other, false) ? json::value(false)
                                     : is(*rest, true)                     ? *other
                                     : is(*other, true)                    ? *rest
                                                                           : all_of(*rest, *other);
  } else if (rest || other) {
    (*out)["additionalProperties"] = rest ? *rest : *other;
  }
  json::array required;
  for (const json::object* schema : {&a, &b}) {
    const auto* names = schema->if_contains("required");
    if (!names) continue;
    if (!names->is_array()) {
      (*out)["required"] = *names;  // refused when it is compiled
      return;
    }
    for (const auto& name : names->get_array())
      if (std::ranges::find(required, name) == required.end()) required.push_back(name);
  }
  if (!required.empty()) (*out)["required"] = std::move(required);
}

// Whether it is plain that no value satisfies both.
bool SchemaMerger::disjoint(const Schema& a, const Schema& b, const std::string& path, int depth) const {
  return depth <= kMaxDepth &&
         are_disjoint(normalized(a, path, depth), normalized(b, path, depth), path, depth);
}

// Of schemas that are normalized.
bool SchemaMerger::are_disjoint(const Schema& first, const Schema& second, const std::string& path,
                                int depth) const {
  add_work(1, path);
  if (is(first, false) || is(second, false)) return true;
  if (!first.is_object() || !second.is_object()) return false;
  const json::object &one = first.get_object(), &two = second.get_object();
  for (const auto& [schema, other] : {std::pair(&one, &second), std::pair(&two, &first)}) {
    const auto* options = schema->if_contains("anyOf");
    if (!options || !options->is_array()) continue;
    return std::ranges::all_of(options->get_array(), [&, other = other](const auto& option) {
      return disjoint(option, *other, path, depth + 1);
    });
  }
  if (types_of_both(one, two).empty()) return true;
  const auto *values = enum_of(one), *others = enum_of(two);
  const auto misses = [](const json::array* of, const json::object& schema) {
    return of && std::ranges::none_of(*of, [&](const auto& v) { return has_type(v, types_of(schema)); });
  };
  if (misses(values, two) || misses(others, one)) return true;
  charge_pairs(values, others, path);
  if (values && others)
    return std::ranges::none_of(*values, [&](const auto& v) {
      return std::ranges::any_of(*others, [&](const auto& w) { return equal(v, w); });
    });
  const auto object_only = [](const json::object& schema) {
    return types_of(schema) == std::vector<std::string>{"object"};
  };
  const auto *left = one.if_contains("properties"), *right = two.if_contains("properties");
  if (!object_only(one) || !object_only(two) || !left || !right || !left->is_object() || !right->is_object())
    return false;
  const auto requires_name = [](const json::object& schema, json::string_view name) {
    const auto* names = schema.if_contains("required");
    return names && names->is_array() &&
           std::ranges::find(names->get_array(), json::value(name)) != names->get_array().end();
  };
  return std::ranges::any_of(left->get_object(), [&](const auto& entry) {
    const auto* other = right->get_object().if_contains(entry.key());
    return other && requires_name(one, entry.key()) && requires_name(two, entry.key()) &&
           disjoint(entry.value(), *other, path, depth + 1);
  });
}

}  // namespace lowkey::grammar
