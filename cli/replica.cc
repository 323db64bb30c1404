#include "cli/replica.h"

#include <spdlog/spdlog.h>

#include "base/bytes.h"
#include "base/version.h"
#include "cli/model_shape.h"
#include "cli/serve_options.h"
#include "kvstore/recipe/recipe.h"
#include "monitoring/metrics.h"
#include "worker/model/decoder_weights.h"

namespace lowkey::cli {
namespace {

// Of a GPU whose KV budget is not given: what stays free for a step's activations and logits, the work space
// of matrix products, and whoever else uses the device.
constexpr double kGpuShare = 0.85;

// Equal on all ranks: slab ids must mean the same everywhere.
Result<uint64_t> kv_budget(const Job& job, const worker::ModelConfig& config, kernels::DType dtype) {
  if (!job.devices.cuda) return job.share.kv_bytes;
  const uint64_t weights = worker::weight_bytes(config, 0, job.plan.tp, dtype);
  const auto usable = static_cast<uint64_t>(kGpuShare * static_cast<double>(job.devices.free_bytes));
  const uint64_t wanted = job.share.kv_bytes;
  if (wanted == 0 && usable > weights) return usable - weights;
  if (wanted > 0 && wanted + weights <= job.devices.free_bytes) return wanted;
  const std::string what = wanted == 0 ? "nothing is left for the KV cache"
                                       : fmt::format("--kv-bytes: no room for {}", format_bytes(wanted));
  return Error{Code::kUsage,
               fmt::format("{} beside {} of weights: {} are free on the GPU for each of its workers", what,
                           format_bytes(weights), format_bytes(job.devices.free_bytes)),
               "kv-bytes"};
}

Result<worker::Device> open_device(const Job& job, kernels::DType dtype) {
  if (!job.devices.cuda) return worker::Device::cpu(dtype, job.share.threads);
  return worker::Device::cuda(job.devices.survey, job.devices.choice, dtype);
}

}  // namespace

Result<Replica> load_replica(const Job& job) {
  Replica replica;
  const kernels::DType dtype = dtype_of(job.config);
  LOWKEY_ASSIGN(config, served_config(job.config));
  LOWKEY_ASSIGN(device, open_device(job, dtype));
  replica.device = std::move(device);
  kernels::Backend& backend = *replica.device.backend;
  if (worker::rounds_weights(config.weights) && !backend.keeps_few_bits())
    return Error{
        Code::kUsage,
        fmt::format("--weights {}: expected --device cpu, found {}", job.config.weights, replica.device.name),
        "weights"};
  LOWKEY_ASSIGN(recipe, kvstore::read_recipe(job.config.recipe, backend.page_tokens()));
  if (config.num_kv_heads % job.plan.tp != 0) {
    return Error{
        Code::kUsage,
        fmt::format(
            "{} workers a replica (--tp, or what -n leaves): expected a divisor of the model's {} KV heads",
            job.plan.tp, config.num_kv_heads),
        "tp"};
  }
  LOWKEY_ASSIGN(fingerprint, worker::model_fingerprint(job.config.model));
  LOWKEY_ASSIGN(cache, kvstore::resolve_files(recipe, job.config.profile, job.config.model,
                                              model_shape(config, fingerprint, dtype),
                                              job.self().replica_rank, job.plan.tp));
  LOWKEY_ASSIGN(budget, kv_budget(job, config, dtype));
  LOWKEY_ASSIGN(model,
                worker::Model::load(job.config.model, config, job.self().replica_rank, job.plan.tp, backend));
  kvstore::PageMemoryOptions options{
      .budget = budget, .archive = cache.archive_spec(), .max_tokens = uint64_t(config.max_positions)};
  if (!backend.host_accessible())
    options.allocate = [&backend](uint64_t bytes) { return backend.allocate(bytes); };
  LOWKEY_ASSIGN(memory, kvstore::PageMemory::make(cache.pages, std::move(options)));
  replica.config = std::move(config);
  replica.cache = std::move(cache);
  replica.model_fingerprint = worker::held_fingerprint(fingerprint, replica.config);
  replica.model = std::move(model);
  replica.memory = std::move(memory);
  return replica;
}

void report_replica(const Job& job, const Replica& replica, monitoring::Metrics& metrics) {
  metrics.set(monitoring::Metric::kWeightBytes, static_cast<double>(replica.model->packed_bytes()));
  const worker::WeightReport& weights = replica.model->weight_report();
  for (const auto& [name, kind] : weights.kinds())
    metrics.set(monitoring::Metric::kWeightError, kind.error.relative_rms(), {{"kind", name}});
  if (weights.cut_halves())
    spdlog::info(
        "weights in F16 are held in bf16, whose fractions have 3 bits fewer; --dtype fp32 keeps them");
  if (!weights.empty()) spdlog::info("weights in few bits, relative RMS error: {}", weights.describe());
  metrics.set(monitoring::Metric::kInfo, 1,
              {{"version", kVersion},
               {"model", replica.config.name},
               {"recipe", replica.cache.recipe.name},
               {"dtype", job.config.dtype},
               {"device", replica.device.name}});
  spdlog::info(
      "model {} on {}: {} of weights; recipe {}: {:.0f} B per token, bf16 needs {:.2f}x of that at {} "
      "tokens; "
      "room for {} tokens in one sequence",
      replica.config.name, replica.device.name, format_bytes(replica.model->packed_bytes()),
      replica.cache.recipe.name, replica.memory->bytes_per_token(), replica.memory->compression_ratio(),
      kvstore::PageMemory::kLongPrompt, replica.memory->max_sequence_tokens());
}

transport::PeerInfo fingerprints(const Replica& replica) {
  transport::PeerInfo self;
  self.model_fingerprint = replica.model_fingerprint;
  self.layout_fingerprint = replica.cache.fingerprint;
  return self;
}

}  // namespace lowkey::cli
