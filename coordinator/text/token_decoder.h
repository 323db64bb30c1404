// The `decoder` of tokenizer.json, resolved per token id when the file is loaded.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "coordinator/text/json_node.h"

namespace lowkey::coordinator {

// Immutable and thread-safe.
class TokenDecoder {
 public:
  struct Piece {
    std::string bytes;
    bool is_byte = false;  // a raw byte of a character that other tokens complete ("<0xE2>")
  };

  // `node`: the decoder, if the file has one. `tokens`: by id, empty strings are holes.
  static Result<TokenDecoder> build(const std::optional<JsonNode>& node, std::vector<std::string> tokens);

  bool knows(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < bytes_.size() && known_[id]; }
  // What the token adds to the text; `is_first`: the text begins with it. Unknown ids add nothing.
  Piece piece(int32_t id, bool is_first = false) const;
  // Spaces to take away where the text begins (SentencePiece puts one before the first word).
  std::string_view strip_text() const { return strip_text_; }
  int strip_count() const { return strip_count_; }
  // Byte-level: any token may end inside a character.
  bool all_bytes() const { return byte_level_; }

  // The whole text at once, as the `tokenizers` package decodes it.
  std::string decode(std::span<const int32_t> ids) const;

 private:
  struct Replacement {
    std::string from, to;
  };

  Status add(const JsonNode& node, int depth);
  Status add_replace(const JsonNode& node);
  Status add_strip(const JsonNode& node);
  Status add_metaspace(const JsonNode& node);
  void resolve(std::string& token, size_t id);

  std::vector<std::string> bytes_;  // by id
  std::vector<bool> known_;         // by id
  std::vector<bool> is_byte_;       // by id
  std::vector<Replacement> replacements_;
  std::string separator_;      // " " where the file has no decoder
  std::string first_removes_;  // Metaspace: what the first token loses all of
  std::string strip_text_;
  int strip_count_ = 0;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fused_ = false;
};

}  // namespace lowkey::coordinator
