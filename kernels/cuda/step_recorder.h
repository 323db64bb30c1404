// StepGraphs as CUDA graphs of the backend's stream, a bounded number of them.
//
// A graph names addresses: of activations, weights, scratch memory and tables. All of them come from the
// pool, so a graph is good as long as nothing has been given back to it.
#pragma once

#include <list>
#include <vector>

#include "kernels/cuda/argument_copies.h"
#include "kernels/cuda/device_pool.h"
#include "kernels/cuda/step_attention.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/step_graphs.h"

namespace lowkey::kernels::cuda {

class StepRecorder final : public StepGraphs {
 public:
  // All outlive it.
  StepRecorder(std::shared_ptr<DevicePool> pool, cudaStream_t stream, StepAttention& attention,
               ArgumentCopies& arguments)
      : pool_(std::move(pool)), stream_(stream), attention_(attention), arguments_(arguments) {}
  ~StepRecorder() override { abandon(); }

  int padded_rows(const Step& step) const override;
  bool begin(const Step& step) override;
  void end() override;
  void abandon() override;
  void set_capacity(size_t graphs) override;
  Counts counts() const override;

 private:
  // What the calls of a step depend on, but for the addresses in them.
  struct Shape {
    const void* owner = nullptr;
    uint64_t layout = 0;
    int rows = 0, num_q_heads = 0;
    bool pages = false;  // it completes some
    bool operator==(const Shape&) const = default;
  };
  struct Entry {
    Shape shape;
    std::vector<int> windows;             // of its layers
    UniqueHandle<cudaGraphExec_t> graph;  // null: its calls have been made, not recorded
    size_t bytes = 0;
  };

  void forget_outdated();
  void shrink(size_t count, size_t bytes);
  void record();

  const std::shared_ptr<DevicePool> pool_;
  const cudaStream_t stream_;
  StepAttention& attention_;
  ArgumentCopies& arguments_;
  std::list<Entry> entries_;  // the one used last comes first
  uint64_t generation_ = 0;   // of the pool, that all of them are of
  size_t capacity_ = 32;      // a batch that shrinks by one at a time has some twenty paddings, twice
  enum class Doing : uint8_t { kNothing, kCalls, kCapture } doing_ = Doing::kNothing;
  Counts counts_;
};

}  // namespace lowkey::kernels::cuda
