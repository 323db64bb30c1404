// attend() on the CPU: writes the step's K and V into tails and pages (CacheWriter), then attends.
//
// Work is cut into blocks: some consecutive rows of one sequence under one KV head, with all query heads that
// share it. What a row sees is cut into segments, each in the coordinates of its own features: the archived
// pages, the sequence's encoded pages, and what is exact (sink and own page) in the head's own. Encoded pages
// are cut further, into the longest runs that are read at equally many levels: their features have the same
// coordinates. A segment is walked in fixed splits of kSplitPages; a split yields (maximum, sum, accumulator)
// per row, and splits merge by log-sum-exp in ascending order, whoever computed them; what has the same
// coordinates is mapped back once and merged. So a row's bits depend neither on chunking nor on batch nor on
// threads, and a single long sequence still feeds all threads.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "kernels/cpu/bf16_pages.h"
#include "kernels/cpu/cache_writer.h"
#include "kernels/cpu/code_pages.h"
#include "kernels/cpu/exact_rows.h"
#include "kernels/cpu/float_pages.h"
#include "kernels/cpu/head_maps.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/token_observation.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class ComputePool;

class CpuAttention {
 public:
  // in_pairs: exact bf16 rows and pages are attended in pairs of bf16. REQUIRES: has_bf16_pairs() then.
  CpuAttention(ComputePool& pool, bool in_pairs);

  void attend(const AttentionStep& step);
  void compact(const Compaction& compaction) { writer_.compact(compaction); }

 private:
  // Part of the meaning of a result's bits: changing it changes the order of sums. 16 pages of 32 tokens are
  // long enough that merging is free and short enough that a few thousand tokens feed several threads.
  static constexpr int kSplitPages = kMaxRunPages;
  static constexpr int kStatesOfThread = 3;  // the block's, a segment's, a split's

  // Encoded pages of one sequence in one format, read at equally many levels.
  struct Segment {
    int map = 0;                        // into maps_
    std::byte* const* slabs = nullptr;  // of its first page
    int levels = 0;
    int first_page = 0;     // of the sequence's own
    int num_pages = 0;      // up to the last one that any row sees
    int skipped = 0;        // leading ones that do not belong to it, or that no row sees
    int masked_tokens = 0;  // of page 0: the sink, which is seen exact
    bool own = false;       // a row sees the pages before its own
  };
  // Of one sequence: archived pages, if any, then its own. In segments_.
  struct SequencePlan {
    int first_segment = 0;
    int num_segments = 0;
  };
  struct Block {
    int sequence = 0;
    int head = 0;
    int begin = 0;  // slots
    int end = 0;
    int num_splits = 0;      // of all its segments
    bool in_splits = false;  // splits are tasks of their own
    size_t first_state = 0;  // of its splits in shared_states_, then
  };
  struct Task {
    int block = 0;  // the first of
    int count = 0;  // some heads of the same rows
    int split = 0;  // kWholeBlock: all of one block's, and what comes after
    int end_split = 0;
  };
  static constexpr int kWholeBlock = -1;
  static constexpr int kNoMap = -1;
  // One head's rows, ready for a segment.
  struct HeadScratch {
    std::vector<float> queries, mapped_queries;
    std::vector<uint16_t> rounded;                 // queries in bf16, where exact rows are in pairs
    std::vector<float> offsets;                    // q . mean of keys, where scores are capped
    int mapped = kNoMap;                           // what mapped_queries are for
    std::array<CodePages, kMaxLevels> code_pages;  // by levels read: runs of pages alternate
    FloatPages float_pages;
    Bf16Pages bf16_pages;
    EncodedPages* pages = nullptr;  // of the segment prepared
  };
  // Of one thread.
  struct Scratch {
    std::vector<HeadScratch> heads;
    std::vector<float> mapped_sums, states;
    ExactTiles exact;
    TokenObservation observation;
  };

  void plan(const AttentionStep& step);
  void plan_sequence(const SequenceSlice& sequence, int index);
  void plan_segments(const SequenceSlice& sequence, SequencePlan& plan);
  void add_segment(const PageLayout& layout, int bank, Segment segment, bool same_map);
  void plan_tasks();
  void prepare(Scratch& scratch) const;

  void run_task(const Task& task, Scratch& scratch);
  void run_splits(const Task& task, Scratch& scratch);
  void finish_block(const Block& block, bool splits_are_done, Scratch& scratch);
  std::span<const Segment> segments_of(const Block& block) const {
    const SequencePlan& plan = plans_[block.sequence];
    return std::span(segments_).subspan(plan.first_segment, plan.num_segments);
  }
  // Pages of the segment that the block's last row sees; leading ones that are behind its first row's window.
  int pages_of(const Block& block, const Segment& segment) const;
  int skipped_of(const Block& block, const Segment& segment) const;
  // Slots from `first` on that the block's first query does not see; less than 0: sees all.
  int hidden_from(const Block& block, int first) const;
  int splits_of(const Block& block, const Segment& segment) const;
  int pages_seen() const;
  void load_queries(const Block& block, HeadScratch& head) const;
  void prepare_segment(const Block& block, const Segment& segment, HeadScratch& head) const;
  PageRun run_of(const Block& block, const Segment& segment, int split) const;
  void map_back(const Block& block, const Segment& segment, const AttentionState& state,
                Scratch& scratch) const;
  void see_exact(const Block& block, const AttentionState& state, Scratch& scratch) const;
  // Queries [first, end) of the block, which see some exact rows.
  void see_rows(const Block& block, ExactRows rows, int first_query, int end_query,
                const AttentionState& state, Scratch& scratch) const;
  void store_result(const Block& block, const AttentionState& state);
  void observe();

  // Of the block at hand. What is few keeps its heads apart, as splits do: their plans and memory stay.
  HeadScratch& head_of(const Block& block, Scratch& scratch) const {
    return scratch.heads[serial_ ? block.head : 0];
  }
  int queries_of(const Block& block) const { return (block.end - block.begin) * group_; }
  // Of the `index`-th of several states of as many queries, from `first` on.
  AttentionState state_at(std::vector<float>& memory, size_t first, size_t index, int queries) const;
  // Maxima and sums; accumulators begin at a whole line.
  static size_t state_header(int queries) { return simd::tile_stride(2 * queries); }
  size_t state_floats(int queries) const {
    return state_header(queries) + static_cast<size_t>(queries) * state_stride_;
  }
  void clear(const AttentionState& state, int queries) const;
  void merge(const AttentionState& into, const AttentionState& from, int queries) const;

  ComputePool& pool_;
  const bool in_pairs_;
  CacheWriter writer_;
  HeadMaps maps_;
  std::vector<Scratch> scratch_;  // of each thread

  // Of the step at hand.
  const AttentionStep* step_ = nullptr;
  int page_tokens_ = 0, dim_ = 0, heads_ = 0, group_ = 0;
  bool rounds_ = false;          // queries to bf16, for whoever reads in pairs
  bool exact_in_pairs_ = false;  // exact rows are; as a layout has it, never a matter of rows
  bool serial_ = false;          // too little for two threads
  int max_queries_ = 0;          // of any block
  int state_stride_ = 0;         // floats of a row's accumulator: the longest of all segments
  std::vector<SequencePlan> plans_;
  std::vector<Segment> segments_;
  std::vector<Block> blocks_;
  std::vector<Task> tasks_;
  std::vector<float> shared_states_;
  RowSoftmax softmax_;  // of the step's rows, where somebody observes
};

}  // namespace lowkey::kernels
