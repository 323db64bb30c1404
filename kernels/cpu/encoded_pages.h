// Attention of query rows to complete encoded pages of one KV head, in the coordinates of the stored
// features: no page is mapped back. Which implementation reads a head is decided by its layout and the
// machine, never by the number of rows, so that prefill and decode do the same arithmetic.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// One KV head of the pages of one layout.
struct EncodedHead {
  const PageLayout* layout = nullptr;
  const VectorLayout* key = nullptr;  // may be shared with other heads (joined)
  const VectorLayout* value = nullptr;
};

// A block's query rows in the coordinates of the key's features: softmax scale, basis and static scales are
// folded in, so the score of a token is row . y with y the features without their static scale (embedded
// codes: code value * norm of the row). The constant of the mean is the caller's, unless scores are capped: a
// cap is taken of whole scores.
struct FeatureQueries {
  const float* rows = nullptr;  // [count][stride], key->dim of them used
  int stride = 0;
  int count = 0;
  float soft_cap = 0;                 // AttentionStep::soft_cap; 0: none
  const float* offsets = nullptr;     // [count], of the mean, added before the cap; null: zeros
  const uint16_t* rounded = nullptr;  // rows in bf16, where somebody has them already
};

inline constexpr int kMaxRunPages = 16;

// Pages of this many tokens share one step of the online softmax: the first of a run, the next, ...
inline constexpr int kBatchTokens = 128;
inline int batch_pages(int page_tokens) {
  int pages = 1;  // a power of two, so that batches never straddle two runs
  while (2 * pages * page_tokens <= kBatchTokens) pages *= 2;
  return pages;
}

// Consecutive complete pages. The same row is always given the same runs, whatever rows come with it.
struct PageRun {
  std::byte* const* slabs = nullptr;  // of the first page; slabs[page * kMaxSlabs + slab]
  int num_pages = 0;                  // 1 .. kMaxRunPages
  int pages_after = 0;                // that follow in `slabs` and are likely to be asked for next
  int masked_tokens = 0;              // the first tokens of the first page: not seen (the sink is, exact)
  // Rows from first_query[page] on see the page; ascending. Rows of one position are adjacent, so that
  // without a window a row sees a beginning of the run.
  int first_query[kMaxRunPages] = {};

  // Under a sliding window row r does not see the run's first `hidden` + r / `group` tokens (less than 0:
  // sees all). A row's run begins at the same page whatever comes with it: the pages that no row sees are
  // there in number, but are not touched.
  bool windowed = false;
  int hidden = 0;
  int group = 1;    // rows of one position
  int skipped = 0;  // leading pages that no row sees

  // Tokens at the front of the page, and of the pages before it, that the row does not see.
  int hidden_tokens(int page, int row, int page_tokens) const {
    return windowed ? std::max(0, hidden + row / group - page * page_tokens) : 0;
  }
  // The first row of `count` from which on the page is wholly hidden.
  int end_query(int page, int page_tokens, int count) const {
    if (!windowed) return count;
    const int64_t positions = int64_t{page + 1} * page_tokens - hidden;
    return static_cast<int>(std::clamp<int64_t>(positions * group, 0, count));
  }
};

// The running softmax of query rows over what they have seen (Milakov & Gimelshein 2018): the largest score,
// the sum of e^(score - maximum), and the sum of e^(score - maximum) * value, the value as features without
// their static scale.
struct AttentionState {
  float* maximum = nullptr;  // [rows]; -infinity: nothing seen
  float* sum = nullptr;      // [rows]
  float* acc = nullptr;      // [rows][stride], a multiple of kTileLanes that holds value->dim
  int stride = 0;
};

// Of one thread: keeps its scratch between calls.
class EncodedPages {
 public:
  virtual ~EncodedPages() = default;

  // The rows that see() is about; both must live as long. levels: to read of every page.
  virtual void prepare(const EncodedHead& head, int levels, const FeatureQueries& queries) = 0;

  // Rows see a run of pages: `state` has a row for each query. What becomes of a row depends on that row, its
  // state and the pages it sees alone, to the bit.
  virtual void see(const PageRun& run, const AttentionState& state) = 0;

  // A run may be cut after multiples of so many pages, a power of two: the bits are the same.
  virtual int stretch() const = 0;
};

}  // namespace lowkey::kernels
