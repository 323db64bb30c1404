// attend() and compact() on the device.
//
// plan() turns a step into arrays on the device: sequences, segments (runs of pages of one format), rows, and
// items: the pages that one row attends at once under one KV head. How a row's pages are cut into items
// depends on the row's own sequence alone, and partial results merge in a fixed order, so that a row's result
// does not depend on its batch. Layers of one step have the same arrays; they are made and copied once.
#pragma once

#include <vector>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/device_image.h"
#include "kernels/cuda/device_pool.h"
#include "kernels/cuda/layout_tables.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels::cuda {

class CudaAttention {
 public:
  // `layouts` outlives it.
  static Result<CudaAttention> create(std::shared_ptr<DevicePool> pool, cudaStream_t stream,
                                      LayoutCache& layouts, const DeviceLimits& limits);

  void attend(const AttentionStep& step);
  void compact(const Compaction& compaction);

 private:
  // Items of one launch: of one map.
  struct Batch {
    int map = 0;
    int first_item = 0, num_items = 0;
  };
  // Rows whose partial results are in memory together.
  struct Wave {
    int first_row = 0, num_rows = 0;
    int num_states = 0;
    bool prefill = false;  // whole rows by the prefill kernel: no partial results
    std::vector<Batch> batches;
  };
  // Arrays of one step on their way to the device, and there.
  struct Upload {
    explicit Upload(Event event) : copied(std::move(event)) {}
    PinnedBuffer host;
    DeviceBuffer device;
    Event copied;
    DeviceImage content;  // what the device has
    uint64_t last_used = 0;
  };
  struct Plan;

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
  void make_plan(const AttentionStep& step, Plan& plan);
  void add_sequence(const AttentionStep& step, const SequenceSlice& sequence, Plan& plan);
  void add_rows(const AttentionStep& step, const SequenceSlice& sequence, Plan& plan);
  bool takes_prefill(const AttentionStep& step, const SequenceSlice& sequence) const;
  PrefillShape prefill_shape(const AttentionStep& step) const;
  void add_prefill(const AttentionStep& step, const SequenceSlice& sequence, Plan& plan);
  void make_tiles(const AttentionStep& step, Plan& plan);
  void end_wave(Plan& plan);
  FastStep fast_step(const AttentionStep& step, const PageLayout& layout, int bank) const;
  void place_queries(const Plan& plan, std::vector<FastStep>& fast);
  void place_plan(const AttentionStep& step, Plan& plan);
  void write_pages(const AttentionStep& step, const Plan& plan);
  void observe(const AttentionStep& step, const Plan& plan, const float* softmax);
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
