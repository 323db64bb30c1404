// One sequence under a recipe, as the engine would keep it: with an archive the prompt stays exact until it
// is complete, then tokens are chosen and moved (kvstore/dials/tokens), and later ones in blocks. Where
// spilled pages are recoded, the prompt is a prefix that came back from a store.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "kvstore/dials/tokens/cache_plan.h"
#include "kvstore/recipe/resolve.h"
#include "kvstore/service/page_transcoder.h"
#include "worker/offline/window_runner.h"

namespace lowkey::worker {

// Runner and cache outlive it.
class RecipeSequence {
 public:
  // `read_levels`: of every page; 0: all.
  RecipeSequence(WindowRunner& runner, const kvstore::ResolvedCache& cache, int read_levels = 0);

  // The whole prompt; once, first. Sinks as WindowRunner::feed.
  Status prompt(std::span<const int32_t> tokens, int first_scored, const LogitsSink& sink);
  // What follows. Equal to one token after the other: steps end where a block moves.
  Status extend(std::span<const int32_t> tokens, int first_scored, const LogitsSink& sink);

  int length() const { return own_.length(); }
  // Seconds that the moves of the prompt took: with an archive, the whole cost of encoding it.
  double move_seconds() const { return move_seconds_; }

 private:
  Status feed(std::span<const int32_t> tokens, int first_scored, const LogitsSink& sink,
              const kernels::TokenObserver* observer);
  void spill_and_restore();
  void move_prompt(const std::vector<float>& signal);
  void move_block();
  // Moves what `plan` keeps of one bank behind its archived pages.
  void move(int bank, const kvstore::CachePlan& plan);

  WindowRunner& runner_;
  const std::optional<kvstore::ArchiveSpec> spec_;  // none: the recipe has no archive
  WindowCache own_;
  std::optional<kvstore::PageTranscoder> transcoder_;
  std::vector<PlainPages> archive_;               // [bank]
  std::vector<kernels::ArchivedPages> archived_;  // [bank], views of the same
  double move_seconds_ = 0;
};

}  // namespace lowkey::worker
