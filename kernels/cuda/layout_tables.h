// The device's copies of page layouts, made when a layout is first seen.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/device_layout.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/fast_plan.h"
#include "kernels/page/page_layout.h"

namespace lowkey::kernels::cuda {

// What the fast kernels read of one bank.
struct FastBank {
  FastKind kind = FastKind::kNone;
  int max_groups = 0;
  uint32_t stage_bytes = 0;
  bool narrow_keys = false;         // keys have codes of 2 and 4 bits alone
  const FastPlan* plans = nullptr;  // on the device: [head][level - 1]
};

inline LayoutShape shape_of(const PageLayout& layout) {
  return {layout.page_tokens, layout.sink_tokens, layout.num_kv_heads, layout.head_dim, layout.join};
}

// One layout's tables: all in one buffer, freed together.
class LayoutTables {
 public:
  // Waits for the copy. Error kResourceExhausted.
  static Result<LayoutTables> create(const PageLayout& layout, cudaStream_t stream);

  const DeviceLayout* device() const { return device_; }
  int max_dim() const { return max_dim_; }  // of any stored vector
  const FastBank& fast(int bank) const { return fast_[bank]; }
  // The fast kernel of a bank of `layout`, whose tables these are, if there is one on such a device; without
  // its queries.
  FastStep fast_step(const PageLayout& layout, int bank, int num_q_heads, const DeviceLimits& limits) const;

 private:
  DeviceBuffer buffer_;
  const DeviceLayout* device_ = nullptr;
  int max_dim_ = 0;
  std::vector<FastBank> fast_;
};

// Layouts by PageLayout::id; they live as long as the process, and so do their tables.
class LayoutCache {
 public:
  explicit LayoutCache(cudaStream_t stream) : stream_(stream) {}
  // REQUIRES: layout.id != 0. Aborts when the device has no memory for a few tables.
  const LayoutTables& of(const PageLayout& layout);
  // REQUIRES: of() has had it.
  const LayoutTables& known(const PageLayout& layout) const { return tables_.at(layout.id); }

 private:
  cudaStream_t stream_;
  std::map<uint64_t, LayoutTables> tables_;
};

}  // namespace lowkey::kernels::cuda
