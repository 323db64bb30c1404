#include "base/grammar/schema_compiler.h"

#include <algorithm>
#include <set>

#include "base/grammar/schema_types.h"

namespace lowkey::grammar {
namespace {

namespace json = boost::json;

constexpr int kMaxDepth = 200;
constexpr int64_t kMaxItems = 4096;
constexpr int kMaxIndent = 20;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw SchemaError{fmt::format("{}: {}", path, what)};
}

std::string text_of(json::string_view text) {
  return {text.data(), text.size()};
}

std::string below(const std::string& path, const std::string& name) {
  return path + "/" + name;
}

// Keywords by the types that they are about; those of none are about all, or about nothing.
const std::map<std::string, std::string, std::less<>> kKeywords = {
    {"type", ""},
    {"enum", ""},
    {"const", ""},
    {"anyOf", ""},
    {"oneOf", ""},
    {"allOf", ""},
    {"$ref", ""},
    {"title", ""},
    {"description", ""},
    {"default", ""},
    {"examples", ""},
    {"deprecated", ""},
    {"readOnly", ""},
    {"writeOnly", ""},
    {"$schema", ""},
    {"$id", ""},
    {"$comment", ""},
    {"discriminator", ""},
    {"$defs", ""},
    {"definitions", ""},
    {"properties", "object"},
    {"required", "object"},
    {"additionalProperties", "object"},
    {"propertyNames", "object"},
    {"items", "array"},
    {"prefixItems", "array"},
    {"minItems", "array"},
    {"maxItems", "array"},
    {"minLength", "string"},
    {"maxLength", "string"},
    {"pattern", "string"},
    {"format", "string"},
    {"minimum", "number"},
    {"maximum", "number"},
    {"exclusiveMinimum", "number"},
    {"exclusiveMaximum", "number"},
};

void check_keywords(const json::object& schema, const std::string& path) {
  for (const auto& entry : schema) {
    const std::string key = text_of(entry.key());
    if (!kKeywords.contains(key)) fail(path, fmt::format("'{}' is not supported", key));
  }
}

// Those that `type` names, or those that the other keywords are about, or all.
std::vector<std::string> wanted_types(const json::object& schema, const std::string& path) {
  static const std::set<std::string> kTypes = {"object",  "array",   "string", "number",
                                               "integer", "boolean", "null"};
  if (const auto* type = schema.if_contains("type")) {
    const auto types = types_of(schema);
    const size_t named = type->is_array() ? type->get_array().size() : 1;
    if (types.size() != named || types.empty() ||
        !std::ranges::all_of(types, [](const auto& name) { return kTypes.contains(name); }))
      fail(path,
           fmt::format("'type' must be object, array, string, number, integer, boolean or null; found {}",
                       json::serialize(*type)));
    return types;
  }
  std::set<std::string> meant;
  for (const auto& entry : schema)
    if (const auto& type = kKeywords.find(text_of(entry.key()))->second; !type.empty()) meant.insert(type);
  if (meant.empty()) return types_of(schema);
  return {meant.begin(), meant.end()};
}

}  // namespace

Result<Automaton> SchemaCompiler::compile() {
  return builder_.finish(rule_of_reference("#", "#"));
}

RuleId SchemaCompiler::rule_of_reference(const std::string& reference, const std::string& path) {
  const auto [found, is_new] = references_.try_emplace(reference, 0);
  if (!is_new) return found->second;
  const Schema& schema = merger_.resolve(reference, path);
  const AutomatonBuilder::Rule rule = builder_.add_rule();
  found->second = rule.id;
  value(schema, rule.start, rule.end, reference);
  return rule.id;
}

RuleId SchemaCompiler::rule_of(const Schema& schema, const std::string& path) {
  if (const auto* object = schema.if_object();
      object && object->size() == 1 && object->contains("$ref") && object->at("$ref").is_string())
    return rule_of_reference(text_of(object->at("$ref").get_string()), path);
  const AutomatonBuilder::Rule rule = builder_.add_rule();
  value(schema, rule.start, rule.end, path);
  return rule.id;
}

