// The tokenizer in a GGUF file's metadata, tokenizer.ggml.* (ggml-org/ggml, docs/gguf.md): `llama` is
// SentencePiece's BPE by scores, `gpt2` is byte-level BPE by merges, cut into words as `pre` names it.
#include <algorithm>
#include <array>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "base/gguf/gguf_header.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/json_node.h"
#include "coordinator/text/sentencepiece.h"
#include "coordinator/text/token_decoder.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tokenizer_parts.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;
using Type = SentencePieceModel::Type;  // GGUF has the same numbers

const std::string kPrefix = "tokenizer.ggml.";

Error bad(const std::string& file, std::string_view key, std::string_view expected, std::string_view found) {
  return Error{Code::kBadInput,
               fmt::format("{}: '{}{}': expected {}, found {}", file, kPrefix, key, expected, found),
               {}};
}

// ---- how byte-level vocabularies are cut into words -------------------------------------------------------

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Words as Llama 3 and Qwen 2 have them; they differ in how many digits stay together.
constexpr std::string_view kContractions = R"((?i:'s|'t|'re|'ve|'m|'ll|'d))";
constexpr std::string_view kRest = R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Words by letter case, as tekken (Mistral Nemo) and o200k (GPT-4o, Phi-4-mini) have them.
constexpr std::string_view kCapitalized =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)";
constexpr std::string_view kCapitals =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)";
constexpr std::string_view kCasedRest = R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string words_with_digits(std::string_view digits) {
  return fmt::format(R"({}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}|{})", kContractions, digits, kRest);
}
std::string cased_words(std::string_view ending, std::string_view digits) {
  return fmt::format("{}{}|{}{}|{}|{}", kCapitalized, ending, kCapitals, ending, digits, kCasedRest);
}

// Each expression in turn isolates its matches in the pieces that the ones before it left.
struct Words {
  std::vector<std::string> expressions;
  bool composed = false;     // characters in normal form C first
  bool whole_words = false;  // a word that is a token is not merged together
  bool begins_with_bos = false;
};

constexpr std::array<std::string_view, 13> kKnown = {
    "default", "gpt-2",    "phi-2", "smollm", "starcoder", "refact", "llama-bpe",
    "llama3",  "llama-v3", "dbrx",  "qwen2",  "gpt-4o",    "tekken"};

std::optional<Words> words_of(std::string_view pre) {
  const auto one_of = [&](std::initializer_list<std::string_view> names) {
    return std::ranges::find(names, pre) != names.end();
  };
  if (one_of({"gpt-2", "phi-2"})) return Words{{std::string(kGpt2)}};
  if (one_of({"smollm", "starcoder", "refact"})) return Words{{R"(\p{N})", std::string(kGpt2)}};
  if (one_of({"llama-bpe", "llama3", "llama-v3"}))
    return Words{
        .expressions = {words_with_digits(R"(\p{N}{1,3})")}, .whole_words = true, .begins_with_bos = true};
  if (pre == "dbrx") return Words{{words_with_digits(R"(\p{N}{1,3})")}};
  if (pre == "qwen2") return Words{.expressions = {words_with_digits(R"(\p{N})")}, .composed = true};
  if (pre == "gpt-4o") return Words{{cased_words(fmt::format("{}?", kContractions), R"(\p{N}{1,3})")}};
  if (pre == "tekken")
    return Words{.expressions = {cased_words("", R"(\p{N})")}, .whole_words = true, .begins_with_bos = true};
  if (one_of({"", "default"}))  // of files that are older than the key
    return Words{{R"([\p{P}\$\+<=>\^~\|]+)", std::string(kGpt2), R"(\p{N}+)", R"([0-9][0-9][0-9])"}};
  return std::nullopt;
}

