#include "coordinator/text/pre_tokenizer.h"

#include <boost/json/value.hpp>

#include "coordinator/text/byte_level.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/regex.h"
#include "coordinator/text/splitter.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

constexpr std::string_view kSupported =
    "Sequence, ByteLevel, Split, Digits, Metaspace, Whitespace, WhitespaceSplit, Punctuation";

// The pattern of GPT-2's tokenizer, which `use_regex` asks for.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

using Step = std::function<void(Pieces&)>;

// Rewrites each piece's text; `rewrite` returns nothing where the piece stays as it is.
template <class Rewrite>
void rewrite_each(Pieces& pieces, Rewrite&& rewrite) {
  std::vector<Pieces::Piece> out = pieces.all();
  for (Pieces::Piece& piece : out) {
    std::optional<std::string> text = rewrite(piece);
    if (text) piece.text = pieces.keep(std::move(*text));
  }
  pieces.replace(std::move(out));
}

Result<std::vector<Step>> byte_level(const JsonNode& node) {
  LOWKEY_ASSIGN(add_prefix_space, node.bool_or("add_prefix_space", true));
  LOWKEY_ASSIGN(use_regex, node.bool_or("use_regex", true));
  std::vector<Step> steps;
  if (add_prefix_space) {
    steps.push_back([](Pieces& pieces) {
      rewrite_each(pieces, [](const Pieces::Piece& piece) -> std::optional<std::string> {
        if (piece.text.starts_with(' ')) return std::nullopt;
        return " " + std::string(piece.text);
      });
    });
  }
  if (use_regex) {
    LOWKEY_ASSIGN(regex, Regex::compile(kGpt2Pattern, node.where()));
    steps.push_back([splitter = Splitter(regex)](Pieces& pieces) { splitter.apply(pieces); });
  }
  steps.push_back([](Pieces& pieces) {
    rewrite_each(pieces, [](const Pieces::Piece& piece) -> std::optional<std::string> {
      return bytes_to_alphabet(piece.text);
    });
  });
  return steps;
}

enum class PrependScheme { kAlways, kFirst, kNever };

Result<PrependScheme> prepend_scheme(const JsonNode& node) {
  // Older files have only the flag.
  LOWKEY_ASSIGN(add_prefix_space, node.bool_or("add_prefix_space", true));
  LOWKEY_ASSIGN(scheme, node.string_or("prepend_scheme", add_prefix_space ? "always" : "never"));
  if (scheme == "always") return PrependScheme::kAlways;
  if (scheme == "first") return PrependScheme::kFirst;
  if (scheme == "never") return PrependScheme::kNever;
  return node.bad(fmt::format("expected prepend_scheme always, first or never, found '{}'", scheme));
}

std::string replace_spaces(std::string_view text, std::string_view replacement) {
  std::string out;
  for (const char c : text) c == ' ' ? out += replacement : out += c;
  return out;
}

Result<std::vector<Step>> metaspace(const JsonNode& node) {
  LOWKEY_ASSIGN(replacement, node.string_or("replacement", "\xE2\x96\x81"));
  LOWKEY_ASSIGN(scheme, prepend_scheme(node));
  LOWKEY_ASSIGN(split, node.bool_or("split", true));
  if (count_characters(replacement) != 1) return node.bad("expected a replacement of one character");
  std::vector<Step> steps;
  steps.push_back([replacement, scheme](Pieces& pieces) {
    rewrite_each(pieces, [&](const Pieces::Piece& piece) -> std::optional<std::string> {
      std::string text = replace_spaces(piece.text, replacement);
      const bool wanted =
          scheme == PrependScheme::kAlways || (scheme == PrependScheme::kFirst && piece.at_text_start);
      if (wanted && !text.starts_with(replacement)) text.insert(0, replacement);
      return text;
    });
  });
  if (split) {
    LOWKEY_ASSIGN(regex, Regex::compile(Regex::escape(replacement), node.where()));
    steps.push_back([splitter = Splitter(regex, SplitBehavior::kMergedWithNext)](Pieces& pieces) {
      splitter.apply(pieces);
    });
  }
  return steps;
}

Result<Splitter> splitter_of(const JsonNode& node, const std::string& type) {
  if (type == "Digits") {
    LOWKEY_ASSIGN(individual, node.bool_or("individual_digits", false));
    return Splitter(is_numeric, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  if (type == "WhitespaceSplit") return Splitter(is_whitespace, SplitBehavior::kRemoved);
  if (type == "Whitespace") {
    LOWKEY_ASSIGN(regex, Regex::compile(R"(\w+|[^\w\s]+)", node.where()));
    return Splitter(regex, SplitBehavior::kRemoved, /*invert=*/true);
  }
  if (type == "Punctuation") {
    LOWKEY_ASSIGN(name, node.string_or("behavior", "Isolated"));
    LOWKEY_ASSIGN(behavior, parse_split_behavior(name, node));
    return Splitter(is_punctuation, behavior);
  }
  if (type != "Split") return node.unsupported(type, kSupported);
  LOWKEY_ASSIGN(pattern, node.object("pattern"));
  LOWKEY_ASSIGN(regex, parse_pattern(pattern));
  LOWKEY_ASSIGN(name, node.string("behavior"));
  LOWKEY_ASSIGN(behavior, parse_split_behavior(name, node));
  LOWKEY_ASSIGN(invert, node.bool_or("invert", false));
  return Splitter(regex, behavior, invert);
}

}  // namespace

Pieces::Pieces(std::string_view text, bool at_text_start) {
  if (!text.empty()) pieces_.push_back({text, at_text_start});
}

Result<PreTokenizer> PreTokenizer::parse(const JsonNode& node) {
  PreTokenizer pre_tokenizer;
  LOWKEY_TRY(pre_tokenizer.add(node, 0));
  return pre_tokenizer;
}

Status PreTokenizer::add(const JsonNode& node, int depth) {
  LOWKEY_ASSIGN(type, node.string("type"));
  if (type != "Sequence") return add_single(node, type);
  if (depth >= kMaxSequenceDepth)
    return node.bad(fmt::format("sequences nest deeper than {}", kMaxSequenceDepth));
  LOWKEY_ASSIGN(parts, node.array("pretokenizers"));
  for (const JsonNode& part : parts) LOWKEY_TRY(add(part, depth + 1));
  return {};
}

Status PreTokenizer::add_single(const JsonNode& node, const std::string& type) {
  if (type == "ByteLevel" || type == "Metaspace") {
    LOWKEY_ASSIGN(steps, type == "ByteLevel" ? byte_level(node) : metaspace(node));
    for (Step& step : steps) steps_.push_back(std::move(step));
    return {};
  }
  LOWKEY_ASSIGN(splitter, splitter_of(node, type));
  steps_.push_back([splitter](Pieces& pieces) { splitter.apply(pieces); });
  return {};
}

void PreTokenizer::apply(Pieces& pieces) const {
  for (const Step& step : steps_) step(pieces);
}

}  // namespace lowkey::coordinator
