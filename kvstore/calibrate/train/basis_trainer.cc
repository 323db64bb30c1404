#include "kvstore/calibrate/train/basis_trainer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "kvstore/calibrate/train/coded_cache.h"
#include "kvstore/calibrate/train/frozen_decoder.h"

namespace lowkey::kvstore {

using torch::Tensor;

namespace {

// What can be trained and on what: errors are the caller's to print.
Status check(const TrainModel& model, std::span<const std::vector<int32_t>> windows, const Profile& profile,
             const TrainOptions& options) {
  const auto bad = [](std::string what) { return Error{Code::kUsage, "training: " + std::move(what)}; };
  if (windows.empty()) return bad("no windows of text");
  if (static_cast<int64_t>(windows[0].size()) < 2 * options.page_tokens)
    return bad("windows of " + std::to_string(windows[0].size()) + " tokens; expected at least two pages");
  if (static_cast<int>(windows[0].size()) > model.max_positions)
    return bad("windows of " + std::to_string(windows[0].size()) + " tokens; the model has " +
               std::to_string(model.max_positions) + " positions");
  for (const std::vector<int32_t>& window : windows)
    if (window.size() != windows[0].size()) return bad("windows of different lengths");
  if (options.sink_tokens > options.page_tokens) return bad("a sink longer than a page");
  if (profile.num_kv_heads != model.num_kv_heads || profile.head_dim != model.head_dim ||
      profile.vectors.empty())
    return bad("the initial profile is of another model");
  return {};
}

// Windows are cut to whole pages.
FrozenDecoder::Window to_window(const std::vector<int32_t>& window, int page_tokens) {
  const int64_t tokens = static_cast<int64_t>(window.size()) / page_tokens * page_tokens;
  return {
      torch::from_blob(const_cast<int32_t*>(window.data()), {1, tokens}, torch::kInt32).to(torch::kInt64)};
}

Tensor log_probabilities(const Tensor& logits) {
  return torch::log_softmax(logits[0], -1);
}

Tensor divergence(const Tensor& exact, const Tensor& coded) {
  return (exact.exp() * (exact - coded)).sum(-1).mean();
}

Tensor cross_entropy(const Tensor& log_p, const Tensor& next) {
  return -log_p.slice(0, 0, next.size(0)).gather(1, next.unsqueeze(1)).mean();
}

// Bits per [vector][group] of a budget, all levels together.
Tensor budget_bits(const Budget& budget) {
  const auto groups = static_cast<int64_t>(budget.bits[0].size());
  Tensor bits = torch::zeros({static_cast<int64_t>(budget.bits.size()), groups}, torch::kInt64);
  auto at = bits.accessor<int64_t, 2>();
  for (size_t v = 0; v < budget.bits.size(); ++v) {
    for (int64_t g = 0; g < groups; ++g) {
      for (uint8_t added : budget.bits[v][g]) at[v][g] += added;
      at[v][g] = std::min(at[v][g], CodedCache::kExact);
    }
  }
  return bits;
}

// The random part of a step.
class StepDraw {
 public:
  StepDraw(const Profile& initial, bool quantize, uint64_t seed) : random_(seed) {
    if (!quantize) return;
    for (const Budget& budget : initial.budgets) budgets_.push_back(budget_bits(budget));
    means_.resize(budgets_.size());
  }

  // Position of a window's first token. Keys turn with their position, some by less than one revolution over
  // the whole context: bases that never saw the later positions fail there.
  int64_t start(int64_t last, int64_t page_tokens) {
    return static_cast<int64_t>(below(last / page_tokens + 1)) * page_tokens;
  }

  // What every vector keeps: its own prefix, or the widths of one budget for all.
  Tensor kept(int64_t vectors, int64_t groups) {
    if (!budgets_.empty()) return budgets_[budget_ = below(budgets_.size())];
    Tensor bits = torch::zeros({vectors, groups}, torch::kInt64);
    for (int64_t v = 0; v < vectors; ++v)
      bits[v].slice(0, 0, static_cast<int64_t>(below(groups)) + 1).fill_(CodedCache::kExact);
    return bits;
  }

  // The weight of a loss under what kept() gave last. Budgets' losses lie a factor of a hundred apart;
  // unweighted, the smallest budget would spoil the bases for all others. In units of its own running mean
  // each counts alike.
  double weight(double kl) {
    if (budgets_.empty()) return 1;
    double& mean = means_[budget_];
    mean = mean == 0 ? kl : 0.9 * mean + 0.1 * kl;
    return mean > 0 ? 0.01 / mean : 1;
  }

 private:
  uint64_t below(uint64_t n) { return random_() % n; }

  std::mt19937_64 random_;
  std::vector<Tensor> budgets_;
  size_t budget_ = 0;
  std::vector<double> means_;  // [budget] KL, running
};

double learning_rate(double peak, int64_t step, int64_t steps) {
  const int64_t warm_up = std::min<int64_t>(20, steps / 10 + 1);
  const double cosine = 0.5 + 0.5 * std::cos(std::numbers::pi * static_cast<double>(step) / steps);
  return peak * std::min(1.0, static_cast<double>(step + 1) / warm_up) * cosine;
}

// Root mean square of every feature over some windows, for codes on bases that were trained without them.
Tensor feature_scales(const FrozenDecoder& decoder, const CodedCache& cache, const Profile& profile,
                      std::span<const std::vector<int32_t>> windows, int page_tokens) {
  const torch::NoGradGuard no_grad;
  Tensor sums = torch::zeros({cache.num_vectors(), profile.dim()});
  const auto count = profile.vectors_per_side();
  const FrozenDecoder::Tap tap = [&](int bank, const Tensor& k, const Tensor& v) {
    for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
      const Tensor y = cache.features(bank, side, side == kernels::Side::kKey ? k : v);
      sums.narrow(0, static_cast<int64_t>(profile.index(bank, side, 0)), count) +=
          y.square().mean(std::vector<int64_t>{0, 2});
    }
  };
  const size_t used = std::min<size_t>(windows.size(), 16);
  for (size_t i = 0; i < used; ++i) decoder.forward(to_window(windows[i], page_tokens), {}, 0, &tap);
  return (sums / static_cast<double>(used)).sqrt();
}

}  // namespace

