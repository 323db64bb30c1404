// Whether one more sequence may start: what all that hold memory will come to need, against what is there and
// what could be given up.
//
// Without levels to give, everybody counts with the tokens that are known and one page or block more.
//
// With levels everybody counts at the fewest that it can read: its complete pages so, one page under way
// whole, the sink. Looking so little ahead would let in whoever must give way again before what its start has
// cost is earned, and pages computed on coarse ones are lost with it; counting every answer at its full
// length would leave memory empty that answers fill only one after the other. So it is looked ahead as many
// steps as the candidate needs to earn its start: a token in a step with others costs less than half of one
// in a step alone, a computed prompt token about as much as that saves. Within these steps answers grow by a
// token a step, and those end, and return their memory, that come to the share of their max_tokens which
// others have used lately (all, until one has ended).
//
// Thread rule: the step thread only. The pool outlives it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kvstore/page/page_pool.h"
#include "worker/engine/pressure_ladder.h"
#include "worker/engine/sequence.h"

namespace lowkey::worker {

// Most pages that a sequence holds at a time where no row sees more than `window` slots.
inline size_t pages_of_window(int window, int step_tokens, int page_tokens) {
  return static_cast<size_t>(window + step_tokens) / page_tokens + 2;
}

class MemoryForecast {
 public:
  using Holders = std::span<Sequence* const>;  // all that have started, the candidate not among them

  // `step_tokens`: most that a step computes.
  MemoryForecast(kvstore::PagePool& pool, int step_tokens);

  // The candidate holds its hits. `idle_before`: free and evictable bytes before they were referenced.
  bool fits(const Sequence& candidate, Holders holders, uint64_t idle_before) const;
  // The same where `ladder` gives levels.
  bool fits_coarse(Sequence& candidate, Holders holders, PressureLadder& ladder) const;

  // Most pages that a sequence of so many tokens holds at a time: under a window those inside it, and those
  // that a step completes.
  size_t most_pages(const Sequence& sequence, size_t tokens) const;

  void ended(const Sequence& sequence);

 private:
  struct Growth;  // of one sequence

  int expected_answer(const Sequence& sequence) const;
  Growth growth_of(const Sequence& sequence, const PressureLadder& ladder) const;
  int64_t needed_after(std::span<const Growth> growths, int steps) const;
  uint64_t missing_bytes(const Sequence& sequence) const;

  kvstore::PagePool* pool_;
  const std::optional<kvstore::ArchiveSpec>& archive_;
  int step_tokens_, page_tokens_;
  std::optional<double> answer_share_;  // of their max_tokens that ended sequences had, lately
};

}  // namespace lowkey::worker
