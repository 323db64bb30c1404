#include "cli/calibration.h"

#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <array>

#include "cli/calibration_pass.h"
#include "cli/progress.h"
#include "cli/sensitivity.h"
#include "cli/text_source.h"
#include "cli/train_model.h"
#include "kvstore/calibrate/build_profile.h"
#include "kvstore/recipe/recipe.h"

namespace lowkey::cli {
namespace {

using kvstore::BasisKind;
using kvstore::Budget;
using kvstore::Profile;
using kvstore::Recipe;
using Windows = std::vector<std::vector<int32_t>>;

// A window is as long as the model's context, and no longer than losses need to show.
constexpr int kLongestWindow = 2048;

// Of recipes/lowkey-levels.yaml, which says why.
constexpr std::array kLevels = {4.5, 3.0, 1.85};

Recipe default_recipe(bool trained) {
  Recipe recipe{.name = "lowkey", .sink_tokens = 4};
  recipe.key.basis = trained ? BasisKind::kTrained : BasisKind::kWeighted;
  recipe.key.quantizer = kernels::Quantizer::kEmbedded;
  recipe.key.width = kvstore::kWidthAuto;
  recipe.value = recipe.key;
  return recipe;
}

// The whole command; members in the order in which they come to be.
class Run {
 public:
  explicit Run(const CalibrationOptions& options) : options_(options) {}

  Result<Calibration> run() {
    LOWKEY_TRY(read());
    LOWKEY_TRY(set_shapes());
    LOWKEY_TRY(check_budgets());
    LOWKEY_TRY(make_bases());
    // Training with codes draws its widths from budgets, and changes what they should be.
    if (options_.train && quantize()) LOWKEY_TRY(make_budgets());
    if (options_.train) LOWKEY_TRY(train());
    if (wants_budgets()) LOWKEY_TRY(make_budgets());
    return Calibration{std::move(profile_), std::move(reports_)};
  }

 private:
  bool quantize() const { return recipe_.key.quantizer == kernels::Quantizer::kEmbedded; }

  // A recipe that keeps as many features, or bits, everywhere takes the bases alone.
  bool wants_budgets() const {
    const auto takes = [](const kvstore::SideDials& side) {
      return side.per_head || side.width == kvstore::kWidthAuto;
    };
    return !options_.budgets.empty() || takes(recipe_.key) || takes(recipe_.value);
  }

  std::vector<std::vector<double>> budgets() const {
    if (!options_.budgets.empty()) return options_.budgets;
    if (!quantize()) return {{0.75}, {0.50}, {0.40}, {0.25}};
    return {{4}, {6}, {8}, {10}, {kLevels.begin(), kLevels.end()}};
  }

  // Before minutes of work: can these be reached at all?
  Status check_budgets() const {
    for (const std::vector<double>& budget : budgets()) {
      if (!quantize()) {
        if (budget.size() > 1 || budget[0] > 1)
          return Error{
              Code::kUsage,
              fmt::format("--budget: recipe {} keeps a share of the features: expected at most 1, found {}",
                          recipe_.name, fmt::join(budget, "-")),
              "budget"};
        continue;
      }
      const kvstore::LossTable free(size_t(profile_.num_banks) * 2 * profile_.vectors_per_side(),
                                    std::vector<kvstore::GroupLoss>(profile_.groups()));
      LOWKEY_ASSIGN(possible, kvstore::allocate_planes(free, budget, frame_, shape_));
    }
    return {};
  }

  Status read() {
    recipe_ = default_recipe(options_.train);
    if (!options_.recipe.empty()) {
      LOWKEY_ASSIGN(recipe, kvstore::read_recipe(options_.recipe));
      recipe_ = std::move(recipe);
    }
    if (!recipe_.needs_profile())
      return Error{Code::kUsage, fmt::format("recipe {} takes no profile", recipe_.name), "recipe"};
    const bool trained =
        recipe_.key.basis == BasisKind::kTrained || recipe_.value.basis == BasisKind::kTrained;
    if (trained != options_.train)
      return Error{Code::kUsage,
                   fmt::format("recipe {}: {}", recipe_.name,
                               trained ? "its bases are trained: add --train"
                                       : "its bases are not trained: no --train"),
                   "train"};
    const worker::WeightStorage weights = worker::parse_weight_storage(options_.weights);
    if (options_.train && worker::rounds_weights(weights))
      return Error{
          Code::kUsage,
          fmt::format("--train: expected the model's own weights, found --weights {}", options_.weights),
          "weights"};
    if (options_.train) {
      LOWKEY_ASSIGN(trainer, load_trainer());
      trainer_ = std::move(trainer);
    }
    LOWKEY_ASSIGN(runner, worker::WindowRunner::load(options_.model_dir,
                                                     {.threads = options_.threads, .weights = weights}));
    runner_ = std::move(runner);
    const worker::ModelConfig& config = runner_->config();
    if (recipe_.join > 0 && config.num_kv_heads % recipe_.join != 0)
      return Error{Code::kUsage,
                   fmt::format("recipe {}: heads.join: expected a divisor of {} KV heads, found {}",
                               recipe_.name, config.num_kv_heads, recipe_.join),
                   "recipe"};
    LOWKEY_ASSIGN(layers,
                  kvstore::make_layer_map(kvstore::LayerShare::kNone, config.num_layers, config.kv_producer));
    layers_ = std::move(layers);
    LOWKEY_ASSIGN(tokenizer, coordinator::Tokenizer::load(options_.model_dir));
    const int length = std::min(config.max_positions, kLongestWindow);
    const auto count = static_cast<int>(std::max<int64_t>(1, options_.tokens / length));
    LOWKEY_ASSIGN(windows, read_windows(*tokenizer, options_.text, length, count));
    windows_ = std::move(windows);
    return {};
  }

