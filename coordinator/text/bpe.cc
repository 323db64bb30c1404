#include "coordinator/text/bpe.h"

#include <algorithm>
#include <bit>
#include <boost/json/value.hpp>
#include <queue>

#include "coordinator/text/sentencepiece.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

constexpr uint64_t kNoPair = ~uint64_t{0};

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

size_t slot_of(uint64_t pair, size_t slots) {
  return (pair * 0x9E3779B97F4A7C15ull >> 20) &
         (slots - 1);  // Fibonacci hashing: the high bits are mixed best
}

std::string_view view_of(const boost::json::string& text) {
  return {text.data(), text.size()};
}

using MergeParts = std::pair<std::string_view, std::string_view>;

std::optional<MergeParts> split_merge(std::string_view text) {
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
    return std::nullopt;
  return MergeParts(text.substr(0, space), text.substr(space + 1));
}

// A merge is "left right", or [left, right] in newer files.
std::optional<MergeParts> split_merge(const boost::json::value& value) {
  if (const auto* text = value.if_string()) return split_merge(view_of(*text));
  const auto* pair = value.if_array();
  if (!pair || pair->size() != 2 || !(*pair)[0].is_string() || !(*pair)[1].is_string()) return std::nullopt;
  return std::pair(view_of((*pair)[0].get_string()), view_of((*pair)[1].get_string()));
}

}  // namespace

Result<BpeModel> BpeModel::parse(const JsonNode& node) {
  BpeModel model;
  LOWKEY_ASSIGN(type, node.string_or("type", "BPE"));
  if (type != "BPE") return node.unsupported(type, "BPE");
  LOWKEY_TRY(model.read_vocabulary(node));
  LOWKEY_TRY(model.read_options(node));
  LOWKEY_TRY(model.read_merges(node));
  return model;
}

Status BpeModel::read_vocabulary(const JsonNode& node) {
  LOWKEY_ASSIGN(vocabulary, node.object("vocab"));
  const auto& entries = vocabulary.value().get_object();
  int64_t largest = -1;
  for (const auto& entry : entries) {
    const auto* id = entry.value().if_int64();
    if (!id || *id < 0 || *id > kMaxTokenId) {
      return vocabulary.bad(
          fmt::format("token '{}': expected an id in 0..{}", std::string_view(entry.key()), kMaxTokenId));
    }
    largest = std::max(largest, *id);
  }
  if (largest < 0) return vocabulary.bad("expected at least one token, found none");
  tokens_.resize(static_cast<size_t>(largest) + 1);
  for (const auto& entry : entries) {
    std::string& token = tokens_[static_cast<size_t>(entry.value().get_int64())];
    if (!token.empty()) {
      return vocabulary.bad(fmt::format("tokens '{}' and '{}' share the id {}", token,
                                        std::string_view(entry.key()), entry.value().get_int64()));
    }
    token = std::string(entry.key());
  }
  index_tokens();
  return {};
}

void BpeModel::index_tokens() {
  ids_.reserve(tokens_.size());
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (!tokens_[id].empty()) ids_.emplace(tokens_[id], static_cast<int32_t>(id));
  }
  for (int byte = 0; byte < 256; ++byte)
    byte_ids_[byte] = id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1);
}

