#include "coordinator/text/jinja_strings.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator::jinja {
namespace {

constexpr std::array<std::string_view, 18> kMethods = {
    "strip",      "lstrip",   "rstrip", "split", "rsplit",       "splitlines",
    "startswith", "endswith", "upper",  "lower", "title",        "capitalize",
    "replace",    "find",     "count",  "join",  "removeprefix", "removesuffix"};

const std::string& string_argument(const Arguments& arguments, size_t index, std::string_view name) {
  const Value* value = arguments.find(index, name);
  if (!value || !value->string()) {
    throw TemplateError{fmt::format("expected a string as argument {} ({}), found {}", index + 1, name,
                                    value ? value->type_name() : "none")};
  }
  return *value->string();
}

size_t last_character(std::string_view text) {
  size_t start = text.size() - 1;
  while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
  return start;
}

Value split_at_whitespace(std::string_view text, int64_t limit) {
  List parts;
  text = trim_whitespace(text);
  while (!text.empty()) {
    size_t end = 0;
    while (end < text.size()) {
      const Utf8Step step = next_utf8(text, end);
      if (is_whitespace(step.code)) break;
      end += step.bytes;
    }
    if (limit == 0) end = text.size();
    if (limit > 0) --limit;
    parts.emplace_back(std::string(text.substr(0, end)));
    text = trim_whitespace(text.substr(end), true, false);
  }
  return Value(std::move(parts));
}

Value split(const std::string& text, const Arguments& arguments, bool from_right) {
  const Value* separator_value = arguments.find(0, "sep");
  const Value* limit_value = arguments.find(1, "maxsplit");
  int64_t limit = limit_value ? limit_value->as_int() : -1;
  if (!separator_value || separator_value->is_none()) {
    if (from_right && limit >= 0) throw TemplateError{"rsplit at whitespace with a limit is not supported"};
    return split_at_whitespace(text, limit);
  }
  const std::string& separator = string_argument(arguments, 0, "sep");
  if (separator.empty()) throw TemplateError{"split: empty separator"};
  List parts;
  std::string_view rest = text;
  while (limit-- != 0) {
    const size_t at = from_right ? rest.rfind(separator) : rest.find(separator);
    if (at == std::string_view::npos) break;
    parts.emplace_back(std::string(from_right ? rest.substr(at + separator.size()) : rest.substr(0, at)));
    rest = from_right ? rest.substr(0, at) : rest.substr(at + separator.size());
  }
  parts.emplace_back(std::string(rest));
  if (from_right) std::reverse(parts.begin(), parts.end());
  return Value(std::move(parts));
}

Value split_lines(const std::string& text) {
  List lines;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find_first_of("\r\n", begin), text.size());
    lines.emplace_back(text.substr(begin, end - begin));
    begin = end + (text.compare(end, 2, "\r\n") == 0 ? 2 : 1);
  }
  return Value(std::move(lines));
}

// The argument may be a string or several.
Value matches_affix(const std::string& text, const Arguments& arguments, bool at_start) {
  const Value* given = arguments.find(0, at_start ? "prefix" : "suffix");
  if (!given || (!given->string() && !given->list()))
    throw TemplateError{"startswith and endswith expect strings"};
  const List affixes = given->list() ? *given->list() : List{*given};
  return Value(std::any_of(affixes.begin(), affixes.end(), [&](const Value& affix) {
    return affix.string() && (at_start ? text.starts_with(*affix.string()) : text.ends_with(*affix.string()));
  }));
}

Value find(const std::string& text, const Arguments& arguments) {
  const size_t at = text.find(string_argument(arguments, 0, "sub"));
  if (at == std::string::npos) return Value(int64_t{-1});
  return Value(static_cast<int64_t>(count_characters(std::string_view(text).substr(0, at))));
}

Value count(const std::string& text, const Arguments& arguments) {
  const std::string& part = string_argument(arguments, 0, "sub");
  if (part.empty()) return Value(static_cast<int64_t>(count_characters(text)) + 1);
  int64_t hits = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++hits;
  return Value(hits);
}

Value join(const std::string& separator, const Arguments& arguments, Budget& budget) {
  const Value* list = arguments.find(0, "iterable");
  if (!list) throw TemplateError{"join expects a sequence"};
  std::string out;
  bool first = true;
  for (const Value& item : list->items()) {
    if (!item.string()) throw TemplateError{fmt::format("join expects strings, found {}", item.type_name())};
    if (!first) out += separator;
    first = false;
    budget.bytes(separator.size() + item.string()->size());
    out += *item.string();
  }
  return Value(std::move(out));
}