  Status set_shapes() {
    const worker::ModelConfig& config = runner_->config();
    LOWKEY_ASSIGN(fingerprint, worker::model_fingerprint(options_.model_dir));
    profile_.model_fingerprint = fingerprint;
    profile_.num_banks = layers_.num_banks();
    profile_.num_kv_heads = config.num_kv_heads;
    profile_.head_dim = config.head_dim;
    profile_.join = recipe_.join == 0 ? config.num_kv_heads : recipe_.join;
    frame_ = {.recipe = recipe_.name,
              .page_tokens = recipe_.page_tokens,
              .sink_tokens = recipe_.sink_tokens,
              .join = profile_.join};
    frame_.key.quantizer = quantize() ? kernels::Quantizer::kEmbedded : kernels::Quantizer::kFull;
    frame_.key.norm = profile_.norm;
    frame_.key.norm_edge = profile_.norm_edge;
    shape_ = config.cache_shape(1, runner_->dtype());
    return {};
  }

  Status make_bases() {
    LOWKEY_ASSIGN(statistics, run_calibration_pass(*runner_, options_.model_dir, layers_, windows_,
                                                   {.join = profile_.join,
                                                    .page_tokens = recipe_.page_tokens,
                                                    .sink_tokens = recipe_.sink_tokens}));
    for (size_t v = 0; v < statistics.size(); ++v) {
      VectorStatistics& s = statistics[v];
      const auto basis = weighted(v)
                             ? kvstore::weighted_basis(s.moments.mean(), s.moments.covariance(), s.metric)
                             : kvstore::pca_basis(s.moments.mean(), s.moments.covariance());
      profile_.vectors.push_back(
          kvstore::make_vector_profile(basis, s.samples, profile_.norm, profile_.norm_edge));
      samples_.push_back(std::move(s.samples));
    }
    profile_.basis = weighted(0) ? "weighted" : "pca";
    profile_.origin = fmt::format("{} windows of {} tokens from {}", windows_.size(), windows_[0].size(),
                                  options_.text.filename().string());
    if (worker::rounds_weights(runner_->config().weights))
      profile_.origin += fmt::format(", weights in {}", options_.weights);
    return {};
  }

  // What is trained starts from the best that is calculated: with codes the weighted pair; without, the
  // orthonormal basis that training keeps orthonormal.
  bool weighted(size_t vector) const {
    const bool is_value = vector / profile_.vectors_per_side() % 2 == 1;
    const BasisKind kind = is_value ? recipe_.value.basis : recipe_.key.basis;
    return kind == BasisKind::kWeighted || (kind == BasisKind::kTrained && quantize());
  }

  Status train() {
    LOWKEY_ASSIGN(model, train_model(options_.model_dir));
    const kvstore::TrainOptions train{.steps = options_.train_steps,
                                      .threads = options_.threads,
                                      .sink_tokens = recipe_.sink_tokens,
                                      .page_tokens = recipe_.page_tokens,
                                      .quantize = quantize()};
    std::unique_ptr<Progress> progress;
    const auto watch = [&](const kvstore::TrainProgress& at) {
      if (!progress) progress = std::make_unique<Progress>("training", at.steps);
      progress->advance(at.step, fmt::format("loss {:.4f}, KL {:.4f}", at.loss, at.kl));
      return true;
    };
    LOWKEY_ASSIGN(trained, trainer_->train(model, windows_, profile_, train, watch));
    trained.origin = profile_.origin + ", trained";
    profile_ = std::move(trained);
    return {};
  }

  Status make_budgets() {
    profile_.budgets.clear();
    reports_.clear();
    return quantize() ? plane_budgets() : rank_budgets();
  }

