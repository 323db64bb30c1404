// The first pass of `lowkey calibrate`: what the model's keys, values and queries are like on windows of
// text.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "base/result.h"
#include "kvstore/calibrate/attention_metric.h"
#include "kvstore/calibrate/feature_coder.h"
#include "kvstore/calibrate/moments.h"
#include "kvstore/dials/layers/layer_map.h"
#include "worker/offline/window_runner.h"

namespace lowkey::cli {

struct VectorStatistics {
  kvstore::Moments moments;
  kvstore::SampleRows samples;  // evenly spaced rows
  Eigen::MatrixXd metric;       // what an error costs (attention_metric.h), block-diagonal over joined heads
};

struct CalibrationPassOptions {
  int join = 1;
  int page_tokens = 32;
  int sink_tokens = 0;  // these tokens of a window are exact, and not counted
};

// [bank][side][vector], as in a profile. `windows`: of equal length.
Result<std::vector<VectorStatistics>> run_calibration_pass(worker::WindowRunner& runner,
                                                           const std::filesystem::path& model_dir,
                                                           const kvstore::LayerMap& layers,
                                                           std::span<const std::vector<int32_t>> windows,
                                                           const CalibrationPassOptions& options);

}  // namespace lowkey::cli
