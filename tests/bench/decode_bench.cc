// decode_bench MODEL [--threads N] [--weights auto|full|int8|int4] [--json FILE]: forward passes of a model
// in bf16 against what the machine can do at best. Prints `name measured target pass|fail`, then everything
// as one line of JSON.
#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "tests/bench/floors.h"
#include "tests/support/replica.h"
#include "transport/loopback/loopback_comm.h"
#include "worker/model/model.h"

namespace lowkey::testing {
namespace {

constexpr int kPrefillRows = 512;
constexpr int kBatch = 16;
constexpr int kContext = 64;  // tokens before the first measured decode
constexpr int kDecodeSteps = 24;
constexpr int kPrefills = 5;

struct Options {
  std::filesystem::path model_dir;
  int threads = 2;
  worker::WeightStorage weights = worker::WeightStorage::kAuto;
  std::string json_file;
};

// One model on one rank, with as many sequences as a step wants.
class Runner {
 public:
  static Result<std::unique_ptr<Runner>> load(const Options& options) {
    LOWKEY_ASSIGN(config, worker::ModelConfig::read(options.model_dir));
    config.weights = options.weights;
    auto runner = std::make_unique<Runner>();
    runner->backend_ =
        kernels::make_cpu_backend({.dtype = kernels::DType::kBf16, .threads = options.threads});
    LOWKEY_ASSIGN(model, worker::Model::load(options.model_dir, config, 0, 1, *runner->backend_));
    LOWKEY_ASSIGN(layout, kernels::PageLayout::make({}, config.cache_shape(1, kernels::DType::kBf16)));
    runner->model_ = std::move(model);
    runner->layout_ = std::move(layout);
    runner->comm_ = transport::make_staged_comm(*runner->comms_[0], *runner->backend_);
    return runner;
  }

  const worker::Model& model() const { return *model_; }

  // Seconds of one step that adds `rows` tokens to each of the first `sequences` sequences.
  double step(int sequences, int rows) {
    while (static_cast<int>(caches_.size()) < sequences) caches_.emplace_back(layout_, *backend_);
    std::vector<int32_t> tokens, positions, wanted;
    std::vector<kernels::SequenceSlice> slices;
    for (int s = 0; s < sequences; ++s) {
      const int first = caches_[s].length();
      slices.push_back(caches_[s].extend(static_cast<int>(tokens.size()), rows));
      for (int i = 0; i < rows; ++i) {
        positions.push_back(first + i);
        tokens.push_back((first + i + 7919 * s + 4) * 31 % model_->config().vocab_size);
      }
      wanted.push_back(static_cast<int32_t>(tokens.size()) - 1);
    }
    logits_.resize(wanted.size() * model_->vocab_shard());
    const auto begin = Clock::now();
    const Status status = model_->forward({tokens, positions, slices, wanted}, layout_, *comm_,
                                          Deadline::in(std::chrono::minutes(5)), logits_);
    const double taken = seconds(Clock::now() - begin);
    LOWKEY_CHECK(status.ok(), "{}", status.error().message);
    return taken;
  }
  void forget() { caches_.clear(); }

