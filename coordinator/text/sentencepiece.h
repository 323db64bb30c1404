// SentencePiece's own model file, tokenizer.model: Kudo, Richardson 2018. Of its kinds BPE, which the served
// families have.
//
// Read here and not by the library: Debian's exports an older protobuf of its own, which would take the place
// of the one that the control messages use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lowkey::coordinator {

struct SentencePieceModel {
  enum class Type : uint8_t {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };
  struct Piece {
    std::string text;
    float score = 0;  // the higher, the earlier it is merged
    Type type = Type::kNormal;
  };
  std::vector<Piece> pieces;  // by id
  bool byte_fallback = false;
  bool add_dummy_prefix = true;          // a space before the text
  bool remove_extra_whitespaces = true;  // at its ends, and of several in a row

  // Code::kBadInput, with `file`: malformed, or of a kind that is not supported, by name.
  static Result<SentencePieceModel> parse(std::string_view bytes, const std::string& file);
};

}  // namespace lowkey::coordinator
