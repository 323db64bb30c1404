// The ring of stages of a block of prefill_attention.cu.
#pragma once

#include "kernels/cuda/staging.h"

namespace lowkey::kernels::cuda {

// Pages on their way into shared memory: one ring of the block. All threads call everything.
template <int kStages>
class BlockRing {
 public:
  __device__ BlockRing(std::byte* memory, uint32_t stage_bytes, uint64_t* barriers)
      : memory_(memory), stage_bytes_(stage_bytes), barriers_(barriers) {
#if LOWKEY_BULK_COPIES
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) barrier_init(barriers_ + i);
      barrier_init_done();
    }
    __syncthreads();
#endif
  }

  // The block has done with the stage.
  __device__ void fill(const FastPlan& plan, std::byte* const* slabs) {
    std::byte* stage = memory_ + filled_ % kStages * stage_bytes_;
    const auto chunk_at = [&](int i) {
      return i < kMaxLevels ? plan.key.chunks[i] : plan.value.chunks[i - kMaxLevels];
    };
#if LOWKEY_BULK_COPIES
    if (threadIdx.x == 0) {
      uint64_t* barrier = barriers_ + filled_ % kStages;
      uint32_t bytes = 0;
      for (int i = 0; i < 2 * kMaxLevels; ++i) bytes += chunk_at(i).bytes;
      barrier_expect(barrier, bytes);
      for (int i = 0; i < 2 * kMaxLevels; ++i) {
        const StagedChunk chunk = chunk_at(i);
        if (chunk.bytes > 0)
          bulk_copy(stage + chunk.target, slabs[chunk.slab] + chunk.offset, chunk.bytes, barrier);
      }
    }
#else
    for (int i = 0; i < 2 * kMaxLevels; ++i) {
      const StagedChunk chunk = chunk_at(i);
      for (uint32_t at = threadIdx.x * 16; at < chunk.bytes; at += blockDim.x * 16)
        copy_16(stage + chunk.target + at, slabs[chunk.slab] + chunk.offset + at);
    }
    copies_commit();
#endif
    ++filled_;
  }
  // Keeps the count that wait() goes by.
  __device__ void fill_nothing() {
#if !LOWKEY_BULK_COPIES
    copies_commit();
#endif
    ++filled_;
  }
  __device__ const std::byte* wait() const {
#if LOWKEY_BULK_COPIES
    barrier_wait(barriers_ + used_ % kStages, phases_ >> used_ % kStages & 1);
#else
    copies_wait<kStages - 1>();
    __syncthreads();
#endif
    return memory_ + used_ % kStages * stage_bytes_;
  }
  __device__ void done() {
    phases_ ^= 1u << used_ % kStages;
    ++used_;
  }
  // What was asked for with fill_nothing() is over.
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

}  // namespace lowkey::kernels::cuda
