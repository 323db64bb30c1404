#include "worker/model/weight_report.h"

#include <spdlog/fmt/fmt.h>

namespace lowkey::worker {

void WeightReport::add(std::string_view kind, const std::string& tensor, int bits, bool as_stored,
                       const kernels::RoundingError& error) {
  Kind& sum = kinds_[std::string(kind)];
  ++sum.matrices;
  sum.bits = bits;
  sum.as_stored = sum.as_stored && as_stored;
  sum.error += error;
  if (error.relative_rms() <= worst_error_) return;
  worst_error_ = error.relative_rms();
  worst_tensor_ = tensor;
}

std::string WeightReport::describe() const {
  std::string text;
  for (const auto& [name, kind] : kinds_) {
    text += fmt::format("{}{} {} bits ", text.empty() ? "" : ", ", name, kind.bits);
    text += kind.as_stored ? "as stored" : fmt::format("{:.3g} %", 100 * kind.error.relative_rms());
  }
  if (!worst_tensor_.empty()) text += fmt::format("; worst: {} {:.3g} %", worst_tensor_, 100 * worst_error_);
  return text;
}

}  // namespace lowkey::worker
