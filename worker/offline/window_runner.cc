#include "worker/offline/window_runner.h"

#include <algorithm>
#include <numeric>

#include "kernels/cpu/cpu_backend.h"
#include "transport/loopback/loopback_comm.h"

namespace lowkey::worker {
namespace {

// Of one step: the group has one rank, so nothing waits for it.
constexpr auto kStepDeadline = std::chrono::hours(1);

}  // namespace

Result<std::unique_ptr<WindowRunner>> WindowRunner::load(const std::filesystem::path& model_dir,
                                                         const WindowRunnerOptions& options) {
  LOWKEY_ASSIGN(config, ModelConfig::read(model_dir));
  config.weights = options.weights;
  auto backend = kernels::make_cpu_backend({.dtype = options.dtype, .threads = options.threads});
  LOWKEY_ASSIGN(model, Model::load(model_dir, config, 0, 1, *backend));
  auto comms = transport::make_loopback_comms(1);
  return std::unique_ptr<WindowRunner>(
      new WindowRunner(std::move(backend), std::move(model), std::move(comms[0])));
}

WindowRunner::WindowRunner(std::unique_ptr<kernels::Backend> backend, std::unique_ptr<Model> model,
                           std::unique_ptr<transport::HostComm> comm)
    : backend_(std::move(backend)),
      model_(std::move(model)),
      host_comm_(std::move(comm)),
      comm_(transport::make_staged_comm(*host_comm_, *backend_)) {}

Status WindowRunner::feed(WindowCache& cache, std::span<const int32_t> tokens, int first_scored,
                          const LogitsSink& sink, const AttentionTap* tap, int step_rows,
                          const SliceDetails& details) {
  LOWKEY_CHECK(step_rows >= 1, "{} rows a step", step_rows);
  const size_t vocab = config().vocab_size;
  while (!tokens.empty()) {
    const int rows = static_cast<int>(std::min<size_t>(tokens.size(), step_rows));
    const int first = cache.length();
    std::vector<int32_t> positions(rows), wanted;
    std::iota(positions.begin(), positions.end(), first);
    for (int row = sink ? std::max(0, first_scored - first) : rows; row < rows; ++row) wanted.push_back(row);
    kernels::SequenceSlice slice = cache.extend(0, rows);
    if (details) details(slice);
    const size_t shard = model_->vocab_shard();
    logits_.resize(wanted.size() * shard);
    const Batch batch{tokens.first(rows), positions, {&slice, 1}, wanted, tap};
    LOWKEY_TRY(model_->forward(batch, cache.layout(), *comm_, Deadline::in(kStepDeadline), logits_));
    for (size_t i = 0; i < wanted.size(); ++i)
      sink(first + wanted[i], std::span<const float>(logits_).subspan(i * shard, vocab));
    tokens = tokens.subspan(rows);
  }
  return {};
}

Status WindowRunner::run(std::span<const int32_t> tokens, const kernels::PageLayout& layout, int first_scored,
                         const LogitsSink& sink, int read_levels) {
  WindowCache cache(layout, read_levels);
  return feed(cache, tokens, first_scored, sink);
}

}  // namespace lowkey::worker