Result<BpeModel> BpeModel::from(const SentencePieceModel& source, const std::string& file) {
  using Type = SentencePieceModel::Type;
  BpeModel model;
  std::vector<int32_t> by_score;
  std::unordered_map<std::string_view, int32_t> mergeable;
  for (size_t id = 0; id < source.pieces.size(); ++id) {
    const SentencePieceModel::Piece& piece = source.pieces[id];
    const auto token = static_cast<int32_t>(id);
    model.tokens_.push_back(piece.text);
    if (piece.type == Type::kUnknown) model.unknown_id_ = token;
    if (piece.type != Type::kNormal && piece.type != Type::kUserDefined) continue;
    if (!mergeable.emplace(piece.text, token).second)
      return Error{Code::kBadInput, fmt::format("{}: the piece '{}' is there twice", file, piece.text), {}};
    if (piece.type == Type::kNormal) by_score.push_back(token);
  }
  model.index_tokens();
  model.byte_fallback_ = source.byte_fallback;
  model.fuse_unknown_ = true;
  std::ranges::stable_sort(by_score, std::greater{}, [&](int32_t id) { return source.pieces[id].score; });
  struct Split {
    uint64_t pair;
    uint32_t rank;
    int32_t merged;
  };
  std::vector<Split> splits;
  for (size_t rank = 0; rank < by_score.size(); ++rank) {
    const std::string_view text = source.pieces[by_score[rank]].text;
    for (size_t cut = 0; (cut += next_utf8(text, cut).bytes) < text.size();) {
      const auto left = mergeable.find(text.substr(0, cut)), right = mergeable.find(text.substr(cut));
      if (left != mergeable.end() && right != mergeable.end())
        splits.push_back({pair_of(left->second, right->second), static_cast<uint32_t>(rank), by_score[rank]});
    }
  }
  model.merges_.assign(std::bit_ceil(splits.size() * 2 + 2), Merge{kNoPair, 0, 0});
  for (const Split& split : splits) model.add_merge(split.pair, split.rank, split.merged);
  return model;
}

Result<BpeModel> BpeModel::from(std::vector<std::string> tokens, std::span<const std::string> merges,
                                bool whole_words, const std::string& file) {
  BpeModel model;
  model.tokens_ = std::move(tokens);
  model.index_tokens();
  for (size_t id = 0; id < model.tokens_.size(); ++id) {
    const std::string& token = model.tokens_[id];
    if (!token.empty() && model.id_of(token) != static_cast<int32_t>(id))
      return Error{Code::kBadInput, fmt::format("{}: the token '{}' is there twice", file, token), {}};
  }
  model.ignore_merges_ = whole_words;
  model.merges_.assign(std::bit_ceil(merges.size() * 2 + 2), Merge{kNoPair, 0, 0});
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto parts = split_merge(std::string_view(merges[i]));
    if (!parts)
      return Error{Code::kBadInput,
                   fmt::format("{}: merge {}: expected \"left right\", found '{}'", file, i, merges[i]),
                   {}};
    const auto left = model.id_of(parts->first), right = model.id_of(parts->second);
    const auto merged = model.id_of(std::string(parts->first).append(parts->second));
    if (left && right && merged) model.add_merge(pair_of(*left, *right), static_cast<uint32_t>(i), *merged);
  }
  return model;
}

Status BpeModel::read_options(const JsonNode& node) {
  if (const auto dropout = node.child("dropout");
      dropout && dropout->value() != 0.0 && dropout->value() != 0) {
    return dropout->wrong("null or 0 (random merges are for training)");
  }
  LOWKEY_ASSIGN(unknown, node.string_or("unk_token", ""));
  if (!unknown.empty()) {
    unknown_id_ = id_of(unknown);
    if (!unknown_id_) return node.bad(fmt::format("unk_token '{}' is not in the vocabulary", unknown));
  }
  LOWKEY_ASSIGN(word_suffix, node.string_or("end_of_word_suffix", ""));
  LOWKEY_ASSIGN(subword_prefix, node.string_or("continuing_subword_prefix", ""));
  LOWKEY_ASSIGN(fuse_unknown, node.bool_or("fuse_unk", false));
  LOWKEY_ASSIGN(byte_fallback, node.bool_or("byte_fallback", false));
  LOWKEY_ASSIGN(ignore_merges, node.bool_or("ignore_merges", false));
  word_suffix_ = word_suffix;
  subword_prefix_ = subword_prefix;
  fuse_unknown_ = fuse_unknown;
  byte_fallback_ = byte_fallback;
  ignore_merges_ = ignore_merges;
  return {};
}

