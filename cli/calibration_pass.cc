#include "cli/calibration_pass.h"

#include <algorithm>
#include <cmath>

#include "cli/progress.h"
#include "kernels/page/dtype.h"
#include "worker/model/weight_source.h"

namespace lowkey::cli {
namespace {

using kvstore::SampleRows;
using worker::ModelConfig;

// Queries of a window that count for the metric: their sum is an average over all windows.
constexpr int kQueriesPerWindow = 128;
// Rows kept of every vector for scales and code errors: their error is 1 % from a few thousand on.
constexpr int64_t kMostSamples = 4096;
constexpr int64_t kMostSampleBytes = int64_t{512} << 20;  // of all vectors

Eigen::MatrixXf to_matrix(const worker::TensorView& view) {
  Eigen::MatrixXf out(view.rows, view.cols);
  for (int64_t r = 0; r < view.rows; ++r) {
    for (int64_t c = 0; c < view.cols; ++c)
      out(r, c) = kernels::load_element(view.data, view.dtype, static_cast<size_t>(r * view.cols + c));
  }
  return out;
}

// W_o^T W_o of every query head of one layer.
Result<std::vector<Eigen::MatrixXf>> output_grams(const worker::WeightSource& weights,
                                                  const ModelConfig& config, int layer) {
  LOWKEY_ASSIGN(view, weights.matrix(fmt::format("model.layers.{}.self_attn.o_proj.weight", layer),
                                     config.hidden_size, config.num_heads * config.head_dim));
  const Eigen::MatrixXf projection = to_matrix(view);
  std::vector<Eigen::MatrixXf> grams;
  for (int head = 0; head < config.num_heads; ++head) {
    const auto slice = projection.middleCols(head * config.head_dim, config.head_dim);
    grams.emplace_back(slice.transpose() * slice);
  }
  return grams;
}

// Takes every layer's q, k and v of one window after the other.
class Collector {
 public:
  Collector(const ModelConfig& config, const kvstore::LayerMap& layers, const CalibrationPassOptions& options,
            std::vector<std::vector<Eigen::MatrixXf>> grams, int64_t tokens)
      : config_(config),
        layers_(layers),
        options_(options),
        grams_(std::move(grams)),
        metrics_(layers.num_banks(), kvstore::AttentionMetric(config.num_kv_heads, config.head_dim)) {
    const int64_t vectors = int64_t{layers.num_banks()} * 2 * per_side();
    const int64_t most = std::clamp<int64_t>(kMostSampleBytes / (vectors * dim() * 4), 1, kMostSamples);
    sample_step_ = (tokens + most - 1) / most;
    for (int64_t v = 0; v < vectors; ++v)
      statistics_.push_back({kvstore::Moments(dim()), SampleRows(0, dim()), {}});
  }

  void see(int layer, const kernels::Tensor& q, const kernels::Tensor& k, const kernels::Tensor& v) {
    const int bank = layers_.bank_of_layer[layer];
    const int first = q.rows / 2;
    metrics_[bank].add({.tokens = q.rows,
                        .num_heads = config_.num_heads,
                        .num_kv_heads = config_.num_kv_heads,
                        .head_dim = config_.head_dim,
                        .q = q.as<float>(),
                        .k = k.as<float>(),
                        .v = v.as<float>(),
                        .scale = config_.attention_scale()},
                       {.first_query = first,
                        .query_step = std::max(1, (q.rows - first) / kQueriesPerWindow),
                        .page_tokens = options_.page_tokens,
                        .sink_tokens = options_.sink_tokens},
                       grams_[layer]);
    if (layers_.producer_of_bank[bank] != layer) return;
    for (int side = 0; side < 2; ++side)
      for (int index = 0; index < per_side(); ++index)
        add_rows(statistics_[(bank * 2 + side) * per_side() + index], (side == 0 ? k : v), index);
  }

  std::vector<VectorStatistics> finish() {
    for (int bank = 0; bank < layers_.num_banks(); ++bank)
      for (int side = 0; side < 2; ++side)
        for (int index = 0; index < per_side(); ++index) {
          Eigen::MatrixXd& metric = statistics_[(bank * 2 + side) * per_side() + index].metric;
          metric = Eigen::MatrixXd::Zero(dim(), dim());
          const int d = config_.head_dim;
          for (int h = 0; h < options_.join; ++h) {
            const int head = index * options_.join + h;
            metric.block(h * d, h * d, d, d) =
                side == 0 ? metrics_[bank].key(head) : metrics_[bank].value(head);
          }
        }
    return std::move(statistics_);
  }

 private:
  int dim() const { return options_.join * config_.head_dim; }
  int per_side() const { return config_.num_kv_heads / options_.join; }

  // Joined heads are adjacent, so a stored vector is a run of columns.
  void add_rows(VectorStatistics& out, const kernels::Tensor& rows, int index) {
    const float* data = rows.as<float>() + int64_t{index} * dim();
    const int skip = std::min(options_.sink_tokens, rows.rows);
    out.moments.add(data + int64_t{skip} * rows.cols, rows.rows - skip, rows.cols);
    // The same tokens of all vectors, counted over all windows.
    const int64_t before = out.moments.count() - (rows.rows - skip);
    std::vector<const float*> chosen;
    for (int row = skip; row < rows.rows; ++row)
      if ((before + row - skip) % sample_step_ == 0) chosen.push_back(data + int64_t{row} * rows.cols);
    const Eigen::Index old = out.samples.rows();
    out.samples.conservativeResize(old + std::ssize(chosen), Eigen::NoChange);
    for (size_t i = 0; i < chosen.size(); ++i)
      out.samples.row(old + static_cast<Eigen::Index>(i)) =
          Eigen::Map<const Eigen::RowVectorXf>(chosen[i], dim());
  }

  const ModelConfig& config_;
  const kvstore::LayerMap& layers_;
  const CalibrationPassOptions& options_;
  const std::vector<std::vector<Eigen::MatrixXf>> grams_;  // [layer][head]
  std::vector<kvstore::AttentionMetric> metrics_;          // [bank]
  std::vector<VectorStatistics> statistics_;
  int64_t sample_step_ = 1;
};

}  // namespace

Result<std::vector<VectorStatistics>> run_calibration_pass(worker::WindowRunner& runner,
                                                           const std::filesystem::path& model_dir,
                                                           const kvstore::LayerMap& layers,
                                                           std::span<const std::vector<int32_t>> windows,
                                                           const CalibrationPassOptions& options) {
  const ModelConfig& config = runner.config();
  LOWKEY_ASSIGN(weights, worker::WeightSource::open(model_dir, config));
  std::vector<std::vector<Eigen::MatrixXf>> grams;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    LOWKEY_ASSIGN(heads, output_grams(*weights, config, layer));
    grams.push_back(std::move(heads));
  }
  const auto length = static_cast<int>(windows[0].size());
  Collector collector(config, layers, options, std::move(grams), std::ssize(windows) * length);
  const worker::AttentionTap tap = [&](int layer, const kernels::Tensor& q, const kernels::Tensor& k,
                                       const kernels::Tensor& v) { collector.see(layer, q, k, v); };
  LOWKEY_ASSIGN(exact, kernels::PageLayout::make({}, config.cache_shape(1, runner.dtype())));
  Progress progress("moments", std::ssize(windows));
  for (size_t i = 0; i < windows.size(); ++i) {
    worker::WindowCache cache(exact);
    LOWKEY_TRY(runner.feed(cache, windows[i], 0, nullptr, &tap, length));
    progress.advance(static_cast<int64_t>(i) + 1);
  }
  return collector.finish();
}

}  // namespace lowkey::cli