void SchemaCompiler::value(const Schema& schema, NodeId from, NodeId to, const std::string& path) {
  if (builder_.too_large()) fail(path, "the schema is too large");
  if (depth_ > kMaxDepth) fail(path, "the schema nests too deeply");
  if (schema.is_object()) {
    const json::object& object = schema.get_object();
    check_keywords(object, path);
    if (object.contains("$ref") && std::ranges::all_of(object, [](const auto& entry) {
          return entry.key() == "$ref" || entry.key() == "description" || entry.key() == "title" ||
                 entry.key() == "default" || entry.key() == "$defs";
        })) {
      if (!object.at("$ref").is_string()) fail(path, "'$ref' must be a string");
      return builder_.call(from, rule_of_reference(text_of(object.at("$ref").get_string()), path), to);
    }
  }
  ++depth_;
  const Schema normal = merger_.normalized(schema, path);
  if (normal.is_bool()) {
    if (normal.get_bool()) builder_.call(from, any_value(), to);
  } else if (const auto* options = normal.get_object().if_contains("anyOf")) {
    if (!options->is_array() || options->get_array().empty())
      fail(path, "'anyOf' must be an array of schemas");
    json::object rest = normal.get_object();
    rest.erase("anyOf");
    check_keywords(rest, path);
    const bool alone = std::ranges::all_of(rest, [](const auto& entry) {
      return kKeywords.find(text_of(entry.key()))->second.empty() && entry.key() != "type" &&
             entry.key() != "enum";
    });
    size_t number = 0;
    for (const Schema& option : options->get_array()) {
      const std::string where = below(path, fmt::format("anyOf/{}", number++));
      if (alone)
        value(option, from, to, where);
      else
        value(json::object{{"allOf", json::array{rest, option}}}, from, to, where);
    }
  } else {
    plain(normal.get_object(), from, to, path);
  }
  --depth_;
}

void SchemaCompiler::plain(const Object& schema, NodeId from, NodeId to, const std::string& path) {
  check_keywords(schema, path);
  if (const auto* values = schema.if_contains("enum")) {
    if (!values->is_array()) fail(path, "'enum' must be an array");
    for (const auto& value : values->get_array())
      if (admits(schema, value, path)) constant(value, from, to);
    return;
  }
  if (!schema.contains("type") && std::ranges::all_of(schema, [](const auto& entry) {
        return kKeywords.find(text_of(entry.key()))->second.empty();
      }))
    return builder_.call(from, any_value(), to);
  for (const std::string& name : wanted_types(schema, path)) type(name, schema, from, to, path);
}

void SchemaCompiler::type(const std::string& name, const Object& schema, NodeId from, NodeId to,
                          const std::string& path) {
  if (name == "object") return object(schema, from, to, path);
  if (name == "array") return array(schema, from, to, path);
  if (name == "string") return string(schema, from, to, path);
  if (is_number_type(name)) return number(schema, name == "integer", from, to, path);
  if (name == "null") return builder_.literal(from, "null", to);
  builder_.literal(from, "true", to);
  builder_.literal(from, "false", to);
}

// Names that are any strings, as a record's are, are no restriction.
void SchemaCompiler::check_names(const Schema& schema, const std::string& path) {
  const Schema normal = merger_.normalized(schema, below(path, "propertyNames"));
  const auto* object = normal.if_object();
  const bool any = object && std::ranges::all_of(*object, [](const auto& entry) {
                     if (entry.key() == "type") return entry.value() == "string";
                     const auto keyword = kKeywords.find(text_of(entry.key()));
                     return keyword != kKeywords.end() && keyword->second.empty() && entry.key() != "enum" &&
                            entry.key() != "anyOf";
                   });
  if (!any && normal != true)
    fail(path, "'propertyNames' other than {\"type\": \"string\"} is not supported");
}

// In the order of the schema: members that were written, or none yet, lead to the next one, or past it.
void SchemaCompiler::object(const Object& schema, NodeId from, NodeId to, const std::string& path) {
  const auto* properties = schema.if_contains("properties");
  if (properties && !properties->is_object()) fail(path, "'properties' must be an object");
  if (const auto* any = schema.if_contains("propertyNames")) check_names(*any, path);
  const auto* additional = schema.if_contains("additionalProperties");
  const Schema rest = additional ? *additional : Schema(properties == nullptr);
  json::object members = properties ? properties->get_object() : json::object();
  std::set<std::string> required;
  if (const auto* names = schema.if_contains("required")) {
    if (!names->is_array()) fail(path, "'required' must be an array of names");
    for (const auto& name : names->get_array()) {
      if (!name.is_string()) fail(path, "'required' must be an array of names");
      required.insert(text_of(name.get_string()));
      if (!members.contains(name.get_string()))
        members[name.get_string()] = additional ? *additional : Schema(true);
    }
  }
  NodeId none = spaced(builder_.literal(from, "{")), some = builder_.add_node();
  std::vector<std::string> names;
  for (const auto& member : members) {
    const std::string name = text_of(member.key());
    names.push_back(name);
    const NodeId begin = builder_.add_node(), next_some = builder_.add_node(),
                 next_none = builder_.add_node();
    builder_.empty(none, begin);
    builder_.empty(comma(some), begin);
    value(member.value(), spaced(builder_.literal(begin, json_string(name) + ":")), next_some,
          below(path, "properties/" + name));
    if (!required.contains(name)) {
      builder_.empty(none, next_none);
      builder_.empty(some, next_some);
    }
    none = next_none;
    some = next_some;
  }
  if (!(rest.is_bool() && !rest.get_bool())) some = further_members(rest, names, none, some, path);
  builder_.literal(none, "}", to);
  builder_.literal(spaced(some), "}", to);
}