Status BpeModel::read_merges(const JsonNode& node) {
  const auto merges = node.child("merges");
  const auto* entries = merges ? merges->value().if_array() : nullptr;
  if (!entries) return node.bad("expected an array 'merges'");
  merges_.assign(std::bit_ceil(entries->size() * 2 + 2), Merge{kNoPair, 0, 0});
  std::string joined;
  for (size_t i = 0; i < entries->size(); ++i) {
    const auto parts = split_merge((*entries)[i]);
    if (!parts) return merges->bad(fmt::format(R"(entry {}: expected "left right" or ["left", "right"])", i));
    const auto left = id_of(parts->first), right = id_of(parts->second);
    joined.assign(parts->first);
    const bool has_prefix = !subword_prefix_.empty() && parts->second.starts_with(subword_prefix_);
    joined.append(parts->second.substr(has_prefix ? subword_prefix_.size() : 0));
    const auto merged = id_of(joined);
    if (!left || !right || !merged) {
      const std::string missing(!left ? parts->first : !right ? parts->second : std::string_view(joined));
      return merges->bad(fmt::format("entry {}: token '{}' is not in the vocabulary", i, missing));
    }
    add_merge(pair_of(*left, *right), static_cast<uint32_t>(i), *merged);
  }
  return {};
}

void BpeModel::add_merge(uint64_t pair, uint32_t rank, int32_t merged_id) {
  size_t slot = slot_of(pair, merges_.size());
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair)
    slot = (slot + 1) & (merges_.size() - 1);
  merges_[slot] = {pair, rank, merged_id};
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  size_t slot = slot_of(pair, merges_.size());
  while (merges_[slot].pair != kNoPair) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    slot = (slot + 1) & (merges_.size() - 1);
  }
  return nullptr;
}

std::optional<int32_t> BpeModel::id_of(std::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

bool BpeModel::add_bytes(std::string_view character, std::vector<Symbol>& symbols) const {
  for (const char c : character) {
    if (byte_ids_[static_cast<uint8_t>(c)] < 0) return false;
  }
  for (const char c : character) symbols.push_back({byte_ids_[static_cast<uint8_t>(c)], 0, 0, true});
  return true;
}

void BpeModel::add_characters(std::string_view piece, std::vector<Symbol>& symbols) const {
  bool pending_unknown = false;  // written when the next known character comes, so that a run can be fused
  const auto write_unknown = [&] {
    if (pending_unknown) symbols.push_back({*unknown_id_, 0, 0, true});
    pending_unknown = false;
  };
  std::string decorated;
  for (size_t pos = 0; pos < piece.size();) {
    const uint8_t bytes = next_utf8(piece, pos).bytes;
    std::string_view character = piece.substr(pos, bytes);
    const bool is_first = pos == 0, is_last = pos + bytes == piece.size();
    if ((!is_first && !subword_prefix_.empty()) || (is_last && !word_suffix_.empty())) {
      decorated.assign(is_first ? "" : subword_prefix_).append(character).append(is_last ? word_suffix_ : "");
      character = decorated;
    }
    pos += bytes;
    if (const auto id = id_of(character)) {
      write_unknown();
      symbols.push_back({*id, 0, 0, true});
    } else if (byte_fallback_ && add_bytes(character, symbols)) {
      continue;
    } else if (unknown_id_) {
      if (!fuse_unknown_) write_unknown();
      pending_unknown = true;
    }
  }
  write_unknown();
}

void BpeModel::merge_all(std::vector<Symbol>& symbols) const {
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto propose = [&](int32_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    const Merge* merge = find_merge(symbols[left].id, symbols[symbols[left].next].id);
    if (merge) queue.push({merge->rank, left, merge->merged_id});
  };
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i < count; ++i) propose(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    if (!left.alive || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    // The pair may have changed since it was proposed.
    const Merge* merge = find_merge(left.id, right.id);
    if (!merge || merge->merged_id != top.merged_id) continue;
    left.id = top.merged_id;
    right.alive = false;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = top.position;
    propose(left.previous);
    propose(top.position);
  }
}

void BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto id = id_of(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  add_characters(piece, symbols);
  merge_all(symbols);
  for (const Symbol& symbol : symbols) {
    if (symbol.alive) ids.push_back(symbol.id);
  }
}

}  // namespace lowkey::coordinator
