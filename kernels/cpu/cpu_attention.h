// attend() on the CPU: writes the step's K and V into tails and pages, then attends tile by tile.
//
// Work is cut into blocks: some consecutive rows of one sequence under one KV head, with all query heads that
// share it. A block walks the pages in order; each page's K and V are decoded once into f32 tiles in L1 and
// serve all rows of the block. Pages are grouped into fixed splits of kSplitPages; a split yields (maximum,
// sum, accumulator) per row, and splits merge by log-sum-exp in ascending order, whoever computed them. So a
// row's bits depend neither on chunking nor on batch nor on threads, and a single long sequence still feeds
// all threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/page_encode.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class ComputePool;

class CpuAttention {
 public:
  explicit CpuAttention(ComputePool& pool);

  void attend(const AttentionStep& step);
  void compact(const Compaction& compaction);

 private:
  // A sequence's exact rows: the first page it touches has them in the tail, the following ones in own_rows_.
  struct SequencePlan {
    int first_page = 0;
    int num_own_pages = 0;
    int end_position = 0;
    size_t own_offset = 0;  // bytes into own_rows_: [side][head][page after the first][page_tokens][dim]
  };
  struct Block {
    int sequence = 0;
    int head = 0;
    int begin = 0;  // positions
    int end = 0;
    int num_splits = 0;
    size_t first_state = 0;  // of its splits in shared_states_, when splits run in parallel
  };
  struct Task {
    int block = 0;
    int first_split = 0;
    int end_split = 0;
  };
  // (maximum, sum, accumulator) of every query row of a block: [maximum x queries][sum x queries][acc]
  struct State {
    float* maximum;
    float* sum;
    float* acc;  // [queries][tile_stride(dim)]
  };
  // Of one thread; grown, never shrunk.
  struct Scratch {
    std::vector<float> key_tile, value_tile, queries, scores, states, row;
    simd::PageEncoder encoder;
  };

  template <class Function>
  void run_all(int count, bool serial, const Function& task);
  void plan(const AttentionStep& step);
  void plan_tasks();
  void encode_pages(int sequence, Side side, int vector, Scratch& scratch);
  void store_rows(int sequence, Side side, int head);
  void save_tails();
  std::byte* own_page(int sequence, Side side, int head, int page);

  void prepare(Scratch& scratch) const;
  State state_at(std::vector<float>& memory, size_t index) const;
  void clear(const State& state, int queries) const;
  void run_task(const Task& task, Scratch& scratch);
  void load_queries(const Block& block, Scratch& scratch) const;
  void run_split(const Block& block, int split, const State& state, Scratch& scratch);
  void see_encoded(const Block& block, int page, int first_query, const State& state, Scratch& scratch);
  void see_own(const Block& block, int page, const State& state, Scratch& scratch);
  void see_tiles(int first_query, int end_query, int first_valid, const State& state, Scratch& scratch) const;
  void merge(const State& into, const State& from, int queries) const;
  void merge_splits(const Block& block);
  void finish(const Block& block, const State& state) const;

  ComputePool& pool_;
  std::vector<Scratch> scratch_;  // of each thread

  // Of the step at hand.
  const AttentionStep* step_ = nullptr;
  int page_tokens_ = 0, dim_ = 0, heads_ = 0, group_ = 0;
  int max_queries_ = 0;  // of any block
  size_t row_bytes_ = 0;
  size_t state_floats_ = 0;
  std::vector<SequencePlan> plans_;
  std::vector<Block> blocks_;
  std::vector<Task> tasks_;
  std::vector<std::byte> own_rows_;
  std::vector<float> shared_states_;
};

}  // namespace lowkey::kernels