// Any number of members whose names are none of these.
NodeId SchemaCompiler::further_members(const Schema& schema, const std::vector<std::string>& names,
                                       NodeId none, NodeId some, const std::string& path) {
  const NodeId begin = builder_.add_node(), quoted = builder_.add_node(), key = builder_.add_node(),
               loop = builder_.add_node();
  builder_.empty(none, begin);
  builder_.empty(some, loop);
  builder_.empty(comma(loop), begin);
  builder_.bytes(begin, '"', '"', quoted);
  write_text(TextPattern::all_but(names), {}, builder_, quoted, key);
  value(schema, spaced(builder_.literal(key, "\":")), loop, below(path, "additionalProperties"));
  return loop;
}

void SchemaCompiler::array(const Object& schema, NodeId from, NodeId to, const std::string& path) {
  const int least = count(schema, "minItems", kMaxItems, path).value_or(0);
  const auto limit = count(schema, "maxItems", kMaxItems, path);
  const auto *items = schema.if_contains("items"), *prefix = schema.if_contains("prefixItems");
  if (items && items->is_array())
    fail(path, "'items' must be a schema; use 'prefixItems' for an array of them");
  if (prefix && !prefix->is_array()) fail(path, "'prefixItems' must be an array of schemas");
  const int tuple = prefix ? static_cast<int>(prefix->get_array().size()) : 0;
  std::optional<RuleId> others;
  const auto item = [&](int index, NodeId here, NodeId next) {
    if (index < tuple)
      return value(prefix->get_array()[index], here, next, below(path, fmt::format("prefixItems/{}", index)));
    if (!others) others = rule_of(items ? *items : Schema(true), below(path, "items"));
    builder_.call(here, *others, next);
  };
  NodeId at = builder_.literal(from, "[");
  const int counted = limit.value_or(std::max(least, std::max(tuple, 1)));
  for (int i = 0; i < counted; ++i) {
    if (builder_.too_large()) fail(path, "the schema is too large");
    const NodeId next = builder_.add_node();
    const NodeId here = i == 0 ? spaced(at) : comma(at);
    if (i >= least) builder_.literal(i == 0 ? here : spaced(at), "]", to);
    item(i, here, next);
    at = next;
  }
  if (!limit) item(counted, comma(at), at);
  if (counted >= least) builder_.literal(spaced(at), "]", to);
}

RuleId SchemaCompiler::any_value() {
  if (any_value_) return *any_value_;
  const AutomatonBuilder::Rule rule = builder_.add_rule();
  any_value_ = rule.id;
  const json::object nothing;
  for (const std::string& name : types_of(nothing)) type(name, nothing, rule.start, rule.end, "#");
  return rule.id;
}

RuleId SchemaCompiler::white_space() {
  if (white_space_) return *white_space_;
  const AutomatonBuilder::Rule rule = builder_.add_rule();
  white_space_ = rule.id;
  builder_.bytes(rule.start, ' ', ' ', rule.end);
  NodeId at = builder_.literal(rule.start, "\n");
  for (int i = 0; i < kMaxIndent; ++i) {
    builder_.empty(at, rule.end);
    const NodeId next = builder_.add_node();
    builder_.bytes(at, ' ', ' ', next);
    builder_.bytes(at, '\t', '\t', next);
    at = next;
  }
  builder_.empty(at, rule.end);
  return rule.id;
}

NodeId SchemaCompiler::spaced(NodeId from) {
  const NodeId behind = builder_.add_node();
  builder_.empty(from, behind);
  builder_.call(from, white_space(), behind);
  return behind;
}

NodeId SchemaCompiler::comma(NodeId from) {
  return spaced(builder_.literal(from, ","));
}

}  // namespace lowkey::grammar
