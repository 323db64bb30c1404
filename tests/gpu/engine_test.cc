// Whole models and the engine on a device against the same on the CPU, and against Hugging Face transformers.
// Run from the root of the repository.
#include <fstream>
#include <random>

#include "tests/gpu/device_under_test.h"
#include "tests/support/replica.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/worker/engine/engine_replica.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/model/random_model.h"

namespace lowkey::testing {
namespace {

using kernels::DType;
using worker::EngineReplica;
using worker::EngineReplicaOptions;

constexpr double kTolerance = 2e-4;      // f32, relative to a row's largest logit: the project's promise
constexpr double kBf16Tolerance = 0.08;  // weights and inputs of products rounded to 2^-9

struct Golden {
  std::vector<int32_t> tokens;
  std::vector<std::vector<float>> logits;
};

Golden golden(const std::string& name) {
  const auto expected = read_json(golden_dir() / name / "expected.json");
  return {ids(expected.at("tokens")),
          boost::json::value_to<std::vector<std::vector<float>>>(expected.at("logits"))};
}

std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_dir()))
    if (entry.is_directory()) names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

// Logits of all positions, the tokens in pieces; pages of 16 tokens, so that pieces end inside and on pages.
std::vector<std::vector<float>> logits(const std::filesystem::path& dir, const std::vector<int32_t>& tokens,
                                       std::span<const int> chunks, DType dtype, int tp = 1) {
  ReplicaOptions options{.tp = tp, .dtype = dtype, .pages = {.page_tokens = 16}};
  options.backend = [dtype] { return device_backend(dtype); };
  auto replica = Replica::load(dir, options);
  LOWKEY_CHECK(replica.ok(), "{}", replica.error().message);
  std::vector<std::vector<float>> all;
  size_t at = 0;
  for (const int chunk : chunks) {
    auto rows = (*replica)->step(0, std::span(tokens).subspan(at, chunk));
    LOWKEY_CHECK(rows.ok(), "{}", rows.error().message);
    std::ranges::move(*rows, std::back_inserter(all));
    at += chunk;
  }
  return all;
}

class Models : public OnDevice {};

TEST_F(Models, EveryFamilyEqualsTransformers) {
  for (const std::string& name : golden_models()) {
    const Golden expected = golden(name);
    const int size = static_cast<int>(expected.tokens.size());
    for (const std::vector<int>& chunks : {std::vector{size}, {5, 14, 1, size - 20}}) {
      const auto found = logits(golden_dir() / name, expected.tokens, chunks, DType::kF32);
      EXPECT_LE(relative_error(found, expected.logits), kTolerance) << name;
    }
    const auto rounded = logits(golden_dir() / name, expected.tokens, std::vector{size}, DType::kBf16);
    EXPECT_LE(relative_error(rounded, expected.logits), kBf16Tolerance) << name << " in bf16";
  }
}

// Several ranks on one device: their sums go through the host.
TEST_F(Models, TensorParallelOnOneDevice) {
  for (const char* name : {"llama_mha", "qwen2"}) {
    const Golden expected = golden(name);
    const std::vector<int> whole{static_cast<int>(expected.tokens.size())};
    const auto found = logits(golden_dir() / name, expected.tokens, whole, DType::kF32, 2);
    EXPECT_LE(relative_error(found, expected.logits), kTolerance) << name;
  }
}

// The engine, its pages where the model's backend has them.
struct Place {
  std::vector<std::unique_ptr<kernels::Backend>> backends;
  std::map<int, kernels::Backend*> latest;
};

EngineReplicaOptions engine(const std::filesystem::path& dir, bool on_device, int ranks, DType dtype,
                            const kernels::PageSpec& spec) {
  EngineReplicaOptions options;
  options.ranks = ranks;
  options.kv_bytes = 8 << 20;
  options.spec = spec;
  options.dtype = dtype;
  const worker::ModelConfig config = std::move(worker::ModelConfig::read(dir)).value();
  auto place = std::make_shared<Place>();
  options.model = [=](int rank, int of) {
    place->backends.push_back(on_device ? device_backend(dtype) : cpu_backend(dtype));
    place->latest[rank] = place->backends.back().get();
    return std::move(worker::Model::load(dir, config, rank, of, *place->latest[rank])).value();
  };
  options.backend = [place](int rank) { return place->latest.at(rank); };
  return options;
}

