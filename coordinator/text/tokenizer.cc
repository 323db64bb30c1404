#include "coordinator/text/tokenizer.h"

#include <boost/json/monotonic_resource.hpp>
#include <boost/json/value.hpp>
#include <optional>

#include "base/gguf/gguf_file.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/file.h"
#include "coordinator/text/json_node.h"
#include "coordinator/text/json_parse.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/post_processor.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/sentencepiece.h"
#include "coordinator/text/token_decoder.h"
#include "coordinator/text/utf8.h"
#include "coordinator/text/word_cache.h"

namespace lowkey::coordinator {

struct Tokenizer::Impl {
  explicit Impl(BpeModel bpe) : model(std::move(bpe)) {}

  BpeModel model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  AddedTokenMatcher raw_added;         // looked for in the text as it is
  AddedTokenMatcher normalized_added;  // looked for behind the normalizer
  SpecialFrame frame;
  TokenDecoder decoder;
  std::unordered_map<std::string, int32_t> added_ids;
  std::vector<bool> special;  // by id
  std::string bos_text, eos_text;
  mutable WordCache cache;

  std::optional<int32_t> id_of(std::string_view token) const;
  Status add_tokens(const std::vector<AddedToken>& tokens, const std::string& where,
                    std::vector<std::string>& texts);
  Status read_config(const JsonNode& config);
  void encode_segment(std::string_view text, bool at_text_start, std::vector<int32_t>& ids) const;
  void encode_pieces(std::string_view text, bool at_text_start, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
};

namespace {

// tokenizer_config.json writes special tokens as strings or as {"content": ...}.
Result<std::string> special_text(const JsonNode& config, std::string_view key) {
  const auto node = config.child(key);
  if (!node) return std::string();
  if (node->value().is_object()) return node->string("content");
  return config.string(key);
}

}  // namespace

std::optional<int32_t> Tokenizer::Impl::id_of(std::string_view token) const {
  const auto found = added_ids.find(std::string(token));
  if (found != added_ids.end()) return found->second;
  return model.id_of(token);
}

Status Tokenizer::Impl::add_tokens(const std::vector<AddedToken>& tokens, const std::string& where,
                                   std::vector<std::string>& texts) {
  for (const AddedToken& token : tokens) {
    const auto id = static_cast<size_t>(token.id);
    if (token.content.empty()) continue;
    const auto known = model.id_of(token.content);
    const bool taken = id < model.tokens().size() && !model.tokens()[id].empty();
    if ((known && *known != token.id) || (taken && model.tokens()[id] != token.content)) {
      return Error{Code::kBadInput,
                   fmt::format("{}: added token '{}' has id {}, but the vocabulary says otherwise", where,
                               token.content, token.id),
                   {}};
    }
    if (id >= texts.size()) texts.resize(id + 1);
    texts[id] = token.content;
    added_ids.emplace(token.content, token.id);
    if (special.size() < texts.size()) special.resize(texts.size());
    special[id] = special[id] || token.special;
    if (token.normalized) {
      std::string pattern = token.content;
      normalizer.apply(pattern);
      normalized_added.add(token, pattern);
      texts[id] = pattern;  // decodes to what it was found as
    } else {
      raw_added.add(token, token.content);
    }
  }
  special.resize(texts.size());
  return {};
}

Status Tokenizer::Impl::read_config(const JsonNode& config) {
  LOWKEY_ASSIGN(bos, special_text(config, "bos_token"));
  LOWKEY_ASSIGN(eos, special_text(config, "eos_token"));
  bos_text = bos;
  eos_text = eos;
  return {};
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_json(std::string_view tokenizer_json,
                                                        std::string_view config_json,
                                                        const std::string& name) {
  const std::string prefix = name.empty() ? "" : name + "/";
  const std::string file = prefix + "tokenizer.json";
  boost::json::monotonic_resource memory;
  LOWKEY_ASSIGN(document, parse_json(tokenizer_json, file, &memory));
  const JsonNode root(document, file);
  LOWKEY_ASSIGN(model_node, root.object("model"));
  LOWKEY_ASSIGN(model, BpeModel::parse(model_node));
  return assemble(std::move(model), root, config_json, prefix);
}

// What a tokenizer.json has beside its model.
Result<std::unique_ptr<Tokenizer>> Tokenizer::assemble(BpeModel model, const JsonNode& root,
                                                       std::string_view config_json,
                                                       const std::string& prefix) {
  auto impl = std::make_unique<Impl>(std::move(model));
  if (const auto node = root.child("normalizer")) {
    LOWKEY_ASSIGN(normalizer, Normalizer::parse(*node));
    impl->normalizer = std::move(normalizer);
  }
  if (const auto node = root.child("pre_tokenizer")) {
    LOWKEY_ASSIGN(pre_tokenizer, PreTokenizer::parse(*node));
    impl->pre_tokenizer = std::move(pre_tokenizer);
  }
  if (const auto node = root.child("post_processor")) {
    LOWKEY_ASSIGN(frame, parse_post_processor(*node));
    impl->frame = std::move(frame);
  }
  LOWKEY_ASSIGN(added, parse_added_tokens(root));
  std::vector<std::string> texts = impl->model.tokens();
  LOWKEY_TRY(impl->add_tokens(added, root.where(), texts));
  LOWKEY_ASSIGN(decoder, TokenDecoder::build(root.child("decoder"), std::move(texts)));
  impl->decoder = std::move(decoder);
  if (!config_json.empty()) {
    const std::string config_file = prefix + "tokenizer_config.json";
    LOWKEY_ASSIGN(config, parse_json(config_json, config_file, {}));
    LOWKEY_TRY(impl->read_config(JsonNode(config, config_file)));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

// The same for SentencePiece's pieces. `file` is where they come from.
Result<std::unique_ptr<Tokenizer>> Tokenizer::from_pieces(const SentencePieceModel& source,
                                                          const boost::json::value& beside,
                                                          std::string_view config_json,
                                                          const std::string& file,
                                                          const std::string& prefix) {
  LOWKEY_ASSIGN(model, BpeModel::from(source, file));
  LOWKEY_ASSIGN(tokenizer, assemble(std::move(model), JsonNode(beside, file), config_json, prefix));
  // Found in the text as it is merged, spaces replaced.
  for (size_t id = 0; id < source.pieces.size(); ++id) {
    const auto& piece = source.pieces[id];
    if (piece.type != SentencePieceModel::Type::kUserDefined) continue;
    tokenizer->impl_->normalized_added.add({.id = static_cast<int32_t>(id), .content = piece.text},
                                           piece.text);
  }
  return tokenizer;
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::load(const std::filesystem::path& model) {
  if (is_gguf(model)) {
    LOWKEY_ASSIGN(file, GgufFile::open(model));
    auto own = from_gguf(file.header, model.string());
    std::error_code ec;
    const std::filesystem::path folder = model.parent_path();
    if (own.ok() || !std::filesystem::exists(folder / "tokenizer.json", ec)) return own;
    return load(folder);
  }
  LOWKEY_ASSIGN(tokenizer_json, read_text_file(model / "tokenizer.json"));
  LOWKEY_ASSIGN(config_json, read_text_file(model / "tokenizer_config.json"));
  if (tokenizer_json) return from_json(*tokenizer_json, config_json.value_or(""), model.string());
  LOWKEY_ASSIGN(sentencepiece, read_text_file(model / "tokenizer.model"));
  if (sentencepiece) return from_sentencepiece(*sentencepiece, config_json.value_or(""), model.string());
  return Error{
      Code::kBadInput,
      fmt::format("{}: expected a file tokenizer.json or tokenizer.model, found none", model.string()),
      {}};
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

void Tokenizer::Impl::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.size() > WordCache::kMaxWordBytes) return model.encode(word, ids);
  if (cache.lookup(word, ids)) return;
  const size_t before = ids.size();
  model.encode(word, ids);
  cache.insert(word, std::vector<int32_t>(ids.begin() + static_cast<ptrdiff_t>(before), ids.end()));
}

void Tokenizer::Impl::encode_pieces(std::string_view text, bool at_text_start,
                                    std::vector<int32_t>& ids) const {
  Pieces pieces(text, at_text_start);
  pre_tokenizer.apply(pieces);
  for (const Pieces::Piece& piece : pieces.all()) encode_word(piece.text, ids);
}

void Tokenizer::Impl::encode_segment(std::string_view text, bool at_text_start,
                                     std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!normalizer.empty()) {
    normalized = text;
    normalizer.apply(normalized);
    text = normalized;
  }
  for (const auto& segment : normalized_added.split(text)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      encode_pieces(text.substr(segment.begin, segment.end - segment.begin),
                    at_text_start && segment.begin == 0, ids);
    }
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = replace_invalid_utf8(text);
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = impl_->frame.before;
  for (const auto& segment : impl_->raw_added.split(text)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      impl_->encode_segment(text.substr(segment.begin, segment.end - segment.begin), segment.begin == 0, ids);
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), impl_->frame.behind.begin(), impl_->frame.behind.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  if (!skip_special_tokens) return impl_->decoder.decode(ids);
  std::vector<int32_t> kept;
  kept.reserve(ids.size());
  for (const int32_t id : ids) {
    if (!is_special(id)) kept.push_back(id);
  }
  return impl_->decoder.decode(kept);
}

std::string Tokenizer::token_bytes(int32_t id) const {
  return impl_->decoder.piece(id).bytes;
}
std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  return impl_->id_of(token);
}
int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->special.size());
}
bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->special[id];
}
std::optional<int32_t> Tokenizer::bos() const {
  return impl_->id_of(impl_->bos_text);
}
std::optional<int32_t> Tokenizer::eos() const {
  return impl_->id_of(impl_->eos_text);
}
const std::string& Tokenizer::bos_text() const {
  return impl_->bos_text;
}
const std::string& Tokenizer::eos_text() const {
  return impl_->eos_text;
}
const TokenDecoder& Tokenizer::decoder() const {
  return impl_->decoder;
}

}  // namespace lowkey::coordinator
