// A CacheReadingModel on the leader, beside which every answer is computed again from the definition: from
// the request's tokens, the levels at which each page was read in that step, and what was computed while one
// of them was coarse. What the cache gives back must agree, whatever pages were dropped, restored, evicted or
// shared.
#pragma once

#include <gtest/gtest.h>

#include <map>

#include "tests/unit/worker/engine/cache_reading_model.h"
#include "tests/unit/worker/engine/engine_replica.h"

namespace lowkey::worker {

// Of all requests of one replica.
class Shadow {
 public:
  struct Request {
    std::vector<int32_t> prompt;
    std::map<size_t, int32_t> expected;  // by index in the answer
    int lowest_levels = 0;               // that any token was computed with; 0: none read a page
    int coarse_answers = 0;              // tokens computed while a page was coarse
  };
  explicit Shadow(std::function<const Answer&(uint64_t)> answer) : answer_(std::move(answer)) {}

  void add(uint64_t id, std::vector<int32_t> prompt) { requests_[id].prompt = std::move(prompt); }
  const std::map<uint64_t, Request>& requests() const { return requests_; }

  // Before the model runs the step.
  void see(const Batch& batch, const kernels::PageLayout& layout) {
    for (const kernels::SequenceSlice& slice : batch.sequences) see(batch, layout, slice);
  }

 private:
  // A sequence in memory, by the address of its tail.
  struct Bound {
    std::vector<uint64_t> candidates;  // requests that it may be: one, once it differs from all others
    std::vector<int32_t> content;      // as the cache holds it: with marks
    int lowest_levels = 0;
  };

  std::vector<int32_t> known(uint64_t id) const {
    std::vector<int32_t> tokens = requests_.at(id).prompt;
    const std::vector<int32_t>& answered = answer_(id).tokens;
    tokens.insert(tokens.end(), answered.begin(), answered.end());
    return tokens;
  }

  // Whether the slice continues these tokens: its rows are, and its pages hold what came before.
  static bool fits(const std::vector<int32_t>& tokens, const Batch& batch, const kernels::PageLayout& layout,
                   const kernels::SequenceSlice& slice) {
    const size_t end = slice.first_slot + slice.num_rows;
    if (tokens.size() < end) return false;
    for (int i = 0; i < slice.num_rows; ++i)
      if (batch.tokens[slice.first_row + i] != tokens[slice.first_slot + i]) return false;
    for (int at = 0; at < slice.first_slot / layout.page_tokens * layout.page_tokens; ++at) {
      const auto* page =
          reinterpret_cast<const int32_t*>(slice.slabs[at / layout.page_tokens * kernels::kMaxSlabs]);
      const int32_t stored = page[at % layout.page_tokens] ^ (at * 31);
      if ((stored & ~CacheReadingModel::kTaint) !=
          CacheReadingModel::coarse(tokens[at], 1, layout.num_levels))
        return false;
    }
    return true;
  }

  void see(const Batch& batch, const kernels::PageLayout& layout, const kernels::SequenceSlice& slice) {
    Bound& bound = bound_[slice.tail];
    const auto other = [&](uint64_t id) { return !fits(known(id), batch, layout, slice); };
    std::erase_if(bound.candidates, other);
    if (bound.candidates.empty() || slice.first_slot == 0 ||
        bound.content.size() != static_cast<size_t>(slice.first_slot)) {
      ASSERT_EQ(slice.first_slot % layout.page_tokens, 0) << "a sequence begins with whole pages";
      bound = {};
      for (const auto& [id, request] : requests_)
        if (answer_(id).finish == wire::FINISH_NONE && !other(id)) bound.candidates.push_back(id);
      ASSERT_FALSE(bound.candidates.empty()) << "pages that are nobody's prefix";
      // What others have published, or it did itself before it gave way, is never marked.
      bound.content = known(bound.candidates[0]);
      bound.content.resize(slice.first_slot);
    }
    const int before = slice.first_slot / layout.page_tokens;
    const auto coarse = [&](int levels) { return levels < layout.num_levels; };
    const bool marks = std::any_of(slice.page_levels, slice.page_levels + before, coarse);
    for (int i = 0; i < slice.num_rows; ++i)
      bound.content.push_back(batch.tokens[slice.first_row + i] ^ (marks ? CacheReadingModel::kTaint : 0));
    if (before > 0)
      lower(&bound.lowest_levels, *std::min_element(slice.page_levels, slice.page_levels + before));
    const int last = slice.first_slot + slice.num_rows - 1, row = slice.first_row + slice.num_rows - 1;
    if (std::ranges::find(batch.logit_rows, row) == batch.logit_rows.end()) return;
    std::erase_if(bound.candidates, [&](uint64_t id) { return known(id).size() != bound.content.size(); });
    ASSERT_EQ(bound.candidates.size(), 1u);
    const std::vector<int32_t> tokens = known(bound.candidates[0]);
    Request& request = requests_.at(bound.candidates[0]);
    lower(&request.lowest_levels, bound.lowest_levels);
    request.coarse_answers += marks;
    const auto read = [&](size_t at, int32_t) {
      const size_t page = at / layout.page_tokens;
      const bool exact = page == static_cast<size_t>(last / layout.page_tokens) ||
                         at < static_cast<size_t>(layout.sink_tokens);
      const int levels = exact ? layout.num_levels : slice.page_levels[page];
      return CacheReadingModel::coarse(bound.content[at], levels, layout.num_levels);
    };
    request.expected[tokens.size() - request.prompt.size()] =
        CacheReadingModel::answer_reading(tokens, 1, true, read)[0];
  }

  static void lower(int* lowest, int levels) {
    if (levels > 0) *lowest = *lowest == 0 ? levels : std::min(*lowest, levels);
  }

  std::function<const Answer&(uint64_t)> answer_;
  std::map<uint64_t, Request> requests_;
  std::map<const std::byte*, Bound> bound_;
};

class ShadowedModel final : public Model {
 public:
  ShadowedModel(int rank, int ranks, Shadow* shadow) : model_(rank, ranks), shadow_(shadow) {}
  const ModelConfig& config() const override { return model_.config(); }
  uint64_t packed_bytes() const override { return 0; }
  int vocab_shard() const override { return model_.vocab_shard(); }
  Status forward(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                 Deadline deadline, std::span<float> logits) override {
    if (shadow_ != nullptr) shadow_->see(batch, layout);
    return model_.forward(batch, layout, comm, deadline, logits);
  }

 private:
  CacheReadingModel model_;
  Shadow* shadow_;
};

}  // namespace lowkey::worker