std::vector<std::vector<int32_t>> prompts(int count, int tokens, int vocab) {
  std::mt19937 random(11);
  std::vector<std::vector<int32_t>> all(count);
  for (auto& prompt : all)
    for (int i = 0; i < tokens; ++i) prompt.push_back(static_cast<int32_t>(random() % vocab));
  return all;
}

std::vector<std::vector<int32_t>> answers(EngineReplica& replica,
                                          const std::vector<std::vector<int32_t>>& prompts, int count) {
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_ignore_eos(true);
  std::vector<uint64_t> requests;
  for (const auto& prompt : prompts) requests.push_back(replica.submit(prompt, count, sampling));
  replica.run();
  std::vector<std::vector<int32_t>> all;
  for (const uint64_t request : requests) all.push_back(replica.answer(request).tokens);
  return all;
}

kernels::PageSpec three_levels() {
  kernels::PageSpec spec = kernels::PageSpec::embedded("levels", 8, 4);
  spec.num_levels = 3;
  spec.key.bits.assign(1, {2, 2, 4});
  spec.value.bits = spec.key.bits;
  return spec;
}

class Serving : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (!emulated()) return;
    const auto shape = worker::parse_shape("tiny,layers=2");
    ASSERT_TRUE(shape.ok() && worker::write_random_model(*shape, 3, folder_.path() / "tiny"));
  }
  // Sizes that the emulation bears.
  int count() const { return emulated() ? 6 : 48; }
  int prompt() const { return emulated() ? 70 : 400; }
  std::filesystem::path model() const { return emulated() ? folder_.path() / "tiny" : demo_model(); }
  std::vector<std::vector<int32_t>> inputs() const {
    return prompts(3, prompt(), worker::ModelConfig::read(model())->vocab_size);
  }

 private:
  const TempFolder folder_;
};

TEST_F(Serving, TokensEqualTheCpus) {
  EngineReplica cpu(engine(model(), false, 1, DType::kF32, {}));
  for (const int ranks : {1, 2}) {
    EngineReplica device(engine(model(), true, ranks, DType::kF32, {}));
    EXPECT_EQ(answers(device, inputs(), count()), answers(cpu, inputs(), count())) << ranks << " ranks";
  }
}

// Drawn where the logits are, with the seeds of the requests.
TEST_F(Serving, DrawnTokensEqualTheCpus) {
  std::vector<std::vector<int32_t>> found[2];
  for (const bool on_device : {false, true}) {
    EngineReplica replica(engine(model(), on_device, 1, DType::kF32, {}));
    std::vector<uint64_t> requests;
    for (const auto& prompt : inputs()) {
      wire::SamplingParams sampling = EngineReplica::greedy();
      sampling.set_ignore_eos(true);
      sampling.set_temperature(0.8);
      sampling.set_seed(40 + requests.size());
      if (requests.empty()) sampling.set_top_p(0.9);
      if (requests.size() == 1) sampling.set_top_k(20);
      requests.push_back(replica.submit(prompt, count(), sampling));
    }
    replica.run();
    for (const uint64_t request : requests) found[on_device].push_back(replica.answer(request).tokens);
  }
  EXPECT_EQ(found[1], found[0]);
}

// Rows that fill up a batch may change how products are summed, so only f32 is held to equal tokens.
TEST_F(Serving, ReplayedStepsGiveTheTokensOfStepsToldCallByCall) {
  std::vector<std::vector<int32_t>> found[2];
  for (const bool recorded : {false, true}) {
    const EngineReplicaOptions options = engine(model(), true, 1, DType::kF32, three_levels());
    EngineReplica replica(options);
    kernels::StepGraphs& graphs = *options.backend(0)->step_graphs();
    if (!recorded) graphs.set_capacity(0);
    found[recorded] = answers(replica, inputs(), count());
    EXPECT_EQ(graphs.counts().replayed > 0, recorded);
    EXPECT_EQ(graphs.counts().captured > 0, recorded);
  }
  EXPECT_EQ(found[1], found[0]);
}

