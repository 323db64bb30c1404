// Pages on their way into shared memory while earlier ones are attended: a ring of stages, of one warp
// (decode_attention.cu) or of a whole block (prefill_attention.cu).
#pragma once

#include "kernels/cuda/async_copies.h"
#include "kernels/cuda/fast_plan.h"

namespace lowkey::kernels::cuda {

// Who shares a ring.
struct WarpTeam {
  static __device__ uint32_t rank() { return threadIdx.x % kWarpSize; }
  static __device__ uint32_t size() { return kWarpSize; }
  static __device__ void sync() { sync_warp(); }
};
struct BlockTeam {
  static __device__ uint32_t rank() { return threadIdx.x; }
  static __device__ uint32_t size() { return blockDim.x; }
  static __device__ void sync() { __syncthreads(); }
};

// `kStages` pieces of shared memory, filled in turn and used in turn: fill() or fill_nothing() as many times
// as wait() and done(), or skip(), kStages of them ahead. All threads of the team call everything, alike.
template <class Team, int kStages>
class PageRing {
 public:
  // `memory`: kStages * stage_bytes, 128-byte aligned; `barriers` [kStages].
  __device__ PageRing(std::byte* memory, uint32_t stage_bytes, uint64_t* barriers)
      : memory_(memory), stage_bytes_(stage_bytes), barriers_(barriers) {
#if LOWKEY_BULK_COPIES
    if (Team::rank() == 0) {
      for (int i = 0; i < kStages; ++i) barrier_init(barriers_ + i);
      barrier_init_done();
    }
    Team::sync();
#endif
  }

  // Begins to copy a page's part, as `plan` has it, into the next stage. REQUIRES: a sync of the team since
  // its threads read that stage last, so that no read is behind the copy.
  __device__ void fill(const FastPlan& plan, std::byte* const* slabs) {
    std::byte* stage = memory_ + filled_ % kStages * stage_bytes_;
    const auto chunk_at = [&](int i) {
      return i < kMaxLevels ? plan.key.chunks[i] : plan.value.chunks[i - kMaxLevels];
    };
#if LOWKEY_BULK_COPIES
    if (Team::rank() == 0) {
      uint64_t* barrier = barriers_ + filled_ % kStages;
      begin_bulk_copies();
      barrier_expect(barrier, plan.copied_bytes);
      for (int i = 0; i < 2 * kMaxLevels; ++i) {
        const StagedChunk chunk = chunk_at(i);
        if (chunk.bytes > 0)
          bulk_copy(stage + chunk.target, slabs[chunk.slab] + chunk.offset, chunk.bytes, barrier);
      }
    }
#else
    for (int i = 0; i < 2 * kMaxLevels; ++i) {
      const StagedChunk chunk = chunk_at(i);
      for (uint32_t at = Team::rank() * 16; at < chunk.bytes; at += Team::size() * 16)
        copy_16(stage + chunk.target + at, slabs[chunk.slab] + chunk.offset + at);
    }
    copies_commit();
#endif
    ++filled_;
  }
  // There is no page for the next stage: keeps the count that wait() goes by.
  __device__ void fill_nothing() {
#if !LOWKEY_BULK_COPIES
    copies_commit();
#endif
    ++filled_;
  }

  // The oldest stage that was filled and is not done.
  __device__ const std::byte* wait() const {
    const uint32_t stage = used_ % kStages;
#if LOWKEY_BULK_COPIES
    barrier_wait(barriers_ + stage, phases_ >> stage & 1);
#else
    copies_wait<kStages - 1>();
    Team::sync();
#endif
    return memory_ + stage * stage_bytes_;
  }
  __device__ void done() {
    phases_ ^= 1u << used_ % kStages;
    ++used_;
  }
  // Of what was asked for with fill_nothing().
  __device__ void skip() {
    ++used_;
  }

 private:
  std::byte* memory_;
  uint32_t stage_bytes_;
  uint64_t* barriers_;
  uint32_t filled_ = 0, used_ = 0;
  uint32_t phases_ = 0;  // parity that each stage's barrier is in
};

// Copies plans into shared memory; all threads of the block call it, and wait for each other behind it.
__device__ __forceinline__ void copy_plans(FastPlan* to, const FastPlan* from, int count) {
  const auto* words = reinterpret_cast<const uint4*>(from);
  for (int i = threadIdx.x; i < count * static_cast<int>(sizeof(FastPlan) / sizeof(uint4)); i += blockDim.x)
    reinterpret_cast<uint4*>(to)[i] = words[i];
}

}  // namespace lowkey::kernels::cuda
