// attend() of decode steps that may be recorded: launches depend on how many rows the step has and on what
// its layers are, and on nothing else of it. Same kernels, same items and same results as CudaAttention.
#pragma once

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/step_tables.h"

namespace lowkey::kernels::cuda {

class StepAttention {
 public:
  // `layouts` outlives it.
  static Result<StepAttention> create(std::shared_ptr<DevicePool> pool, cudaStream_t stream,
                                      LayoutCache& layouts, const DeviceLimits& limits);

  // None: such a step's attention cannot be recorded, or wants too much memory at once.
  std::optional<StepSize> accepts(const StepGraphs::Step& step) const;
  // Makes room for the step's attention; memory that was outgrown is given back to the pool.
  void reserve(const StepGraphs::Step& step, const StepSize& size);
  // The tables of the step; `windows`: of its layers, as far as they are known.
  void begin(const StepGraphs::Step& step, const StepSize& size, std::span<const int> windows);
  void attend(const AttentionStep& step);
  void end() { step_ = {}; }

  bool active() const { return step_.layout != nullptr; }
  const StepTables& tables() const { return tables_; }
  const std::vector<int>& windows() const { return windows_; }  // of the calls since begin()

 private:
  StepAttention(std::shared_ptr<DevicePool> pool, cudaStream_t stream, LayoutCache& layouts,
                const DeviceLimits& limits, StepTables tables)
      : stream_(stream),
        layouts_(layouts),
        limits_(limits),
        tables_(std::move(tables)),
        queries_(pool),
        rounded_queries_(pool),
        partials_(pool),
        features_(pool) {}
  StepView view(const AttentionStep& step) const;
  void write_pages(const AttentionStep& step, const StepView& view);

  cudaStream_t stream_;
  LayoutCache& layouts_;
  DeviceLimits limits_;
  StepTables tables_;
  Scratch queries_, rounded_queries_, partials_, features_;
  StepGraphs::Step step_;  // the one at hand
  StepSize size_;
  DeviceMap map_;
  std::vector<int> windows_;
};

}  // namespace lowkey::kernels::cuda
