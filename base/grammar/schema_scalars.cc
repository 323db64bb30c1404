// Strings, numbers and constants of a schema.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/grammar/number_pattern.h"
#include "base/grammar/schema_compiler.h"
#include "base/grammar/schema_types.h"

namespace lowkey::grammar {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxLength = 32768;
constexpr double kMaxBound = 1e18;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw SchemaError{fmt::format("{}: {}", path, what)};
}

std::string text_of(json::string_view text) {
  return {text.data(), text.size()};
}

std::string digits_of(const json::value& value) {
  if (value.is_int64()) {
    const int64_t number = value.get_int64();
    return std::to_string(number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number));
  }
  if (value.is_uint64()) return std::to_string(value.get_uint64());
  char text[400];
  const double number = std::abs(value.get_double());
  return {text, std::to_chars(text, text + sizeof text, number, std::chars_format::fixed).ptr};
}

std::optional<NumberBound> bound(const json::object& schema, const char* key, bool exclusive,
                                 const std::string& path) {
  const auto* value = schema.if_contains(key);
  if (!value) return std::nullopt;
  const bool whole = value->is_int64() || value->is_uint64();
  if (!value->is_number() || (!whole && !(std::abs(value->get_double()) <= kMaxBound)))
    fail(path,
         fmt::format("'{}' must be a number of at most 18 digits; found {}", key, json::serialize(*value)));
  return NumberBound{digits_of(*value), value->to_number<double>() < 0, exclusive};
}

// Of the two that a schema may have for one side the tighter one.
std::optional<NumberBound> side(const json::object& schema, const char* key, const char* exclusive_key,
                                bool low, const std::string& path) {
  const auto plain = bound(schema, key, false, path), exclusive = bound(schema, exclusive_key, true, path);
  if (!plain || !exclusive) return plain ? plain : exclusive;
  const double a = schema.at(key).to_number<double>(), b = schema.at(exclusive_key).to_number<double>();
  return (low ? b >= a : b <= a) ? exclusive : plain;
}

// Every day of February but the 29th, which most years lack.
const std::string kDate =
    R"([1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])))";
const std::string kTime = R"(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))";

// Of several ways to write the same, some. Empty: any text.
std::string format_pattern(const std::string& format, const std::string& path) {
  const std::string byte = R"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d))";
  const std::string label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
  if (format == "date") return "^" + kDate + "$";
  if (format == "time") return "^" + kTime + "$";
  if (format == "date-time") return "^" + kDate + "T" + kTime + "$";
  if (format == "duration") {  // RFC 3339, appendix A
    const std::string day = R"((\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D))",
                      time = R"((T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S)))";
    return R"(^P(\d+W|)" + day + time + "?|" + time + ")$";
  }
  if (format == "uuid") return "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";
  if (format == "ipv4") return "^(" + byte + R"(\.){3})" + byte + "$";
  if (format == "ipv6") return "^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$";
  if (format == "hostname") return "^" + label + R"((\.)" + label + ")*$";
  if (format == "email")
    return R"(^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9]+(-[A-Za-z0-9]+)*\.)+[A-Za-z]{2,24}$)";
  if (format == "uri") {  // RFC 3986, with an authority
    const std::string some = R"(([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*)";
    return R"(^[a-z][a-z0-9+.-]*://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:\d{1,5})?(/)" + some + R"()?(\?)" + some +
           ")?(#" + some + ")?$";
  }
  if (format == "binary" || format == "password" || format == "path") return "";
  fail(path, fmt::format("'format': '{}' is not supported (supported: date, time, date-time, duration, uuid, "
                         "ipv4, ipv6, hostname, email, uri, binary, password, path)",
                         format));
}

size_t characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

std::string number_text(const json::value& value) {
  if (!value.is_double()) return json::serialize(value);
  if (!std::isfinite(value.get_double())) throw SchemaError{"a constant is beyond the range of numbers"};
  char text[64];
  return {text, std::to_chars(text, text + sizeof text, value.get_double()).ptr};
}

}  // namespace

