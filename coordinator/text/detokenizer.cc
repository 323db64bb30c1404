#include "coordinator/text/detokenizer.h"

#include "coordinator/text/token_decoder.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {

StreamDetokenizer::StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens, TextStart start)
    : tokenizer_(&tokenizer),
      skip_special_tokens_(skip_special_tokens),
      is_first_(start == TextStart::kBeginning),
      strip_left_(is_first_ ? tokenizer.decoder().strip_count() : 0) {}

std::string StreamDetokenizer::push(int32_t id) {
  const TokenDecoder& decoder = tokenizer_->decoder();
  if (!decoder.knows(id) || (skip_special_tokens_ && tokenizer_->is_special(id))) return {};
  const TokenDecoder::Piece piece = decoder.piece(id, is_first_);
  is_first_ = false;
  std::string out;
  if (piece.is_byte || decoder.all_bytes()) {
    pending_ += piece.bytes;
    take_complete(out);
  } else {
    out = flush() + piece.bytes;  // a whole token ends any run of bytes
  }
  strip_start(out);
  return out;
}

void StreamDetokenizer::take_complete(std::string& out) {
  const bool per_byte = !tokenizer_->decoder().all_bytes();  // decode() writes one U+FFFD per bad byte token
  size_t pos = 0;
  while (pos < pending_.size()) {
    const Utf8Step step = next_utf8(pending_, pos);
    if (step.state == Utf8State::kIncomplete) break;
    if (step.state == Utf8State::kValid) {
      out.append(pending_, pos, step.bytes);
    } else {
      for (int i = 0; i < (per_byte ? step.bytes : 1); ++i) out += kReplacementCharacter;
    }
    pos += step.bytes;
  }
  pending_.erase(0, pos);
}

std::string StreamDetokenizer::flush() {
  std::string out;
  if (pending_.empty()) return out;
  const size_t count = tokenizer_->decoder().all_bytes() ? 1 : pending_.size();
  for (size_t i = 0; i < count; ++i) out += kReplacementCharacter;
  pending_.clear();
  is_first_ = false;
  return out;
}

void StreamDetokenizer::strip_start(std::string& out) {
  if (strip_left_ == 0 || out.empty()) return;
  const std::string_view content = tokenizer_->decoder().strip_text();
  size_t stripped = 0;
  while (strip_left_ > 0 && std::string_view(out).substr(stripped).starts_with(content)) {
    stripped += content.size();
    --strip_left_;
  }
  out.erase(0, stripped);
  if (!out.empty()) strip_left_ = 0;
}

}  // namespace lowkey::coordinator