 private:
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<worker::Model> model_;
  kernels::PageLayout layout_;
  std::vector<std::unique_ptr<transport::HostComm>> comms_ = transport::make_loopback_comms(1);
  std::unique_ptr<transport::DeviceComm> comm_;
  std::vector<SequenceCache> caches_;
  std::vector<float> logits_;
};

// Best of several, as the floors are: what else runs on the machine must not decide the ratio.
double decode_seconds(Runner& runner, int sequences) {
  runner.forget();
  runner.step(sequences, kContext);
  runner.step(sequences, 1);  // first use of this batch size
  double best = INFINITY;
  for (int i = 0; i < kDecodeSteps; ++i) best = std::min(best, runner.step(sequences, 1));
  return best;
}

// A prompt of `tokens`, in steps of kPrefillRows as the engine has them.
double prefill_seconds(Runner& runner, int tokens) {
  double best = INFINITY;
  for (int i = 0; i < kPrefills; ++i) {
    runner.forget();
    double taken = 0;
    for (int done = 0; done < tokens; done += kPrefillRows) taken += runner.step(1, kPrefillRows);
    best = std::min(best, taken);
  }
  return best;
}

// The products of one layer.
std::vector<GemmShape> layer_shapes(const worker::ModelConfig& c) {
  const int q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  return {{c.hidden_size, q + 2 * kv},
          {q, c.hidden_size},
          {c.hidden_size, 2 * c.intermediate_size},
          {c.intermediate_size, c.hidden_size}};
}

boost::json::object measure(Runner& runner, int threads) {
  const worker::ModelConfig& config = runner.model().config();
  const std::vector<GemmShape> shapes = layer_shapes(config);
  const double bandwidth = best_read_bandwidth(threads);
  const double one = decode_seconds(runner, 1);
  const double many = decode_seconds(runner, kBatch);
  const double prefill = prefill_seconds(runner, kPrefillRows);
  const double gemm = onednn_seconds(shapes, config.num_layers, kPrefillRows, threads);
  const double floor = static_cast<double>(runner.model().packed_bytes()) / bandwidth;
  double flops = 0;
  for (const GemmShape& shape : shapes)
    flops += 2.0 * kPrefillRows * shape.in * shape.out * config.num_layers;
  return {{"decode_over_floor", floor / one},
          {"prefill_over_gemm", gemm / prefill},
          {"batch16_over_one", kBatch * one / many},
          {"model", config.name},
          {"threads", threads},
          {"packed_bytes", runner.model().packed_bytes()},
          {"read_bytes_per_second", bandwidth},
          {"onednn_flops_per_second", flops / gemm},
          {"decode_seconds", one},
          {"decode16_seconds", many},
          {"prefill512_seconds", prefill},
          {"prefill2048_seconds", prefill_seconds(runner, 4 * kPrefillRows)}};
}

struct Target {
  const char* name;
  const char* key;
  double at_least;
  double at_least_large;  // of models from kLargeHidden on: all of a step is weights there
};
constexpr int kLargeHidden = 2048;
constexpr Target kTargets[] = {{"decode_over_weight_read_floor", "decode_over_floor", 0.7, 0.8},
                               {"prefill_over_gemm_rate", "prefill_over_gemm", 0.6, 0.6},
                               {"sixteen_decodes_over_one", "batch16_over_one", 9, 9}};

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const bool has_value = i + 1 < argc;
    if (std::strcmp(argv[i], "--threads") == 0 && has_value) {
      options.threads = std::atoi(argv[++i]);
    } else if (std::strcmp(argv[i], "--weights") == 0 && has_value) {
      options.weights = worker::parse_weight_storage(argv[++i]);
    } else if (std::strcmp(argv[i], "--json") == 0 && has_value) {
      options.json_file = argv[++i];
    } else if (argv[i][0] != '-' && options.model_dir.empty()) {
      options.model_dir = argv[i];
    } else {
      return false;
    }
  }
  return !options.model_dir.empty() && options.threads >= 1;
}

int run(const Options& options) {
  auto runner = Runner::load(options);
  if (!runner.ok()) {
    std::fprintf(stderr, "decode_bench: %s\n", runner.error().message.c_str());
    return 3;
  }
  const boost::json::object found = measure(**runner, options.threads);
  for (const Target& target : kTargets) {
    const double measured = found.at(target.key).as_double();
    const bool large = (*runner)->model().config().hidden_size >= kLargeHidden;
    const double at_least = large ? target.at_least_large : target.at_least;
    std::printf("%s %.3f >=%.3g %s\n", target.name, measured, at_least,
                measured >= at_least ? "pass" : "fail");
  }
  const std::string text = boost::json::serialize(found);
  std::printf("%s\n", text.c_str());
  if (!options.json_file.empty()) std::ofstream(options.json_file) << text << '\n';
  return 0;
}

}  // namespace
}  // namespace lowkey::testing

int main(int argc, char** argv) {
  lowkey::testing::Options options;
  if (!lowkey::testing::parse(argc, argv, options)) {
    std::fprintf(stderr, "usage: decode_bench MODEL [--threads N] [--weights W] [--json FILE]\n");
    return 2;
  }
  return lowkey::testing::run(options);
}