Result<Profile> BasisTrainer::train(const TrainModel& model, std::span<const std::vector<int32_t>> windows,
                                    const Profile& initial, const TrainOptions& options,
                                    const TrainWatcher& watcher) {
  if (Status usable = check(model, windows, initial, options); !usable.ok()) return usable.error();
  if (options.quantize && initial.budgets.empty())
    return Error{Code::kUsage, "training with codes: the initial profile has no budgets"};
  torch::set_num_threads(std::max(1, options.threads));
  const Result<FrozenDecoder> decoder = FrozenDecoder::load(model);
  if (!decoder.ok()) return decoder.error();

  CodedCache cache(initial);
  StepDraw draw(initial, options.quantize, options.seed);
  const std::vector<Tensor> parameters = cache.parameters(options.quantize);
  const int64_t steps = options.steps > 0 ? options.steps : kDefaultSteps;
  const double peak = options.learning_rate > 0 ? options.learning_rate : kDefaultLearningRate;
  torch::optim::AdamW optimizer(parameters,
                                torch::optim::AdamWOptions(peak).betas({0.9, 0.95}).weight_decay(0));
  const FrozenDecoder::CacheView view{&cache, options.sink_tokens, options.page_tokens};
  size_t next_window = 0;
  for (int64_t step = 0; step < steps; ++step) {
    for (auto& group : optimizer.param_groups())
      static_cast<torch::optim::AdamWOptions&>(group.options()).lr(learning_rate(peak, step, steps));
    optimizer.zero_grad();
    TrainProgress progress{.step = step + 1, .steps = steps};
    for (int i = 0; i < options.batch; ++i) {
      FrozenDecoder::Window window = to_window(windows[next_window++ % windows.size()], options.page_tokens);
      window.start = draw.start(model.max_positions - window.tokens.size(1), options.page_tokens);
      cache.set_bits(draw.kept(cache.num_vectors(), cache.num_groups()));
      cache.update();
      Tensor exact;
      {
        const torch::NoGradGuard no_grad;
        exact = log_probabilities(decoder->forward(window, {}));
      }
      const Tensor coded = log_probabilities(decoder->forward(window, view));
      const Tensor kl = divergence(exact, coded);
      const Tensor loss = options.kl_weight * kl +
                          (1 - options.kl_weight) * cross_entropy(coded, window.tokens[0].slice(0, 1));
      (loss * (draw.weight(kl.item<double>()) / options.batch)).backward();
      progress.loss += loss.item<double>() / options.batch;
      progress.kl += kl.item<double>() / options.batch;
    }
    if (!std::isfinite(progress.loss))
      return Error{Code::kInternal,
                   "training: the loss of step " + std::to_string(step + 1) + " is no number"};
    torch::nn::utils::clip_grad_norm_(parameters, 1.0);
    optimizer.step();
    if (watcher && !watcher(progress)) break;
  }
  if (!options.quantize) {
    const torch::NoGradGuard no_grad;
    cache.update();
    cache.set_scales(feature_scales(*decoder, cache, initial, windows, options.page_tokens));
  }
  return cache.profile();
}

Result<std::vector<CodedLoss>> BasisTrainer::measure(const TrainModel& model,
                                                     std::span<const std::vector<int32_t>> windows,
                                                     const Profile& profile, std::span<const Budget> budgets,
                                                     const TrainOptions& options) {
  if (Status usable = check(model, windows, profile, options); !usable.ok()) return usable.error();
  torch::set_num_threads(std::max(1, options.threads));
  const torch::NoGradGuard no_grad;
  const Result<FrozenDecoder> decoder = FrozenDecoder::load(model);
  if (!decoder.ok()) return decoder.error();
  CodedCache cache(profile);
  cache.update();
  const FrozenDecoder::CacheView view{&cache, options.sink_tokens, options.page_tokens};
  std::vector<CodedLoss> losses(budgets.size());
  for (const std::vector<int32_t>& tokens : windows) {
    const FrozenDecoder::Window window = to_window(tokens, options.page_tokens);
    const int64_t half = window.tokens.size(1) / 2;
    const Tensor next = window.tokens[0].slice(0, half + 1);
    const Tensor exact = log_probabilities(decoder->forward(window, {}, half));
    for (size_t i = 0; i < budgets.size(); ++i) {
      cache.set_bits(budget_bits(budgets[i]));
      const Tensor coded = log_probabilities(decoder->forward(window, view, half));
      const double share = 1.0 / static_cast<double>(windows.size());
      losses[i].kl += share * divergence(exact, coded).item<double>();
      losses[i].top1 +=
          share * (exact.argmax(-1) == coded.argmax(-1)).to(torch::kFloat32).mean().item<double>();
      losses[i].nll += share * cross_entropy(coded, next).item<double>();
      losses[i].exact_nll += share * cross_entropy(exact, next).item<double>();
    }
  }
  return losses;
}

}  // namespace lowkey::kvstore