std::optional<int> SchemaCompiler::count(const Object& schema, const char* key, int64_t limit,
                                         const std::string& path) {
  const auto* value = schema.if_contains(key);
  if (!value) return std::nullopt;
  const double number = value->is_number() ? value->to_number<double>() : -1;
  if (!(number >= 0 && number <= static_cast<double>(limit)) || number != std::floor(number))
    fail(path,
         fmt::format("'{}' must be an integer from 0 to {}; found {}", key, limit, json::serialize(*value)));
  return static_cast<int>(number);
}

std::optional<TextPattern> SchemaCompiler::pattern_of(const Object& schema, const std::string& path) const {
  const auto *pattern = schema.if_contains("pattern"), *format = schema.if_contains("format");
  if (!pattern && !format) return std::nullopt;
  // `format` asserts nothing where the pattern does (draft 2020-12, validation, section 7.2.1).
  const char* name = pattern ? "pattern" : "format";
  const json::value& value = pattern ? *pattern : *format;
  if (!value.is_string()) fail(path, fmt::format("'{}' must be a string", name));
  const std::string text = text_of(value.get_string());
  const std::string expression = pattern ? text : format_pattern(text, path);
  if (!pattern && expression.empty()) return std::nullopt;
  auto compiled = TextPattern::regex(expression);
  if (!compiled.ok()) fail(path, fmt::format("'pattern': {}", compiled.error().message));
  return std::move(compiled).value();
}

void SchemaCompiler::string(const Object& schema, NodeId from, NodeId to, const std::string& path) {
  LengthLimits lengths{.least = count(schema, "minLength", kMaxLength, path).value_or(0),
                       .most = count(schema, "maxLength", kMaxLength, path).value_or(-1)};
  const auto pattern = pattern_of(schema, path);
  if (!pattern && lengths.least == 0 && lengths.most < 0) return builder_.call(from, any_string(), to);
  const NodeId begin = builder_.add_node(), end = builder_.add_node();
  builder_.bytes(from, '"', '"', begin);
  builder_.bytes(end, '"', '"', to);
  if (pattern) return write_text(*pattern, lengths, builder_, begin, end);
  NodeId at = begin;
  for (int i = 0; i < std::max(lengths.least, lengths.most) && !builder_.too_large(); ++i) {
    if (i >= lengths.least) builder_.empty(at, end);
    const NodeId next = builder_.add_node();
    builder_.call(at, any_character(), next);
    at = next;
  }
  if (lengths.most < 0) builder_.call(at, any_character(), at);
  if (lengths.most < 0 || lengths.most >= lengths.least) builder_.empty(at, end);
}

RuleId SchemaCompiler::any_character() {
  if (any_character_) return *any_character_;
  const AutomatonBuilder::Rule rule = builder_.add_rule();
  any_character_ = rule.id;
  character(rule.start, rule.end);
  return rule.id;
}

// As itself, or escaped; of pairs of surrogates the character itself will do.
void SchemaCompiler::character(NodeId from, NodeId to) {
  builder_.code_points(from, 0x20, '"' - 1, to);
  builder_.code_points(from, '"' + 1, '\\' - 1, to);
  builder_.code_points(from, '\\' + 1, TextPattern::kLastCharacter, to);
  const NodeId escape = builder_.add_node();
  builder_.bytes(from, '\\', '\\', escape);
  for (const char c : std::string_view("\"\\/bfnrt")) builder_.literal(escape, {&c, 1}, to);
  NodeId digits[5] = {};
  for (int i = 0; i < 4; ++i) digits[i] = builder_.add_node();
  digits[4] = to;
  builder_.bytes(escape, 'u', 'u', digits[0]);
  const auto hex = [&](NodeId here, NodeId next) {
    builder_.bytes(here, '0', '9', next);
    builder_.bytes(here, 'a', 'f', next);
    builder_.bytes(here, 'A', 'F', next);
  };
  for (int i = 1; i < 4; ++i) hex(digits[i], digits[i + 1]);
  constexpr std::pair<char, char> kNoSurrogate[] = {
      {'0', '9'}, {'a', 'c'}, {'A', 'C'}, {'e', 'f'}, {'E', 'F'}};
  for (const auto& [low, high] : kNoSurrogate)
    builder_.bytes(digits[0], static_cast<uint8_t>(low), static_cast<uint8_t>(high), digits[1]);
  const NodeId below_surrogates = builder_.add_node();
  builder_.bytes(digits[0], 'd', 'd', below_surrogates);
  builder_.bytes(digits[0], 'D', 'D', below_surrogates);
  builder_.bytes(below_surrogates, '0', '7', digits[2]);
}

