// A model whose answer depends on every token it finds in the cache and on nothing else: it keeps token ids
// where K and V would be (tail first, slab when a page is complete, as Backend::attend does) and answers with
// a hash of what it reads back. A page that is lost, swapped, stale or another rank's changes the answer; and
// so does one that is read at fewer levels: the lowest bits of its tokens are in the upper levels. What is
// computed while it reads such a page is marked in the cache for good, as a real model's K and V would be.
// Thousands of requests a second, so it serves the soak; the real model has its own tests.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <limits>

#include "worker/model/model.h"

namespace lowkey::worker {

class CacheReadingModel final : public Model {
 public:
  static constexpr int kVocab = 97;  // not a multiple of the ranks: the last shard is padded

  CacheReadingModel(int rank, int num_ranks) : rank_(rank), shard_((kVocab + num_ranks - 1) / num_ranks) {
    config_.name = "cache-reading";
    config_.num_layers = 1;
    config_.num_heads = config_.num_kv_heads = num_ranks;
    config_.head_dim = 16;
    config_.vocab_size = kVocab;
    config_.max_positions = 4096;
    config_.eos_token_ids = {0};
  }

  static constexpr int32_t kTaint = 0x100;

  // What `levels` of `num_levels` levels of a page keep of a token.
  static int32_t coarse(int32_t token, int levels, int num_levels) {
    int32_t kept = 0;
    for (int level = 0; level < levels; ++level) kept |= token & level_bits(level, num_levels);
    return kept;
  }

  // The greedy answer to a prompt, from the definition.
  static std::vector<int32_t> answer(std::vector<int32_t> tokens, int max_tokens, bool ignore_eos = false) {
    return answer_reading(std::move(tokens), max_tokens, ignore_eos,
                          [](size_t, int32_t token) { return token; });
  }
  // `read(position, token)`: what the cache gives back.
  static std::vector<int32_t> answer_reading(std::vector<int32_t> tokens, int max_tokens, bool ignore_eos,
                                             const std::function<int32_t(size_t, int32_t)>& read) {
    std::vector<int32_t> out;
    while (static_cast<int>(out.size()) < max_tokens) {
      uint64_t hash = 0;
      for (size_t i = 0; i < tokens.size(); ++i) hash = mix(hash, read(i, tokens[i]), i);
      int best = 0;
      for (int v = 1; v < kVocab; ++v) {
        if (logit(hash, v) > logit(hash, best)) best = v;
      }
      out.push_back(best);
      tokens.push_back(best);
      if (best == 0 && !ignore_eos) break;
    }
    return out;
  }

  const ModelConfig& config() const override { return config_; }
  uint64_t packed_bytes() const override { return 0; }
  int vocab_shard() const override { return shard_; }
  void fail_next() { fail_next_ = true; }

  Status forward(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                 Deadline deadline, std::span<float> logits) override {
    if (fail_next_.exchange(false))
      return Error{Code::kDeadlineExceeded, "all-reduce: rank 1 did not answer", {}};
    for (const kernels::SequenceSlice& slice : batch.sequences) {
      const int before = slice.first_slot / layout.page_tokens;
      const bool taints = std::any_of(slice.page_levels, slice.page_levels + before,
                                      [&](int levels) { return levels < layout.num_levels; });
      for (int row = 0; row < slice.num_rows; ++row) {
        LOWKEY_CHECK(batch.positions[slice.first_row + row] == slice.first_slot + row);
        write(layout, slice, slice.first_slot + row,
              batch.tokens[slice.first_row + row] ^ (taints ? kTaint : 0));
      }
    }
    std::vector<float> mine(batch.logit_rows.size() * shard_);
    size_t wanted = 0;
    for (const int32_t row : batch.logit_rows) {
      const auto slice = std::find_if(batch.sequences.begin(), batch.sequences.end(), [&](const auto& s) {
        return row >= s.first_row && row < s.first_row + s.num_rows;
      });
      const uint64_t hash = read(layout, *slice, batch.positions[row]);
      for (int v = 0; v < shard_; ++v) {
        const int token = rank_ * shard_ + v;
        mine[wanted * shard_ + v] =
            token < kVocab ? logit(hash, token) : -std::numeric_limits<float>::infinity();
      }
      ++wanted;
    }
    if (mine.empty()) return {};
    const int rows = static_cast<int>(batch.logit_rows.size());
    if (batch.gather_logits)
      return comm.gather({.data = mine.data(), .rows = rows, .cols = shard_}, logits, deadline);
    std::ranges::copy(mine, logits.begin());
    return {};
  }

