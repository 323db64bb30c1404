// Copies into shared memory that go on while a thread computes: bulk copies (cp.async.bulk, one thread issues
// them, an mbarrier counts the bytes) on sm_90, 16-byte cp.async of many threads before. The emulation copies
// as late as it may: what is read before barrier_wait() is poison.
#pragma once

#include "kernels/cuda/warp.h"

#ifndef __CUDACC__
#include <map>
#include <vector>

#include "kernels/cuda/cuda_check.h"
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
// Before bulk copies into memory that threads have read or written, and who issues them has waited for: they
// are behind these accesses, too (PTX ISA, "Async proxy").
__device__ __forceinline__ void begin_bulk_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

// Brings 128 bytes nearer, without waiting for them.
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

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

inline void prefetch_l2(const void*) {}

inline void barrier_init(uint64_t* barrier) {
  emulation::barriers()[barrier] = {};
}
inline void barrier_init_done() {}
inline void begin_bulk_copies() {}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  auto& state = emulation::barriers().at(barrier);
  state.expected = true;
  state.bytes += bytes;
}
// What the device's copies want: who gives less gets a trap there.
inline void check_bulk_copy(const void* to, const void* from, uint32_t bytes, const uint64_t* barrier) {
  constexpr uintptr_t kAlignment = 16;
  constexpr uint32_t kMostPending = (1u << 20) - 1;  // bytes that a barrier counts
  const bool aligned =
      (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % kAlignment == 0 &&
      reinterpret_cast<uintptr_t>(barrier) % sizeof(*barrier) == 0;
  LOWKEY_CUDA_CHECK(aligned && bytes > 0 && bytes <= kMostPending ? cudaSuccess : cudaErrorInvalidValue);
}
inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  check_bulk_copy(to, from, bytes, barrier);
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

}  // namespace lowkey::kernels::cuda