RuleId SchemaCompiler::any_string() {
  if (any_string_) return *any_string_;
  const AutomatonBuilder::Rule rule = builder_.add_rule();
  any_string_ = rule.id;
  const NodeId inside = builder_.add_node();
  builder_.bytes(rule.start, '"', '"', inside);
  character(inside, inside);
  builder_.bytes(inside, '"', '"', rule.end);
  return rule.id;
}

void SchemaCompiler::number(const Object& schema, bool whole, NodeId from, NodeId to,
                            const std::string& path) {
  const NumberLimits limits{.low = side(schema, "minimum", "exclusiveMinimum", true, path),
                            .high = side(schema, "maximum", "exclusiveMaximum", false, path),
                            .whole = whole};
  write_number(limits, builder_, from, to);
}

// Whether the other keywords of a schema with an enum let this value pass.
bool SchemaCompiler::admits(const Object& schema, const json::value& value, const std::string& path) const {
  if (schema.contains("type") && !has_type(value, types_of(schema))) return false;
  const auto limit = [&](const char* key) {
    const auto* bound = schema.if_contains(key);
    return bound && bound->is_number() ? std::optional(bound->to_number<double>()) : std::nullopt;
  };
  if (value.is_number()) {
    const double number = value.to_number<double>();
    const auto low = limit("minimum"), high = limit("maximum"), above = limit("exclusiveMinimum"),
               below = limit("exclusiveMaximum");
    return !(low && number < *low) && !(high && number > *high) && !(above && number <= *above) &&
           !(below && number >= *below);
  }
  if (value.is_string()) {
    if (schema.contains("pattern") || schema.contains("format"))
      fail(path, "'enum' with 'pattern' or 'format' is not supported");
    const auto length = static_cast<double>(characters(text_of(value.get_string())));
    const auto least = limit("minLength"), most = limit("maxLength");
    return !(least && length < *least) && !(most && length > *most);
  }
  for (const char* key :
       {"properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems"})
    if ((value.is_object() || value.is_array()) && schema.contains(key))
      fail(path, fmt::format("'enum' of objects or arrays with '{}' is not supported", key));
  return true;
}

void SchemaCompiler::constant(const json::value& value, NodeId from, NodeId to) {
  if (value.is_string()) return builder_.literal(from, json_string(text_of(value.get_string())), to);
  if (!value.is_object() && !value.is_array()) return builder_.literal(from, number_text(value), to);
  const bool is_object = value.is_object();
  from = builder_.literal(from, is_object ? "{" : "[");
  bool first = true;
  const auto separate = [&] { from = std::exchange(first, false) ? spaced(from) : comma(from); };
  const auto add = [&](const json::value& item) {
    const NodeId behind = builder_.add_node();
    constant(item, from, behind);
    from = behind;
  };
  if (is_object) {
    for (const auto& entry : value.get_object()) {
      separate();
      from = spaced(builder_.literal(from, json_string(text_of(entry.key())) + ":"));
      add(entry.value());
    }
  } else {
    for (const auto& item : value.get_array()) {
      separate();
      add(item);
    }
  }
  builder_.literal(spaced(from), is_object ? "}" : "]", to);
}

}  // namespace lowkey::grammar