json::value pre_tokenizer_of(const Words& words) {
  json::array steps;
  for (const std::string& expression : words.expressions)
    steps.push_back(json::object{{"type", "Split"},
                                 {"pattern", json::object{{"Regex", expression}}},
                                 {"behavior", "Isolated"},
                                 {"invert", false}});
  steps.push_back(json::object{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  return json::object{{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

// ---- the arrays of the metadata ---------------------------------------------------------------------------

// Checked: as many types (and scores, where the model has some) as tokens, which are UTF-8.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<Type> types;
  std::vector<double> scores;  // may be empty

  static Result<Vocabulary> read(const GgufHeader& header, const std::string& file);
  // The id under `key`, else `otherwise` where there is such a token.
  Result<std::optional<int32_t>> id(const GgufHeader& header, const std::string& file, std::string_view key,
                                    std::optional<int32_t> otherwise) const;
  bool special(size_t id) const { return types[id] == Type::kControl || types[id] == Type::kUnknown; }
};

Result<Vocabulary> Vocabulary::read(const GgufHeader& header, const std::string& file) {
  Vocabulary vocabulary;
  const auto* tokens = header.texts(kPrefix + "tokens");
  const size_t count = tokens == nullptr ? 0 : tokens->size();
  if (count == 0 || count > size_t{kMaxTokenId})
    return bad(file, "tokens", fmt::format("1 to {} texts", kMaxTokenId), fmt::format("{}", count));
  vocabulary.tokens = *tokens;
  for (size_t id = 0; id < count; ++id)
    if (!is_valid_utf8(vocabulary.tokens[id]))
      return bad(file, "tokens", "UTF-8", fmt::format("other bytes in token {}", id));
  vocabulary.types.assign(count, Type::kNormal);
  if (const auto* types = header.integers(kPrefix + "token_type")) {
    if (types->size() != count)
      return bad(file, "token_type", fmt::format("{} numbers", count), fmt::format("{}", types->size()));
    for (size_t id = 0; id < count; ++id) {
      const int64_t type = (*types)[id];
      if (type < 1 || type > 6)
        return bad(file, "token_type", "numbers from 1 to 6", fmt::format("{}", type));
      vocabulary.types[id] = static_cast<Type>(type);
    }
  }
  if (const auto* scores = header.numbers(kPrefix + "scores")) {
    if (scores->size() != count)
      return bad(file, "scores", fmt::format("{} numbers", count), fmt::format("{}", scores->size()));
    vocabulary.scores = *scores;
  }
  return vocabulary;
}

Result<std::optional<int32_t>> Vocabulary::id(const GgufHeader& header, const std::string& file,
                                              std::string_view key, std::optional<int32_t> otherwise) const {
  const auto given = header.integer(kPrefix + std::string(key));
  const int64_t id = given.value_or(otherwise.value_or(-1));
  if (id >= 0 && id < std::ssize(tokens)) return std::optional(static_cast<int32_t>(id));
  if (given)
    return bad(file, key, fmt::format("a token id from 0 to {}", tokens.size() - 1), fmt::format("{}", id));
  return std::optional<int32_t>();
}

// BOS and EOS: their texts, as tokenizer_config.json would have them, and whether they are put around a text.
struct Ends {
  std::string config;
  TextEnds around;

  static Result<Ends> read(const GgufHeader& header, const std::string& file, const Vocabulary& vocabulary,
                           const TextEnds& otherwise, bool begins_with_bos) {
    LOWKEY_ASSIGN(bos, vocabulary.id(header, file, "bos_token_id", otherwise.bos));
    LOWKEY_ASSIGN(eos, vocabulary.id(header, file, "eos_token_id", otherwise.eos));
    json::object config;
    if (bos) config["bos_token"] = vocabulary.tokens[*bos];
    if (eos) config["eos_token"] = vocabulary.tokens[*eos];
    Ends ends{.config = json::serialize(config)};
    if (header.flag(kPrefix + "add_bos_token").value_or(begins_with_bos)) ends.around.bos = bos;
    if (header.flag(kPrefix + "add_eos_token").value_or(false)) ends.around.eos = eos;
    return ends;
  }
};

// Phi-3's special tokens swallow the space behind them, but for three (tokenizer.json of the Phi-3 release);
// the metadata cannot say it.
bool swallows_space(const GgufHeader& header, std::string_view token) {
  const std::string* architecture = header.text("general.architecture");
  return architecture != nullptr && *architecture == "phi3" && token != "<unk>" && token != "<s>" &&
         token != "<|endoftext|>";
}

// The pieces of `llama`. Spaces of user-defined ones may be spelt as such: SentencePiece finds them replaced.
Result<SentencePieceModel> pieces_of(const GgufHeader& header, const std::string& file,
                                     const Vocabulary& vocabulary) {
  if (vocabulary.scores.empty())
    return bad(file, "scores", fmt::format("{} numbers", vocabulary.tokens.size()), "none");
  SentencePieceModel model{
      .byte_fallback = std::ranges::find(vocabulary.types, Type::kByte) != vocabulary.types.end(),
      .add_dummy_prefix = header.flag(kPrefix + "add_space_prefix").value_or(true),
      .remove_extra_whitespaces = header.flag(kPrefix + "remove_extra_whitespaces").value_or(false)};
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    SentencePieceModel::Piece piece{.text = vocabulary.tokens[id],
                                    .score = static_cast<float>(vocabulary.scores[id]),
                                    .type = vocabulary.types[id]};
    if (piece.score != piece.score)
      return bad(file, "scores", "numbers", fmt::format("none for token {}", id));
    if (piece.text.empty()) piece.type = Type::kUnused;
    if (piece.type == Type::kUserDefined)
      for (size_t at; (at = piece.text.find(' ')) != std::string::npos;) piece.text.replace(at, 1, "\u2581");
    model.pieces.push_back(std::move(piece));
  }
  return model;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_gguf(const GgufHeader& header, const std::string& name) {
  const std::string* kind = header.text(kPrefix + "model");
  if (kind == nullptr || (*kind != "llama" && *kind != "gpt2"))
    return bad(name, "model", "one of [llama, gpt2]", kind == nullptr ? "none" : "'" + *kind + "'");
  LOWKEY_ASSIGN(vocabulary, Vocabulary::read(header, name));
  json::array added;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string& token = vocabulary.tokens[id];
    const bool found_raw = vocabulary.types[id] == Type::kUserDefined && *kind == "gpt2";
    if (token.empty() || !(vocabulary.special(id) || found_raw)) continue;
    added.push_back(added_token(static_cast<int64_t>(id), token, vocabulary.special(id),
                                *kind == "llama" && swallows_space(header, token)));
  }
  if (*kind == "llama") {
    LOWKEY_ASSIGN(ends, Ends::read(header, name, vocabulary, {.bos = 1, .eos = 2}, true));
    LOWKEY_ASSIGN(source, pieces_of(header, name, vocabulary));
    const json::value beside = sentencepiece_parts(source, std::move(added), ends.around);
    return from_pieces(source, beside, ends.config, name, name + "/");
  }
  const std::string* pre = header.text(kPrefix + "pre");
  const auto words = words_of(pre == nullptr ? "" : *pre);
  if (!words) return bad(name, "pre", fmt::format("one of [{}]", fmt::join(kKnown, ", ")), "'" + *pre + "'");
  const auto* merges = header.texts(kPrefix + "merges");
  if (merges == nullptr) return bad(name, "merges", "an array of texts", "none");
  LOWKEY_ASSIGN(ends, Ends::read(header, name, vocabulary, {}, words->begins_with_bos));
  LOWKEY_ASSIGN(model, BpeModel::from(std::move(vocabulary.tokens), *merges, words->whole_words, name));
  const json::value beside = {
      {"normalizer", words->composed ? json::value(json::object{{"type", "NFC"}}) : json::value()},
      {"pre_tokenizer", pre_tokenizer_of(*words)},
      {"added_tokens", std::move(added)},
      {"decoder", {{"type", "ByteLevel"}}},
      {"post_processor", post_processor_of(ends.around)}};
  return assemble(std::move(model), JsonNode(beside, name), ends.config, name + "/");
}

}  // namespace lowkey::coordinator
