// attend() and compact() on the device.
//
// AttentionPlanner turns a step into arrays for the device. Layers of one step have the same arrays; they are
// copied once.
#pragma once

#include <vector>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device_pool.h"
#include "kernels/cuda/stream.h"

namespace lowkey::kernels::cuda {

class CudaAttention {
 public:
  // `layouts` outlives it.
  static Result<CudaAttention> create(std::shared_ptr<DevicePool> pool, cudaStream_t stream,
                                      LayoutCache& layouts, const DeviceLimits& limits);

  void attend(const AttentionStep& step);
  void compact(const Compaction& compaction);

 private:
  // Arrays of one step on their way to the device, and there.
  struct Upload {
    explicit Upload(Event event) : copied(std::move(event)) {}
    PinnedBuffer host;
    DeviceBuffer device;
    Event copied;
    DeviceImage content;  // what the device has
    uint64_t last_used = 0;
  };
  // What launches take of a plan.
  struct Placed {
    StepView view;
    const DeviceItem* items = nullptr;
    const DevicePage* pages = nullptr;
    const PrefillTile* tiles = nullptr;
  };

  CudaAttention(std::shared_ptr<DevicePool> pool, cudaStream_t stream, LayoutCache& layouts,
                const DeviceLimits& limits)
      : stream_(stream),
        limits_(limits),
        layouts_(layouts),
        queries_(pool),
        rounded_queries_(pool),
        partials_(pool),
        features_(pool),
        softmax_(pool),
        kept_(pool) {}
  Placed place(const AttentionStep& step, AttentionPlan& plan);
  void place_queries(AttentionPlan& plan, int num_kv_heads);
  void write_pages(const AttentionStep& step, const AttentionPlan& plan, const Placed& placed);
  void attend_wave(const AttentionPlan& plan, const AttentionWave& wave, const Placed& placed,
                   const Partials& partials, float* softmax);
  void observe(const AttentionStep& step, const Placed& placed, const float* softmax);
  // Where the image is on the device, as long as no kUploads others are asked for.
  std::byte* upload(const DeviceImage& image);

  static constexpr int kUploads = 4;

  cudaStream_t stream_;
  DeviceLimits limits_;
  LayoutCache& layouts_;
  std::vector<Upload> uploads_;
  uint64_t uses_ = 0;
  Scratch queries_, rounded_queries_, partials_, features_, softmax_, kept_;
};

}  // namespace lowkey::kernels::cuda
