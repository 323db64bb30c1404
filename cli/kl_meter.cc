#include "cli/kl_meter.h"

#include <Eigen/Core>
#include <algorithm>

namespace lowkey::cli {
namespace {

using Row = Eigen::Map<const Eigen::ArrayXf>;

Row row_of(std::span<const float> values) {
  return {values.data(), static_cast<Eigen::Index>(values.size())};
}

double log_sum_exp(const Row& logits) {
  const float top = logits.maxCoeff();
  return top + std::log(static_cast<double>((logits - top).exp().sum()));
}

kernels::CacheShape shape_of(const worker::WindowRunner& runner) {
  return runner.config().cache_shape(1, runner.dtype());
}

}  // namespace

KlMeter::KlMeter(worker::WindowRunner& runner, std::span<const std::vector<int32_t>> windows)
    : runner_(runner), windows_(windows) {}

Result<std::unique_ptr<KlMeter>> KlMeter::make(worker::WindowRunner& runner,
                                               std::span<const std::vector<int32_t>> windows) {
  LOWKEY_CHECK(!windows.empty(), "no windows");
  std::unique_ptr<KlMeter> meter(new KlMeter(runner, windows));
  const size_t vocab = runner.config().vocab_size;
  const size_t length = windows[0].size(), scored = length - length / 2;
  const size_t bytes = windows.size() * scored * vocab * sizeof(float);
  meter->step_ = static_cast<int>((bytes + kMostBytes - 1) / kMostBytes);
  LOWKEY_ASSIGN(exact, kernels::PageLayout::make({}, shape_of(runner)));
  for (const std::vector<int32_t>& window : windows) {
    const auto keep = [&](int position, std::span<const float> logits) {
      if (position % meter->step_ != 0) return;
      const Row row = row_of(logits);
      const auto log_total = static_cast<float>(log_sum_exp(row));
      const size_t begin = meter->probabilities_.size();
      meter->probabilities_.resize(begin + vocab);
      Eigen::Map<Eigen::ArrayXf> p(meter->probabilities_.data() + begin, static_cast<Eigen::Index>(vocab));
      p = (row - log_total).exp();
      meter->negative_entropy_ += (p * (row - log_total)).sum();
      ++meter->count_;
    };
    LOWKEY_TRY(runner.run(window, exact, static_cast<int>(length / 2), keep));
  }
  return meter;
}

Result<double> KlMeter::measure(const kernels::PageLayout& layout, int read_levels) const {
  const size_t vocab = runner_.config().vocab_size;
  double cross = 0;  // sum of p log q
  size_t at = 0;
  for (const std::vector<int32_t>& window : windows_) {
    const auto add = [&](int position, std::span<const float> logits) {
      if (position % step_ != 0) return;
      const Row row = row_of(logits);
      const Row p(probabilities_.data() + at, static_cast<Eigen::Index>(vocab));
      cross += (p * (row - static_cast<float>(log_sum_exp(row)))).sum();
      at += vocab;
    };
    LOWKEY_TRY(runner_.run(window, layout, static_cast<int>(window.size() / 2), add, read_levels));
  }
  return (negative_entropy_ - cross) / static_cast<double>(count_);
}

}  // namespace lowkey::cli