Value remove_affix(const std::string& text, const Arguments& arguments, bool prefix) {
  const std::string& affix = string_argument(arguments, 0, prefix ? "prefix" : "suffix");
  if (prefix && text.starts_with(affix)) return Value(text.substr(affix.size()));
  if (!prefix && text.ends_with(affix)) return Value(text.substr(0, text.size() - affix.size()));
  return Value(text);
}

}  // namespace

bool has_string_method(std::string_view name) {
  return std::find(kMethods.begin(), kMethods.end(), name) != kMethods.end();
}

std::string strip_text(std::string_view text, const Value* chars, bool left, bool right) {
  if (!chars || chars->is_none()) return std::string(trim_whitespace(text, left, right));
  if (!chars->string())
    throw TemplateError{fmt::format("strip: expected a string, found {}", chars->type_name())};
  const auto listed = [&](std::string_view character) {
    return chars->string()->find(character) != std::string::npos;
  };
  while (left && !text.empty()) {
    const uint8_t bytes = next_utf8(text, 0).bytes;
    if (!listed(text.substr(0, bytes))) break;
    text.remove_prefix(bytes);
  }
  while (right && !text.empty()) {
    const size_t start = last_character(text);
    if (!listed(text.substr(start))) break;
    text.remove_suffix(text.size() - start);
  }
  return std::string(text);
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  const uint8_t bytes = next_utf8(text, 0).bytes;
  return to_upper(text.substr(0, bytes)) + to_lower(text.substr(bytes));
}

std::string title_case(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = next_utf8(text, pos);
    const auto character = text.substr(pos, step.bytes);
    out += in_word ? to_lower(character) : to_upper(character);
    in_word = is_word(step.code) && !is_numeric(step.code) && step.code != '_';
    pos += step.bytes;
  }
  return out;
}

std::string indent_text(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Value* width = arguments.find(0, "width");
  const Value* first = arguments.find(1, "first");
  const Value* blank = arguments.find(2, "blank");
  std::string margin(4, ' ');
  if (width != nullptr && width->string() != nullptr) {
    margin = *width->string();
  } else if (width != nullptr) {
    const int64_t spaces = std::max<int64_t>(width->as_int(), 0);
    budget.bytes(static_cast<size_t>(spaces));
    margin.assign(static_cast<size_t>(spaces), ' ');
  }
  std::string out = first != nullptr && first->truth() ? margin : "";
  const Value lines = split_lines(text + '\n');
  for (size_t i = 0; i < lines.list()->size(); ++i) {
    const std::string& line = *(*lines.list())[i].string();
    const bool indented = i > 0 && (!line.empty() || (blank != nullptr && blank->truth()));
    budget.bytes(line.size() + margin.size() + 1);
    if (i > 0) out += '\n';
    if (indented) out += margin;
    out += line;
  }
  return out;
}

std::string replace_text(const std::string& text, const Arguments& arguments, Budget& budget) {
  const std::string& from = string_argument(arguments, 0, "old");
  const std::string& to = string_argument(arguments, 1, "new");
  const Value* limit = arguments.find(2, "count");
  int64_t left = limit && !limit->is_none() ? limit->as_int() : -1;
  if (from.empty()) throw TemplateError{"replace: the text to replace is empty"};
  std::string out;
  size_t pos = 0;
  while (left-- != 0) {
    const size_t at = text.find(from, pos);
    if (at == std::string::npos) break;
    budget.bytes(at - pos + to.size());
    out.append(text, pos, at - pos).append(to);
    pos = at + from.size();
  }
  return std::move(out.append(text, pos));
}

Value call_string_method(std::string_view name, const std::string& self, const Arguments& arguments,
                         Budget& budget) {
  budget.bytes(self.size());
  if (name == "strip") return strip_text(self, arguments.find(0, "chars"), true, true);
  if (name == "lstrip") return strip_text(self, arguments.find(0, "chars"), true, false);
  if (name == "rstrip") return strip_text(self, arguments.find(0, "chars"), false, true);
  if (name == "split") return split(self, arguments, false);
  if (name == "rsplit") return split(self, arguments, true);
  if (name == "splitlines") return split_lines(self);
  if (name == "startswith") return matches_affix(self, arguments, true);
  if (name == "endswith") return matches_affix(self, arguments, false);
  if (name == "upper") return to_upper(self);
  if (name == "lower") return to_lower(self);
  if (name == "title") return title_case(self);
  if (name == "capitalize") return capitalize(self);
  if (name == "replace") return replace_text(self, arguments, budget);
  if (name == "find") return find(self, arguments);
  if (name == "count") return count(self, arguments);
  if (name == "join") return join(self, arguments, budget);
  return remove_affix(self, arguments, name == "removeprefix");
}

}  // namespace lowkey::coordinator::jinja