 private:
  static uint64_t mix(uint64_t hash, int32_t token, uint64_t position) {
    hash ^= (static_cast<uint64_t>(token) + 1) * 0x9e3779b97f4a7c15ull + position;
    hash *= 0xbf58476d1ce4e5b9ull;
    return hash ^ (hash >> 29);
  }
  static float logit(uint64_t hash, int v) { return static_cast<float>(mix(hash, v, 77) >> 40) / (1 << 22); }

  // One level has all bits; of more, the first has all but the last two, which the others share.
  static int32_t level_bits(int level, int num_levels) {
    if (num_levels == 1) return -1;
    return level == 0 ? ~3 : num_levels == 2 ? 3 : level == 1 ? 2 : 1;
  }

  // Ranks keep different bytes for the same token. Its own inverse.
  int32_t sealed(int32_t token, int position) const { return token ^ (rank_ * 0x01010101 + position * 31); }

  void write(const kernels::PageLayout& layout, const kernels::SequenceSlice& slice, int position,
             int32_t token) {
    const int page_tokens = layout.page_tokens, in_page = position % page_tokens;
    auto* tail = reinterpret_cast<int32_t*>(slice.tail);
    tail[in_page] = sealed(token, position);
    if (in_page + 1 < page_tokens) return;
    std::byte* const* slabs = slice.slabs + (position / page_tokens) * kernels::kMaxSlabs;
    for (int level = 0; level < layout.num_levels; ++level) {
      auto* out = reinterpret_cast<int32_t*>(slabs[level]);
      for (int i = 0; i < page_tokens; ++i) {
        const int at = position - page_tokens + 1 + i;
        out[i] = sealed(sealed(tail[i], at) & level_bits(level, layout.num_levels), at);
      }
    }
    if (position < page_tokens && layout.sink_tokens > 0) {
      std::memcpy(slabs[layout.sink_slab()], tail, layout.sink_tokens * sizeof(int32_t));
    }
  }

  // What the row of position `last` sees. The tail has the page of the slice's last row.
  uint64_t read(const kernels::PageLayout& layout, const kernels::SequenceSlice& slice, int last) const {
    const int tail_page = (slice.first_slot + slice.num_rows - 1) / layout.page_tokens;
    uint64_t hash = 0;
    for (int position = 0; position <= last; ++position) {
      const int page = position / layout.page_tokens, in_page = position % layout.page_tokens;
      const bool exact = page == tail_page;
      const bool sink = !exact && position < layout.sink_tokens;
      const auto token = [&](const std::byte* from) {
        return sealed(reinterpret_cast<const int32_t*>(from)[in_page], position);
      };
      std::byte* const* slabs = slice.slabs + page * kernels::kMaxSlabs;
      int32_t found = 0;
      if (exact || sink) {
        found = token(exact ? slice.tail : slabs[layout.sink_slab()]);
      } else {
        for (int level = 0; level < slice.page_levels[page]; ++level) found |= token(slabs[level]);
      }
      hash = mix(hash, found, position);
    }
    return hash;
  }

  ModelConfig config_;
  int rank_;
  int shard_;
  std::atomic<bool> fail_next_ = false;
};

}  // namespace lowkey::worker
