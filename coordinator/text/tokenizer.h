// Text to token ids and back, as a model folder's tokenizer.json says, or its tokenizer.model, or the
// metadata of a GGUF file: BPE, byte-level or SentencePiece-style.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lowkey {
struct GgufHeader;
}

namespace lowkey::coordinator {

class BpeModel;
class JsonNode;
class TokenDecoder;
struct SentencePieceModel;

// Immutable after loading and thread-safe (an internal cache locks for itself). Gives the ids and texts of
// the `tokenizers` package. A file that is malformed, or asks for a component that is not supported, is
// Code::kBadInput with one line naming file, field, expected and found.
class Tokenizer {
 public:
  // Of a model folder tokenizer.json, or where there is none tokenizer.model, and, where present,
  // tokenizer_config.json. Of a GGUF file its metadata; of one without a tokenizer, or with one that is not
  // supported, the folder's tokenizer.json where there is one.
  static Result<std::unique_ptr<Tokenizer>> load(const std::filesystem::path& model);
  // The same from memory; an empty `config_json` counts as absent. `name` stands before the file names in
  // errors.
  static Result<std::unique_ptr<Tokenizer>> from_json(std::string_view tokenizer_json,
                                                      std::string_view config_json, const std::string& name);
  // Of SentencePiece's model file. Special tokens beyond its own, and whether a text begins with BOS, are in
  // tokenizer_config.json; where that is silent a text does, as transformers has it for these models.
  static Result<std::unique_ptr<Tokenizer>> from_sentencepiece(std::string_view model,
                                                               std::string_view config_json,
                                                               const std::string& name);
  // Of tokenizer.ggml.* of a GGUF file, whose name stands in errors; coordinator/text/gguf_tokenizer.cc says
  // which ones. BOS and EOS are put around a text as the file says, or llama.cpp where it is silent.
  static Result<std::unique_ptr<Tokenizer>> from_gguf(const GgufHeader& header, const std::string& name);
  ~Tokenizer();

  // Ill-formed UTF-8 is read as U+FFFD. Special tokens written out in `text` become their ids;
  // `add_special_tokens` adds those the model wants around a text (BOS).
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;

  // Well-formed UTF-8 always. Ids outside the vocabulary add nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // The bytes that the token adds in the middle of a text; maybe a part of a character. Empty for unknown
  // ids.
  std::string token_bytes(int32_t id) const;
  std::optional<int32_t> id_of(std::string_view token) const;  // as spelt in the file

  // One more than the largest id in the file; the model's embedding may have more rows.
  int32_t vocab_size() const;
  bool is_special(int32_t id) const;
  std::optional<int32_t> bos() const;
  std::optional<int32_t> eos() const;
  // Their texts, for chat templates; empty where the model has none.
  const std::string& bos_text() const;
  const std::string& eos_text() const;

  const TokenDecoder& decoder() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  static Result<std::unique_ptr<Tokenizer>> assemble(BpeModel model, const JsonNode& root,
                                                     std::string_view config_json, const std::string& prefix);
  static Result<std::unique_ptr<Tokenizer>> from_pieces(const SentencePieceModel& source,
                                                        const boost::json::value& beside,
                                                        std::string_view config_json, const std::string& file,
                                                        const std::string& prefix);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lowkey::coordinator