  // The windows of the loss pass, drawn in proportion to what they lose in a coarse cache: a mean of losses
  // is mostly that of a few kinds of text, which a handful of windows would miss.
  Status choose_loss_windows() {
    if (!loss_windows_.empty()) return {};
    std::vector<kernels::VectorSpec> coarse;
    for (const kvstore::VectorProfile& vector : profile_.vectors)
      coarse.push_back(
          quantize() ? embedded_spec(profile_, vector, std::vector(profile_.groups(), kvstore::GroupBits{2}))
                     : ranked_spec(vector, (profile_.groups() + 1) / 2));
    kernels::PageSpec spec = frame_;
    spec.vectors = std::move(coarse);
    LOWKEY_ASSIGN(layout, kernels::PageLayout::make(spec, shape_));
    Progress progress("losses of windows", std::ssize(windows_));
    std::vector<double> sums;
    for (size_t i = 0; i < windows_.size(); ++i) {
      LOWKEY_ASSIGN(meter, KlMeter::make(*runner_, {&windows_[i], 1}));
      LOWKEY_ASSIGN(loss, meter->measure(layout));
      sums.push_back((sums.empty() ? 0 : sums.back()) + std::max(loss, 1e-9));
      progress.advance(static_cast<int64_t>(i) + 1);
    }
    const size_t count = std::min<size_t>(options_.loss_windows, windows_.size());
    size_t last = windows_.size();
    for (size_t i = 0; i < count; ++i) {
      const double at = sums.back() * (static_cast<double>(i) + 0.5) / static_cast<double>(count);
      const size_t window = std::ranges::lower_bound(sums, at) - sums.begin();
      if (window != last) loss_windows_.push_back(windows_[window]);
      last = window;
    }
    return {};
  }

  Status plane_budgets() {
    std::vector<std::vector<std::array<double, kvstore::kWidths.size()>>> errors;
    for (size_t v = 0; v < samples_.size(); ++v) {
      const kvstore::VectorProfile& vector = profile_.vectors[v];
      errors.push_back(kvstore::code_errors(kvstore::features_of(vector, samples_[v]), vector.scale,
                                            profile_.norm, profile_.norm_edge));
    }
    LOWKEY_TRY(choose_loss_windows());
    LOWKEY_ASSIGN(meter, KlMeter::make(*runner_, loss_windows_));
    const Sensitivity sensitivity(*meter, profile_, frame_, shape_);
    LOWKEY_ASSIGN(losses, sensitivity.planes(errors));
    for (const std::vector<double>& ratios : budgets()) {
      LOWKEY_ASSIGN(budget, kvstore::allocate_planes(losses, ratios, frame_, shape_));
      LOWKEY_TRY(add(sensitivity, std::move(budget)));
    }
    return {};
  }

  Status rank_budgets() {
    LOWKEY_TRY(choose_loss_windows());
    LOWKEY_ASSIGN(meter, KlMeter::make(*runner_, loss_windows_));
    const Sensitivity sensitivity(*meter, profile_, frame_, shape_);
    std::vector<double> keeps;
    for (const std::vector<double>& budget : budgets()) keeps.push_back(budget[0]);
    std::ranges::sort(keeps, std::greater());  // each goes on from the one before
    kvstore::RankChoice ranks{std::vector<int>(profile_.vectors.size(), profile_.groups())};
    for (double keep : keeps) {
      LOWKEY_ASSIGN(losses, sensitivity.ranks(ranks));
      ranks = kvstore::allocate_ranks(losses, ranks, keep);
      LOWKEY_TRY(add(sensitivity,
                     kvstore::budget_of_ranks(fmt::format("keep-{:.2f}", keep), ranks, profile_.groups())));
    }
    return {};
  }

  Status add(const Sensitivity& sensitivity, Budget budget) {
    LOWKEY_ASSIGN(layout, kernels::PageLayout::make(kvstore::spec_of_bits(budget, frame_), shape_));
    const auto n = kvstore::kBudgetTokens;
    const double elements = static_cast<double>(layout.vectors.size()) * profile_.dim() * layout.page_tokens;
    for (int levels = 1; levels <= budget.levels; ++levels) {
      LOWKEY_ASSIGN(loss, sensitivity.of_budget(budget, quantize(), levels));
      uint64_t bytes = 0;
      for (const kernels::Plane& plane : layout.planes)
        if (plane.level < levels) bytes += plane.bytes;
      for (const kernels::VectorLayout& vector : layout.vectors)
        bytes += uint64_t{2} * vector.num_scalars * layout.page_tokens;
      reports_.push_back({levels == budget.levels ? budget.name : fmt::format("{}:{}", budget.name, levels),
                          static_cast<double>(layout.bf16_bytes_for_tokens(n)) /
                              static_cast<double>(layout.bytes_for_tokens(n, levels)),
                          8.0 * static_cast<double>(bytes) / elements, loss});
    }
    profile_.budgets.push_back(std::move(budget));
    return {};
  }

  const CalibrationOptions& options_;
  Recipe recipe_;
  std::unique_ptr<kvstore::Trainer> trainer_;
  std::unique_ptr<worker::WindowRunner> runner_;
  kvstore::LayerMap layers_;
  Windows windows_, loss_windows_;
  Profile profile_;
  std::vector<BudgetReport> reports_;
  kernels::PageSpec frame_;
  kernels::CacheShape shape_;
  std::vector<kvstore::SampleRows> samples_;  // [vector]
};

}  // namespace

Result<Calibration> calibrate(const CalibrationOptions& options) {
  return Run(options).run();
}

}  // namespace lowkey::cli
