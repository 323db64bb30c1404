#include "coordinator/text/token_decoder.h"

#include <boost/json/value.hpp>
#include <charconv>

#include "coordinator/text/byte_level.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

constexpr std::string_view kSupported = "Sequence, ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip";

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t pos = 0; (pos = text.find(from, pos)) != std::string::npos; pos += to.size()) {
    text.replace(pos, from.size(), to);
  }
}

// The value of "<0xE2>", or nothing.
std::optional<uint8_t> byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  uint8_t value = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  if (error != std::errc{} || end != token.data() + 5) return std::nullopt;
  return value;
}

}  // namespace

Result<TokenDecoder> TokenDecoder::build(const std::optional<JsonNode>& node,
                                         std::vector<std::string> tokens) {
  TokenDecoder decoder;
  if (node) {
    LOWKEY_TRY(decoder.add(*node, 0));
  } else {
    decoder.separator_ = " ";
  }
  decoder.bytes_ = std::move(tokens);
  decoder.known_.resize(decoder.bytes_.size());
  decoder.is_byte_.resize(decoder.bytes_.size());
  for (size_t id = 0; id < decoder.bytes_.size(); ++id) decoder.resolve(decoder.bytes_[id], id);
  return decoder;
}

Status TokenDecoder::add(const JsonNode& node, int depth) {
  LOWKEY_ASSIGN(type, node.string("type"));
  if (type == "Sequence") {
    if (depth >= kMaxSequenceDepth)
      return node.bad(fmt::format("sequences nest deeper than {}", kMaxSequenceDepth));
    LOWKEY_ASSIGN(parts, node.array("decoders"));
    for (const JsonNode& part : parts) LOWKEY_TRY(add(part, depth + 1));
    return {};
  }
  if (type == "Replace") return add_replace(node);
  if (type == "Strip") return add_strip(node);
  if (type == "Metaspace") return add_metaspace(node);
  if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else {
    return node.unsupported(type, kSupported);
  }
  return {};
}

Status TokenDecoder::add_replace(const JsonNode& node) {
  LOWKEY_ASSIGN(pattern, node.object("pattern"));
  if (fused_ || byte_fallback_ || byte_level_)
    return node.bad("Replace is supported only before other decoders");
  LOWKEY_ASSIGN(from, pattern.string("String"));
  LOWKEY_ASSIGN(to, node.string("content"));
  if (from.empty()) return pattern.bad("expected a pattern, found an empty string");
  replacements_.push_back({from, to});
  return {};
}

Status TokenDecoder::add_strip(const JsonNode& node) {
  LOWKEY_ASSIGN(content, node.string("content"));
  LOWKEY_ASSIGN(start, node.integer("start", 1024));
  LOWKEY_ASSIGN(stop, node.integer("stop", 1024));
  if (!fused_ || stop != 0 || count_characters(content) != 1 || strip_count_ > 0) {
    return node.bad("Strip is supported only once, after Fuse, of one character, at the start (stop: 0)");
  }
  strip_text_ = content;
  strip_count_ = static_cast<int>(start);
  return {};
}

Status TokenDecoder::add_metaspace(const JsonNode& node) {
  LOWKEY_ASSIGN(replacement, node.string_or("replacement", "\xE2\x96\x81"));
  LOWKEY_ASSIGN(add_prefix_space, node.bool_or("add_prefix_space", true));
  LOWKEY_ASSIGN(scheme, node.string_or("prepend_scheme", add_prefix_space ? "always" : "never"));
  if (count_characters(replacement) != 1) return node.bad("expected a replacement of one character");
  replacements_.push_back({replacement, " "});
  if (scheme != "never") first_removes_ = " ";
  return {};
}

void TokenDecoder::resolve(std::string& token, size_t id) {
  known_[id] = !token.empty();
  if (byte_level_) {
    if (auto bytes = alphabet_to_bytes(token)) token = std::move(*bytes);
    return;
  }
  for (const Replacement& replacement : replacements_) replace_all(token, replacement.from, replacement.to);
  const auto byte = byte_fallback_ ? byte_of(token) : std::nullopt;
  if (!byte) return;
  is_byte_[id] = true;
  token.assign(1, static_cast<char>(*byte));
}

TokenDecoder::Piece TokenDecoder::piece(int32_t id, bool is_first) const {
  if (!knows(id)) return {};
  Piece piece{bytes_[id], is_byte_[id]};
  if (is_first && !first_removes_.empty()) replace_all(piece.bytes, first_removes_, "");
  if (!is_first && !separator_.empty()) piece.bytes.insert(0, separator_);
  return piece;
}

std::string TokenDecoder::decode(std::span<const int32_t> ids) const {
  std::string text, run;
  const auto write_run = [&] {
    if (is_valid_utf8(run)) {
      text += run;
    } else {
      for (size_t i = 0; i < run.size(); ++i) text += kReplacementCharacter;
    }
    run.clear();
  };
  bool is_first = true;
  for (const int32_t id : ids) {
    if (!knows(id)) continue;
    const Piece next = piece(id, is_first);
    is_first = false;
    if (next.is_byte) {
      run += next.bytes;
      continue;
    }
    write_run();
    text += next.bytes;
  }
  write_run();
  if (byte_level_) text = replace_invalid_utf8(text);
  size_t stripped = 0;
  for (int i = 0; i < strip_count_ && std::string_view(text).substr(stripped).starts_with(strip_text_); ++i) {
    stripped += strip_text_.size();
  }
  return text.substr(stripped);
}

}  // namespace lowkey::coordinator
