// The `model` of tokenizer.json: byte pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "coordinator/text/json_node.h"

namespace lowkey::coordinator {

struct SentencePieceModel;

// The largest token id a file may use: bounds the memory that a malformed file can ask for.
inline constexpr int64_t kMaxTokenId = (1 << 22) - 1;

// Immutable and thread-safe.
class BpeModel {
 public:
  static Result<BpeModel> parse(const JsonNode& node);
  // The same of SentencePiece: whatever two neighbours form a piece together may merge, the highest score
  // first, of equal ones the first. `file` stands in errors.
  static Result<BpeModel> from(const SentencePieceModel& model, const std::string& file);
  // Of tokens by id and merges ("left right", by rank), as GGUF files have them; a merge of tokens that are
  // not there never applies. `whole_words`: a piece that is a token is not merged together.
  static Result<BpeModel> from(std::vector<std::string> tokens, std::span<const std::string> merges,
                               bool whole_words, const std::string& file);
  BpeModel(BpeModel&&) = default;
  BpeModel& operator=(BpeModel&&) = default;

  // Appends the ids of one non-empty piece. Merges apply by rank, equal ranks from the left; O(n log n).
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  std::optional<int32_t> id_of(std::string_view token) const;
  // By id; empty strings are holes.
  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // indices, -1 at the ends
    bool alive;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    int32_t merged_id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  struct Merge {
    uint64_t pair;  // left id << 32 | right id; kNoPair: free slot
    uint32_t rank;
    int32_t merged_id;
  };

  BpeModel() = default;
  Status read_vocabulary(const JsonNode& node);
  void index_tokens();
  Status read_merges(const JsonNode& node);
  Status read_options(const JsonNode& node);
  void add_merge(uint64_t pair, uint32_t rank, int32_t merged_id);
  const Merge* find_merge(int32_t left, int32_t right) const;

  void add_characters(std::string_view piece, std::vector<Symbol>& symbols) const;
  bool add_bytes(std::string_view character, std::vector<Symbol>& symbols) const;
  void merge_all(std::vector<Symbol>& symbols) const;

  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, int32_t> ids_;  // keys point into tokens_
  std::vector<Merge> merges_;            // open addressing, size a power of two, at most half full
  std::array<int32_t, 256> byte_ids_{};  // of "<0x00>".."<0xFF>", -1 where absent
  std::optional<int32_t> unknown_id_;
  std::string word_suffix_, subword_prefix_;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

}  // namespace lowkey::coordinator
