#include "coordinator/text/sentencepiece.h"

#include <cstring>
#include <optional>

#include "coordinator/text/bpe.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

// One message in protobuf's wire format, field by field.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : rest_(bytes) {}

  // The next field; false at the end, or where the bytes are malformed.
  bool next() {
    if (rest_.empty()) return false;
    const auto tag = varint();
    if (!tag) return fail();
    number = static_cast<uint32_t>(*tag >> 3);
    const auto kind = *tag & 7;
    std::optional<uint64_t> size;
    if (kind == 1) size = 8;
    if (kind == 5) size = 4;
    if (kind == 0) {
      const auto read = varint();
      if (!read) return fail();
      value = *read;
      return true;
    }
    if (kind == 2) size = varint();
    if (!size || *size > rest_.size()) return fail();
    data = rest_.substr(0, *size);
    rest_.remove_prefix(*size);
    return true;
  }
  bool ok() const { return ok_; }

  uint32_t number = 0;
  uint64_t value = 0;     // of a number
  std::string_view data;  // of everything else

 private:
  bool fail() {
    ok_ = false;
    return false;
  }
  std::optional<uint64_t> varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  std::string_view rest_;
  bool ok_ = true;
};

Error bad(const std::string& file, const std::string& what) {
  return Error{Code::kBadInput, fmt::format("{}: {}", file, what), {}};
}

Result<SentencePieceModel::Piece> read_piece(std::string_view bytes, const std::string& file) {
  SentencePieceModel::Piece piece;
  Fields fields(bytes);
  while (fields.next()) {
    if (fields.number == 1) piece.text = fields.data;
    if (fields.number == 2 && fields.data.size() == sizeof piece.score)
      std::memcpy(&piece.score, fields.data.data(), sizeof piece.score);
    if (fields.number == 3) {
      if (fields.value < 1 || fields.value > 6)
        return bad(file, fmt::format("a piece of the unknown type {}", fields.value));
      piece.type = static_cast<SentencePieceModel::Type>(fields.value);
    }
  }
  if (!fields.ok() || piece.text.empty() || !is_valid_utf8(piece.text) || piece.score != piece.score)
    return bad(file, "a piece is malformed");
  return piece;
}

Status read_trainer(std::string_view bytes, const std::string& file, SentencePieceModel* model) {
  const char* const kKinds[] = {"?", "UNIGRAM", "BPE", "WORD", "CHAR"};
  uint64_t kind = 1;
  Fields fields(bytes);
  while (fields.next()) {
    if (fields.number == 3) kind = fields.value;
    if (fields.number == 35) model->byte_fallback = fields.value != 0;
    if (fields.number == 24 && fields.value != 0)
      return bad(file, "treat_whitespace_as_suffix is not supported");
  }
  if (!fields.ok()) return bad(file, "the trainer_spec is malformed");
  if (kind != 2)
    return bad(file,
               fmt::format("model_type {} is not supported (supported: BPE)", kKinds[kind < 5 ? kind : 0]));
  return {};
}

Status read_normalizer(std::string_view bytes, const std::string& file, SentencePieceModel* model) {
  std::string name;
  Fields fields(bytes);
  while (fields.next()) {
    if (fields.number == 1) name = fields.data;
    if (fields.number == 2 && !fields.data.empty())
      return bad(file, fmt::format("the normalization '{}' is not supported (supported: identity)", name));
    if (fields.number == 3) model->add_dummy_prefix = fields.value != 0;
    if (fields.number == 4) model->remove_extra_whitespaces = fields.value != 0;
    if (fields.number == 5 && fields.value == 0)
      return bad(file, "escape_whitespaces false is not supported");
  }
  return fields.ok() ? Status() : bad(file, "the normalizer_spec is malformed");
}

}  // namespace

Result<SentencePieceModel> SentencePieceModel::parse(std::string_view bytes, const std::string& file) {
  SentencePieceModel model;
  bool trained = false;
  Fields fields(bytes);
  while (fields.next()) {
    if (fields.number == 1) {
      LOWKEY_ASSIGN(piece, read_piece(fields.data, file));
      if (model.pieces.size() > static_cast<size_t>(kMaxTokenId))
        return bad(file, fmt::format("expected at most {} pieces", kMaxTokenId + 1));
      model.pieces.push_back(std::move(piece));
    }
    if (fields.number == 2) LOWKEY_TRY(read_trainer(fields.data, file, &model));
    if (fields.number == 3) LOWKEY_TRY(read_normalizer(fields.data, file, &model));
    trained |= fields.number == 2;
  }
  if (!fields.ok()) return bad(file, "expected a SentencePiece model, found malformed bytes");
  if (model.pieces.empty() || !trained) return bad(file, "expected pieces and a trainer_spec, found none");
  return model;
}

}  // namespace lowkey::coordinator
