#include "cli/evaluate_run.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "base/deadline.h"
#include "cli/model_shape.h"
#include "cli/recall_task.h"
#include "cli/text_source.h"
#include "coordinator/text/tokenizer.h"
#include "worker/offline/cache_probe.h"
#include "worker/offline/recipe_sequence.h"
#include "worker/offline/window_score.h"

namespace lowkey::cli {

using kernels::DType;
using kernels::PageLayout;
using kvstore::ResolvedCache;
using worker::RecipeSequence;

namespace {

constexpr int kProbeTokens = 8192;  // a shorter cache says little about what reading one costs
constexpr double kProbeSeconds = 0.5;
constexpr int kEncodeRounds = 3;

// One recipe, and what was found of it so far.
struct Candidate {
  ResolvedCache cache;       // in the engine's dtype
  ResolvedCache bf16_cache;  // what bytes are counted of
  int levels = 1;            // that are read of every page
  worker::QualityScore score;
  int64_t first_asked = 0, first_known = 0, later_asked = 0, later_known = 0;
  double attention_ratio = 0, encode_share = 0;
};

class Evaluation {
 public:
  Evaluation(const EvaluateOptions& options, const EvaluateProgress& progress)
      : options_(options), progress_(progress) {}

  Result<std::vector<EvaluateRow>> run() {
    LOWKEY_TRY(load());

    total_ = static_cast<int>((windows_.size() + tasks_.size() + 1) * candidates_.size());
    for (const auto& window : windows_) LOWKEY_TRY(score(window));
    for (const RecallTask& task : tasks_) LOWKEY_TRY(recall(task));
    for (Candidate& candidate : candidates_) LOWKEY_TRY(time(candidate));
    std::vector<EvaluateRow> rows;
    for (const Candidate& candidate : candidates_) rows.push_back(row(candidate));
    return rows;
  }

 private:
  Status load() {
    LOWKEY_TRY(load_models());
    const worker::ModelConfig& config = runner_->config();
    context_ = options_.context == 0 ? config.max_positions : options_.context;
    if (context_ < 2 || context_ > config.max_positions)
      return Error{Code::kUsage,
                   fmt::format("--context: expected 2 to {} tokens, as the model says, found {}",
                               config.max_positions, context_)};
    LOWKEY_ASSIGN(tokenizer, coordinator::Tokenizer::load(options_.model));
    // One token more than the context: what the last position should have said.
    LOWKEY_ASSIGN(windows, read_windows(*tokenizer, options_.text, context_ + 1, options_.windows));
    windows_ = std::move(windows);
    tasks_ = make_recall_tasks(*tokenizer, windows_, context_);
    LOWKEY_ASSIGN(fingerprint, worker::model_fingerprint(options_.model));
    LOWKEY_ASSIGN(exact, resolve({}, fingerprint, options_.dtype));
    exact_ = std::move(exact);
    for (const auto& file : options_.recipes) {
      LOWKEY_ASSIGN(recipe, kvstore::read_recipe(file));
      LOWKEY_ASSIGN(cache, resolve(recipe, fingerprint, options_.dtype));
      LOWKEY_ASSIGN(bf16, resolve(recipe, fingerprint, DType::kBf16));
      for (int levels = 1; levels <= cache.pages.num_levels; ++levels)
        candidates_.push_back({.cache = cache, .bf16_cache = bf16, .levels = levels});
    }
    return {};
  }

  Status load_models() {
    worker::WindowRunnerOptions held{.dtype = options_.dtype,
                                     .threads = options_.threads,
                                     .weights = worker::parse_weight_storage(options_.weights)};
    LOWKEY_ASSIGN(runner, worker::WindowRunner::load(options_.model, held));
    runner_ = std::move(runner);
    if (!worker::rounds_weights(held.weights)) return {};
    held.weights = worker::WeightStorage::kAuto;
    LOWKEY_ASSIGN(reference, worker::WindowRunner::load(options_.model, held));
    own_weights_ = std::move(reference);
    return {};
  }

  worker::WindowRunner& reference() { return own_weights_ ? *own_weights_ : *runner_; }

  Result<ResolvedCache> resolve(const kvstore::Recipe& recipe, const Hash128& fingerprint, DType dtype) {
    return kvstore::resolve_files(recipe, recipe.needs_profile() ? options_.profile : "", options_.model,
                                  model_shape(runner_->config(), fingerprint, dtype), 0, 1);
  }

  Status score(const std::vector<int32_t>& window) {
    const std::span<const int32_t> tokens = std::span(window).first(context_);
    const int middle = context_ / 2;
    worker::ExactAnswers exact(runner_->config().vocab_size);
    LOWKEY_TRY(reference().run(tokens, exact_.pages, middle,
                               [&](int, std::span<const float> logits) { exact.add(logits); }));
    for (Candidate& candidate : candidates_) {
      RecipeSequence sequence(*runner_, candidate.cache, candidate.levels);
      LOWKEY_TRY(sequence.prompt(tokens.first(middle), middle, nullptr));
      LOWKEY_TRY(
          sequence.extend(tokens.subspan(middle), middle, [&](int position, std::span<const float> logits) {
            candidate.score.add(logits, exact, position - middle, window[position + 1]);
          }));
      step();
    }
    return {};
  }