// A value on the edge of two codes may take the other one when sums are in another order, and the CPU rounds
// queries to 8 bits where it attends on codes.
TEST_F(Serving, CodedPagesStayNearTheCpus) {
  const std::vector<int32_t> tokens = inputs()[0];
  for (const kernels::PageSpec& spec : {q8_pages(), three_levels()}) {
    std::vector<std::vector<float>> found[2];
    for (const bool on_device : {false, true}) {
      ReplicaOptions options{.dtype = DType::kF32, .pages = spec};
      options.backend = [=] { return on_device ? device_backend(DType::kF32) : cpu_backend(DType::kF32); };
      auto replica = Replica::load(model(), options);
      ASSERT_TRUE(replica.ok()) << replica.error().message;
      auto rows = (*replica)->step(0, tokens);
      ASSERT_TRUE(rows.ok()) << rows.error().message;
      found[on_device] = *std::move(rows);
    }
    EXPECT_LE(relative_error(found[1], found[0]), 0.02) << spec.recipe;
  }
}

// Pages leave the device for a store, and come back to another one's.
TEST_F(Serving, SpilledAndRestored) {
  EngineReplicaOptions options = engine(model(), true, 1, DType::kF32, three_levels());
  options.store = std::make_shared<worker::MemoryStore>();
  std::vector<std::vector<int32_t>> expected;
  {
    EngineReplica first(options);
    expected = answers(first, inputs(), count());
  }
  EXPECT_GT(options.store->pages(), 0u);
  EngineReplica second(options);
  wire::Submit whole;  // nothing is to be read coarse
  whole.set_request_id(7);
  whole.set_min_levels(3);
  const std::vector<int32_t> prompt = inputs()[0];
  whole.mutable_prompt()->Add(prompt.begin(), prompt.end());
  *whole.mutable_sampling() = EngineReplica::greedy();
  whole.mutable_sampling()->set_ignore_eos(true);
  whole.mutable_sampling()->set_max_tokens(count());
  ASSERT_TRUE(second.try_submit(whole).ok());
  second.run();
  EXPECT_GT(second.answer(7).cached_store, 0u);
  EXPECT_EQ(second.answer(7).tokens, expected[0]);
}

// Memory of the device that is free before thousands of steps is free after them.
TEST_F(Serving, NothingLeaks) {
  const int rounds = emulated() ? 2 : 220, tokens = emulated() ? 4 : 48;
  EngineReplica replica(engine(model(), true, 1, DType::kBf16, q8_pages()));
  const auto free_bytes = [] { return survey().module->library->free_bytes(0).value(); };
  (void)answers(replica, inputs(), tokens);  // what grows on first use has grown
  const uint64_t before = free_bytes();
  for (int round = 0; round < rounds; ++round) (void)answers(replica, inputs(), tokens);
  EXPECT_GE(free_bytes() + (uint64_t{2} << 20), before);  // others may use the device, too
}

// What tests/gpu/transformers_twin.py compares with the same model run by transformers on the same device.
TEST_F(Serving, WritesLogitsForATwin) {
  const char* file = std::getenv("TWIN_LOGITS");
  if (file == nullptr) GTEST_SKIP() << "TWIN_LOGITS names no file";
  const auto texts = read_json(golden_dir() / "greedy_demo.json").at("cases").as_array();
  std::ofstream out(file, std::ios::binary);
  for (const auto& item : texts) {
    const std::vector<int32_t> tokens = ids(item.at("prompt_ids"));
    const auto rows =
        logits(demo_model(), tokens, std::vector{static_cast<int>(tokens.size())}, DType::kBf16);
    for (const auto& row : rows)
      out.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(row.size() * 4));
  }
  EXPECT_TRUE(out.flush().good());
}

}  // namespace
}  // namespace lowkey::testing
