#include "coordinator/text/normalizer.h"

#include <boost/json/value.hpp>

#include "coordinator/text/regex.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

constexpr std::string_view kSupported = "Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip";

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  size_t pos = 0;
  for (size_t hit; (hit = text.find(from, pos)) != std::string_view::npos; pos = hit + from.size()) {
    out.append(text.substr(pos, hit - pos)).append(to);
  }
  return std::move(out.append(text.substr(pos)));
}

std::string replace_all(std::string_view text, const Regex& regex, std::string_view to) {
  std::string out;
  size_t pos = 0;
  Regex::Finder finder(regex);
  finder.start(text);
  while (const auto match = finder.next()) {
    out.append(text.substr(pos, match->first - pos)).append(to);
    pos = match->second;
  }
  return std::move(out.append(text.substr(pos)));
}

std::optional<UnicodeForm> unicode_form(const std::string& type) {
  if (type == "NFC") return UnicodeForm::kNfc;
  if (type == "NFD") return UnicodeForm::kNfd;
  if (type == "NFKC") return UnicodeForm::kNfkc;
  if (type == "NFKD") return UnicodeForm::kNfkd;
  return std::nullopt;
}

}  // namespace

Result<Regex> parse_pattern(const JsonNode& node) {
  if (node.child("String")) {
    LOWKEY_ASSIGN(literal, node.string("String"));
    if (literal.empty()) return node.bad("expected a pattern, found an empty string");
    return Regex::compile(Regex::escape(literal), node.where());
  }
  if (!node.child("Regex")) return node.wrong(R"({"String": ...} or {"Regex": ...})");
  LOWKEY_ASSIGN(regex, node.string("Regex"));
  return Regex::compile(regex, node.where());
}

Result<Normalizer> Normalizer::parse(const JsonNode& node) {
  Normalizer normalizer;
  LOWKEY_TRY(normalizer.add(node, 0));
  return normalizer;
}

Status Normalizer::add(const JsonNode& node, int depth) {
  LOWKEY_ASSIGN(type, node.string("type"));
  if (type == "Sequence") {
    if (depth >= kMaxSequenceDepth)
      return node.bad(fmt::format("sequences nest deeper than {}", kMaxSequenceDepth));
    LOWKEY_ASSIGN(parts, node.array("normalizers"));
    for (const JsonNode& part : parts) LOWKEY_TRY(add(part, depth + 1));
    return {};
  }
  LOWKEY_ASSIGN(step, make_step(node, type));
  steps_.push_back(std::move(step));
  return {};
}

Result<Normalizer::Step> Normalizer::make_step(const JsonNode& node, const std::string& type) const {
  if (type == "Prepend") {
    LOWKEY_ASSIGN(prefix, node.string("prepend"));
    return Step([prefix](std::string& text) {
      if (!text.empty()) text.insert(0, prefix);
    });
  }
  if (type == "Replace") {
    LOWKEY_ASSIGN(pattern, node.object("pattern"));
    LOWKEY_ASSIGN(content, node.string("content"));
    LOWKEY_ASSIGN(regex, parse_pattern(pattern));
    if (!pattern.child("String")) {
      return Step([regex, content](std::string& text) { text = replace_all(text, regex, content); });
    }
    LOWKEY_ASSIGN(from, pattern.string("String"));
    return Step([from, content](std::string& text) { text = replace_all(text, from, content); });
  }
  if (const auto form = unicode_form(type)) {
    return Step([form](std::string& text) { text = normalize_unicode(text, *form); });
  }
  if (type == "Lowercase") {
    return Step([](std::string& text) { text = to_lower(text); });
  }
  if (type == "Strip") {
    LOWKEY_ASSIGN(left, node.bool_or("strip_left", true));
    LOWKEY_ASSIGN(right, node.bool_or("strip_right", true));
    return Step([left, right](std::string& text) { text = std::string(trim_whitespace(text, left, right)); });
  }
  return node.unsupported(type, kSupported);
}

void Normalizer::apply(std::string& text) const {
  for (const Step& step : steps_) step(text);
}

}  // namespace lowkey::coordinator