  Status recall(const RecallTask& task) {
    for (Candidate& candidate : candidates_) {
      RecipeSequence sequence(*runner_, candidate.cache, candidate.levels);
      LOWKEY_ASSIGN(known, ask(sequence, task));
      ++candidate.first_asked;
      candidate.first_known += known[0];
      candidate.later_asked += std::ssize(known) - 1;
      candidate.later_known += std::count(known.begin() + 1, known.end(), true);
      step();
    }
    return {};
  }

  Status time(Candidate& candidate) {
    candidate.attention_ratio =
        worker::attention_ratio(runner_->backend(), candidate.cache, candidate.levels, exact_,
                                runner_->config().num_heads, std::max(context_, kProbeTokens), kProbeSeconds);
    double prefill = HUGE_VAL, encode = HUGE_VAL;
    for (int round = 0; round < kEncodeRounds; ++round) {
      RecipeSequence sequence(*runner_, candidate.cache);
      const TimePoint start = Clock::now();
      LOWKEY_TRY(sequence.prompt(std::span(windows_[0]).first(context_), context_, nullptr));
      prefill = std::min(prefill, seconds(Clock::now() - start));
      encode = std::min(encode, sequence.move_seconds());
    }
    // Pages are encoded by all threads of the pool, a stored vector each.
    if (candidate.cache.archive.empty())
      encode = worker::encode_seconds(candidate.cache.pages, context_, kEncodeRounds) / options_.threads;
    candidate.encode_share = encode / prefill;
    step();
    return {};
  }

  void step() {
    ++done_;
    if (progress_) progress_(done_, total_);
  }

  EvaluateRow row(const Candidate& candidate) const {
    const ResolvedCache& cache = candidate.bf16_cache;
    const uint64_t half = static_cast<uint64_t>(context_) / 2;
    const bool whole = candidate.levels == cache.pages.num_levels;
    const uint64_t bytes = whole ? cache.bytes_for(half, context_ - half)
                                 : cache.pages.bytes_for_tokens(context_, candidate.levels);
    const double layers_per_bank =
        static_cast<double>(runner_->config().num_layers) / cache.layers.num_banks();
    const std::string& name = cache.recipe.name;
    EvaluateRow row{.recipe = whole ? name : fmt::format("{}:{}", name, candidate.levels),
                    .weights = options_.weights,
                    .ratio = layers_per_bank *
                             static_cast<double>(cache.pages.bf16_bytes_for_tokens(context_)) /
                             static_cast<double>(bytes),
                    .bits_per_element = bits_per_element(cache, candidate.levels),
                    .kl = candidate.score.kl(),
                    .top1 = candidate.score.top1(),
                    .ppl = candidate.score.perplexity(),
                    .ppl_exact = candidate.score.exact_perplexity(),
                    .attention_ratio = candidate.attention_ratio,
                    .encode_share = candidate.encode_share,
                    .context = context_,
                    .tokens = candidate.score.positions()};
    if (candidate.first_asked > 0) {
      row.recall_first = double(candidate.first_known) / candidate.first_asked;
      row.recall_later = double(candidate.later_known) / candidate.later_asked;
    }
    return row;
  }

  const EvaluateOptions& options_;
  const EvaluateProgress& progress_;
  std::unique_ptr<worker::WindowRunner> runner_;
  std::unique_ptr<worker::WindowRunner> own_weights_;  // the same model, where runner_'s weights are rounded
  int context_ = 0;
  std::vector<std::vector<int32_t>> windows_;  // one token longer than the context
  std::vector<RecallTask> tasks_;
  ResolvedCache exact_;
  std::vector<Candidate> candidates_;
  int done_ = 0, total_ = 0;
};

}  // namespace

double bits_per_element(const ResolvedCache& cache, int levels) {
  const bool archive = !cache.archive.empty();
  double bytes = 0, elements = 0;
  const auto add = [&](const PageLayout& layout) {
    for (int level = 0; level < levels; ++level) bytes += layout.slab_bytes[level];
    elements += 2.0 * layout.num_banks * layout.num_kv_heads * layout.head_dim * layout.page_tokens;
  };
  if (!archive) add(cache.pages);
  for (const PageLayout& layout : cache.archive) add(layout);
  return 8 * bytes / elements;
}

Result<std::vector<EvaluateRow>> evaluate(const EvaluateOptions& options, const EvaluateProgress& progress) {
  return Evaluation(options, progress).run();
}

}  // namespace lowkey::cli
