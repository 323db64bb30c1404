// How far a cache moves a model's next-token distribution from the exact cache's, on windows of text.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/page/page_layout.h"
#include "worker/offline/window_runner.h"

namespace lowkey::cli {

// Keeps the exact distributions in memory (at most kMostBytes: of many positions, evenly spaced ones). One
// thread; `runner` and `windows` outlive it.
class KlMeter {
 public:
  static constexpr size_t kMostBytes = size_t{1} << 30;

  // Runs every window through the exact cache; positions at and after half of a window are scored.
  static Result<std::unique_ptr<KlMeter>> make(worker::WindowRunner& runner,
                                               std::span<const std::vector<int32_t>> windows);

  // Mean KL(exact || layout) in nats per scored token; of all pages the first `read_levels` are read (0:
  // all).
  Result<double> measure(const kernels::PageLayout& layout, int read_levels = 0) const;

 private:
  KlMeter(worker::WindowRunner& runner, std::span<const std::vector<int32_t>> windows);

  worker::WindowRunner& runner_;
  std::span<const std::vector<int32_t>> windows_;
  int step_ = 1;                      // of the scored positions
  std::vector<float> probabilities_;  // [window][scored position][vocab]
  double negative_entropy_ = 0;       // sum of p log p over all of them
  int64_t count_ = 0;
};

}  // namespace lowkey::cli
