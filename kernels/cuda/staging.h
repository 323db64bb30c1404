// Pages on their way into shared memory while earlier ones are attended: one warp's ring of stages. Each
// stage is filled by bulk copies (cp.async.bulk, one lane issues them, an mbarrier counts the bytes) on
// sm_90, by 16-byte cp.async of all lanes before. The emulation copies as late as it may: what is read before
// wait() is poison.
#pragma once

#include "kernels/cuda/fast_plan.h"
#include "kernels/cuda/warp.h"

#ifndef __CUDACC__
#include <map>
#include <vector>
#endif

namespace lowkey::kernels::cuda {

#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define LOWKEY_BULK_COPIES 0
#else
#define LOWKEY_BULK_COPIES 1
#endif

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if LOWKEY_BULK_COPIES
__device__ __forceinline__ void barrier_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
// After all inits, before the first copy.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra end;\n"
      "bra again;\n"
      "end:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// 16-byte aligned, a multiple of 16 bytes.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
#endif

__device__ __forceinline__ void copy_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void copies_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#else

namespace emulation {

struct LateCopy {
  void* to;
  const void* from;
  uint32_t bytes;
};
struct EmulatedBarrier {
  uint32_t parity = 0;  // of the phase under way
  bool expected = false;
  int64_t bytes = 0;
  std::vector<LateCopy> copies;
};
// By address in shared memory; of the block that runs.
inline std::map<const uint64_t*, EmulatedBarrier>& barriers() {
  thread_local std::map<const uint64_t*, EmulatedBarrier> instance;
  return instance;
}

}  // namespace emulation

inline void barrier_init(uint64_t* barrier) {
  emulation::barriers()[barrier] = {};
}
inline void barrier_init_done() {}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  auto& state = emulation::barriers().at(barrier);
  state.expected = true;
  state.bytes += bytes;
}
inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  std::memset(to, 0xee, bytes);
  emulation::barriers().at(barrier).copies.push_back({to, from, bytes});
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  auto& state = emulation::barriers().at(barrier);
  while (state.parity == parity) {
    for (const emulation::LateCopy& copy : state.copies) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      state.bytes -= copy.bytes;
    }
    state.copies.clear();
    if (state.expected && state.bytes == 0) {
      state.expected = false;
      state.parity ^= 1;
    } else {
      emulation::yield();
    }
  }
}

#endif

// `kStages` pieces of shared memory of one warp, filled in turn and used in turn.
template <int kStages>
class StageRing {
 public:
  // `memory`: kStages * stage_bytes, 128-byte aligned. All lanes call everything.
  __device__ StageRing(std::byte* memory, uint32_t stage_bytes, uint64_t* barriers)
      : memory_(memory), stage_bytes_(stage_bytes), barriers_(barriers) {
#if LOWKEY_BULK_COPIES
    if (threadIdx.x % kWarpSize == 0) {
      for (int i = 0; i < kStages; ++i) barrier_init(barriers_ + i);
      barrier_init_done();
    }
    sync_warp();
#endif
  }

  // Begins to fill the next stage with `key` and `value` chunks ([kMaxLevels] each) of a page; the warp has
  // done with it.
  __device__ void fill(const StagedChunk* key, const StagedChunk* value, std::byte* const* slabs) {
    std::byte* stage = memory_ + filled_ % kStages * stage_bytes_;
#if LOWKEY_BULK_COPIES
    if (threadIdx.x % kWarpSize == 0) {
      uint64_t* barrier = barriers_ + filled_ % kStages;
      uint32_t bytes = 0;
      for (int i = 0; i < kMaxLevels; ++i) bytes += key[i].bytes + value[i].bytes;
      barrier_expect(barrier, bytes);
      for (int i = 0; i < 2 * kMaxLevels; ++i) {
        const StagedChunk chunk = i < kMaxLevels ? key[i] : value[i - kMaxLevels];
        if (chunk.bytes > 0)
          bulk_copy(stage + chunk.target, slabs[chunk.slab] + chunk.offset, chunk.bytes, barrier);
      }
    }
#else
    for (int i = 0; i < 2 * kMaxLevels; ++i) {
      const StagedChunk chunk = i < kMaxLevels ? key[i] : value[i - kMaxLevels];
      for (uint32_t at = threadIdx.x % kWarpSize * 16; at < chunk.bytes; at += kWarpSize * 16)
        copy_16(stage + chunk.target + at, slabs[chunk.slab] + chunk.offset + at);
    }
    copies_commit();
#endif
    ++filled_;
  }
  // Nothing more to fill: keeps the count that wait() goes by.
  __device__ void fill_nothing() {
#if !LOWKEY_BULK_COPIES
    copies_commit();
#endif
    ++filled_;
  }

  // The oldest stage that was filled and not yet waited for; fill() may not be called between this and
  // done().
  __device__ const std::byte* wait() {
    const uint32_t stage = used_ % kStages;
#if LOWKEY_BULK_COPIES
    barrier_wait(barriers_ + stage, used_ / kStages & 1);
#else
    copies_wait<kStages - 1>();
    sync_warp();
#endif
    return memory_ + stage * stage_bytes_;
  }
  __device__ void done() {
    sync_warp();
    ++used_;
  }

 private:
  std::byte* memory_;
  uint32_t stage_bytes_;
  uint64_t* barriers_;
  uint32_t filled_ = 0, used_ = 0;
};

}  // namespace lowkey::kernels::cuda
