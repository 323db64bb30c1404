// A model on one rank without an engine: windows of text through the forward pass that serving uses, for
// calibration and evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/ops/backend.h"
#include "transport/device_comm.h"
#include "worker/model/model.h"
#include "worker/offline/window_cache.h"

namespace lowkey::worker {

struct WindowRunnerOptions {
  kernels::DType dtype = kernels::DType::kBf16;  // of weights and exact K and V
  int threads = 1;                               // of the compute pool
  WeightStorage weights = WeightStorage::kAuto;
};

// Takes the logits of the token at `position`: f32 [vocab_size], valid during the call. Positions ascend.
using LogitsSink = std::function<void(int position, std::span<const float> logits)>;

// One thread uses it. The result of a window depends on its tokens and the cache's layout alone: how it is
// cut into steps changes nothing (docs/architecture.md, "What a query sees").
class WindowRunner {
 public:
  // Rows of one step: bounds the activations.
  static constexpr int kStepRows = 512;

  // Errors as ModelConfig::read and Model::load.
  static Result<std::unique_ptr<WindowRunner>> load(const std::filesystem::path& model_dir,
                                                    const WindowRunnerOptions& options);

  const ModelConfig& config() const { return model_->config(); }
  kernels::DType dtype() const { return backend_->dtype(); }
  kernels::Backend& backend() { return *backend_; }

  // What a step adds to a cache's slice: archived pages and observers.
  using SliceDetails = std::function<void(kernels::SequenceSlice& slice)>;

  // Runs `tokens` through all layers behind what `cache` holds already. Logits of the positions (in the
  // sequence) from `first_scored` on go to `sink`, in order; a null sink wants none. `tap` sees every layer's
  // q, k and v; a window longer than kStepRows comes to it in pieces, `step_rows` at most.
  Status feed(WindowCache& cache, std::span<const int32_t> tokens, int first_scored, const LogitsSink& sink,
              const AttentionTap* tap = nullptr, int step_rows = kStepRows,
              const SliceDetails& details = nullptr);

  // The same from an empty cache of `layout`, which is thrown away; of its pages the first `read_levels` are
  // read (0: all).
  Status run(std::span<const int32_t> tokens, const kernels::PageLayout& layout, int first_scored,
             const LogitsSink& sink, int read_levels = 0);

 private:
  WindowRunner(std::unique_ptr<kernels::Backend> backend, std::unique_ptr<Model> model,
               std::unique_ptr<transport::HostComm> comm);

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Model> model_;  // uses the backend: goes first
  std::unique_ptr<transport::HostComm> host_comm_;
  std::unique_ptr<transport::DeviceComm> comm_;
  std::vector<float> logits_;
};

}  // namespace lowkey::worker
