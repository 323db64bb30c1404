// The `pre_tokenizer` of tokenizer.json: cuts text into the pieces that BPE may not merge across.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "coordinator/text/json_node.h"

namespace lowkey::coordinator {

// The pieces of one stretch of text, in order; rewritten pieces live in buffers owned here.
class Pieces {
 public:
  struct Piece {
    std::string_view text;       // never empty
    bool at_text_start = false;  // begins where the whole input begins
  };

  // `text` must outlive the pieces.
  Pieces(std::string_view text, bool at_text_start);

  const std::vector<Piece>& all() const { return pieces_; }
  void replace(std::vector<Piece> pieces) { pieces_ = std::move(pieces); }
  std::string_view keep(std::string buffer) { return buffers_.emplace_back(std::move(buffer)); }

 private:
  std::vector<Piece> pieces_;
  std::deque<std::string> buffers_;  // addresses stay valid while it grows
};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  PreTokenizer() = default;  // leaves the text whole
  static Result<PreTokenizer> parse(const JsonNode& node);

  void apply(Pieces& pieces) const;

 private:
  using Step = std::function<void(Pieces&)>;
  Status add(const JsonNode& node, int depth);
  Status add_single(const JsonNode& node, const std::string& type);

  std::vector<Step> steps_;
};

}  // namespace lowkey::coordinator
