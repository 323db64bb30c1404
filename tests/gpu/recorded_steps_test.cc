// Decode steps recorded once and replayed against the same steps told call by call, on the host-side
// emulation: the same bits over growing contexts, completed pages and changing batches; what is recorded,
// and that a steady step allocates nothing.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/emulation/cuda_runtime.h"
#include "tests/support/replica.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/worker/engine/engine_replica.h"
#include "worker/model/random_model.h"

namespace lowkey::testing {
namespace {

using kernels::DType;
using kernels::cuda::emulation::calls;
using worker::EngineReplica;
using worker::EngineReplicaOptions;

std::unique_ptr<kernels::Backend> emulated_backend(DType dtype) {
  return kernels::cuda::make_cuda_backend(0, dtype).value();
}

kernels::PageSpec small_pages(int page_tokens = 8) {
  kernels::PageSpec spec = q8_pages();
  spec.page_tokens = page_tokens;
  return spec;
}

std::vector<int32_t> random_tokens(int count, uint32_t seed, int vocab) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

class RecordedSteps : public ::testing::Test {
 protected:
  void SetUp() override { write("layers=1"); }
  // Small, because a thread of a kernel is a fiber.
  void write(const std::string& further) {
    const auto shape = worker::parse_shape("tiny,hidden=32,ffn=32,heads=2,kv_heads=2,vocab=300," + further);
    ASSERT_TRUE(shape.ok()) << shape.error().message;
    std::filesystem::remove_all(model());
    const Status written = worker::write_random_model(*shape, 3, model());
    ASSERT_TRUE(written.ok()) << written.error().message;
  }
  std::filesystem::path model() const { return folder_.path() / "tiny"; }

  // A model whose backend stays in reach.
  struct Machine {
    kernels::Backend* backend = nullptr;
    std::unique_ptr<Replica> replica;
    kernels::StepGraphs& graphs() const { return *backend->step_graphs(); }
  };
  Machine machine(DType dtype, const kernels::PageSpec& pages, const std::filesystem::path& dir) const {
    Machine made;
    ReplicaOptions options{.dtype = dtype, .pages = pages};
    options.backend = [&] {
      auto backend = emulated_backend(dtype);
      made.backend = backend.get();
      return backend;
    };
    made.replica = std::move(Replica::load(dir, options)).value();
    return made;
  }

  // Logits of every step: prompts of different lengths, then decode steps of changing batches.
  static std::vector<std::vector<float>> run(Machine& machine, std::span<const std::vector<int>> batches) {
    const int vocab = machine.replica->model(0).config().vocab_size;
    std::vector<std::vector<float>> all;
    const auto add = [&](auto rows) {
      LOWKEY_CHECK(rows.ok(), "{}", rows.error().message);
      std::ranges::move(*rows, std::back_inserter(all));
    };
    for (int sequence = 0; sequence < 5; ++sequence)
      add(machine.replica->step(sequence, random_tokens(3 + 7 * sequence, sequence, vocab), false));
    uint32_t seed = 100;
    for (const std::vector<int>& batch : batches) {
      std::vector<std::vector<int32_t>> tokens;
      std::vector<Rows> rows;
      for (size_t i = 0; i < batch.size(); ++i) tokens.push_back(random_tokens(1, ++seed, vocab));
      for (size_t i = 0; i < batch.size(); ++i) rows.push_back({batch[i], tokens[i]});
      add(machine.replica->step(rows));
    }
    return all;
  }

  const TempFolder folder_;
};

// Batches shrink, grow and change their order; each sequence passes several page ends.
std::vector<std::vector<int>> changing_batches() {
  std::vector<std::vector<int>> batches;
  for (int i = 0; i < 8; ++i) batches.push_back({0, 1, 2});
  for (int i = 0; i < 7; ++i) batches.push_back({4, 0, 3, 1, 2});
  for (int i = 0; i < 9; ++i) batches.push_back({2});
  for (int i = 0; i < 6; ++i) batches.push_back({3, 1});
  for (int i = 0; i < 6; ++i) batches.push_back({1, 4, 2, 0});
  return batches;
}

TEST_F(RecordedSteps, HaveTheBitsOfStepsToldCallByCall) {
  // On the plain kernels, and on the fast one.
  const std::pair<DType, kernels::PageSpec> cases[] = {{DType::kF32, small_pages()},
                                                       {DType::kBf16, small_pages(32)}};
  for (const auto& [dtype, pages] : cases) {
    kernels::cuda::emulation::set_reversed(dtype == DType::kBf16);
    Machine told = machine(dtype, pages, model()), recorded = machine(dtype, pages, model());
    told.graphs().set_capacity(0);
    const auto batches = changing_batches();
    EXPECT_EQ(run(recorded, batches), run(told, batches)) << to_string(dtype);
    EXPECT_EQ(told.graphs().counts().replayed + told.graphs().counts().captured, 0u);
    EXPECT_GE(recorded.graphs().counts().captured, 4u);
    EXPECT_GE(recorded.graphs().counts().replayed, 12u);
  }
}

// Layers with and without a window have tables of their own, and layers that share a bank write it once.
TEST_F(RecordedSteps, HaveTheBitsOfEveryKindOfLayer) {
  std::vector<std::vector<int>> batches(5, std::vector{0, 1, 2});
  for (int i = 0; i < 9; ++i) batches.push_back({2, 4, 3});
  for (const char* kind : {"layers=2,family=gemma2,window=12", "layers=2,share=2"}) {
    write(kind);
    Machine told = machine(DType::kF32, small_pages(), model()),
            recorded = machine(DType::kF32, small_pages(), model());
    told.graphs().set_capacity(0);
    EXPECT_EQ(run(recorded, batches), run(told, batches)) << kind;
    EXPECT_GE(recorded.graphs().counts().replayed, 6u) << kind;
  }
}

// Memory that a graph names may be given back: by a longer prompt, whose activations outgrow the old ones.
TEST_F(RecordedSteps, AreForgottenWithTheMemoryTheyName) {
  Machine told = machine(DType::kF32, small_pages(), model()),
          recorded = machine(DType::kF32, small_pages(), model());
  told.graphs().set_capacity(0);
  const std::vector<std::vector<int>> batches(6, std::vector{0, 1, 2});
  const auto run_both = [&](const std::vector<int32_t>& prompt) {
    for (Machine* each : {&told, &recorded}) ASSERT_TRUE(each->replica->step(7, prompt, false).ok());
    EXPECT_EQ(run(recorded, batches), run(told, batches));
  };
  run_both(random_tokens(4, 1, 50));
  const uint64_t captured = recorded.graphs().counts().captured;
  EXPECT_GE(captured, 1u);
  run_both(random_tokens(100, 2, 50));
  EXPECT_GT(recorded.graphs().counts().captured, captured);
}

TEST_F(RecordedSteps, AreBoundedInNumber) {
  Machine recorded = machine(DType::kF32, small_pages(), model());
  recorded.graphs().set_capacity(2);
  (void)run(recorded, changing_batches());
  EXPECT_LE(recorded.graphs().counts().graphs, 2u);
  EXPECT_GT(recorded.graphs().counts().bytes, 0u);
  recorded.graphs().set_capacity(0);
  EXPECT_EQ(recorded.graphs().counts().graphs, 0u);
  EXPECT_EQ(recorded.graphs().counts().bytes, 0u);
}

// What a layer of a decode step costs a device that waits for launches. Up to two rows: the heads' product
// with its norm, the heads, queries, attention, merging, the output's product, that of gate and up, the last
// one. More rows: norm, gate and conversions write the operands of four products.
TEST_F(RecordedSteps, MakeFewLaunchesPerLayer) {
  std::map<int, uint64_t> launches[2];  // by rows; of models of one and two layers
  for (const int layers : {1, 2}) {
    write("layers=" + std::to_string(layers));
    Machine device = machine(DType::kBf16, small_pages(32), model());
    for (int sequence = 0; sequence < 3; ++sequence)
      ASSERT_TRUE(device.replica->step(sequence, random_tokens(40, sequence, 300), false).ok());
    for (const int rows : {1, 2, 3}) {
      const std::vector<int32_t> token = {7};
      std::vector<Rows> batch;
      for (int sequence = 0; sequence < rows; ++sequence) batch.push_back({sequence, token});
      const uint64_t before = calls().launches;
      ASSERT_TRUE(device.replica->step(batch).ok());
      launches[layers - 1][rows] = calls().launches - before;
    }
  }
  for (const auto& [rows, expected] : std::map<int, uint64_t>{{1, 8}, {2, 8}, {3, 12}})
    EXPECT_EQ(launches[1][rows] - launches[0][rows], expected) << rows << " rows";
}

// The engine on the emulated device.
struct Place {
  std::vector<std::unique_ptr<kernels::Backend>> backends;
};
EngineReplicaOptions engine(const std::filesystem::path& dir, const std::shared_ptr<Place>& place,
                            int ranks = 1) {
  EngineReplicaOptions options;
  options.ranks = ranks;
  options.kv_bytes = 2 << 20;
  options.spec = small_pages();
  const worker::ModelConfig config = std::move(worker::ModelConfig::read(dir)).value();
  options.model = [=](int rank, int of) {
    place->backends.push_back(emulated_backend(DType::kF32));
    return std::move(worker::Model::load(dir, config, rank, of, *place->backends.back())).value();
  };
  options.backend = [place](int rank) { return place->backends.at(rank).get(); };
  return options;
}

std::vector<std::vector<int32_t>> answers(EngineReplica& replica, std::span<const int> lengths) {
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_ignore_eos(true);
  std::vector<uint64_t> requests;
  for (size_t i = 0; i < lengths.size(); ++i)
    requests.push_back(
        replica.submit(random_tokens(9 + 5 * static_cast<int>(i), i, 50), lengths[i], sampling));
  replica.run();
  std::vector<std::vector<int32_t>> all;
  for (const uint64_t request : requests) all.push_back(replica.answer(request).tokens);
  return all;
}

TEST_F(RecordedSteps, GiveTheEnginesAnswers) {
  const std::vector<int> lengths = {20, 5, 33, 12};
  std::vector<std::vector<int32_t>> found[2];
  for (const bool recorded : {false, true}) {
    const auto place = std::make_shared<Place>();
    EngineReplica replica(engine(model(), place));
    if (!recorded) place->backends[0]->step_graphs()->set_capacity(0);
    found[recorded] = answers(replica, lengths);
    const auto steps = [&](const char* launch) {
      return replica.metric(0, "lowkey_model_steps_total", fmt::format("launch=\"{}\"", launch));
    };
    EXPECT_GT(steps("direct"), 0);
    EXPECT_EQ(steps("replayed") > steps("captured") && steps("captured") > 0, recorded);
    EXPECT_EQ(replica.metric(0, "lowkey_step_graphs") > 0, recorded);
    EXPECT_EQ(replica.metric(0, "lowkey_step_graph_bytes") > 0, recorded);
  }
  EXPECT_EQ(found[1], found[0]);
}

// Sums of two ranks on one device go through the host: such a step is told call by call.
TEST_F(RecordedSteps, WaitForNoHost) {
  const auto place = std::make_shared<Place>();
  EngineReplica replica(engine(model(), place, 2));
  (void)answers(replica, std::vector{6, 6});
  for (const int rank : {0, 1}) EXPECT_EQ(place->backends[rank]->step_graphs()->counts().captured, 0u);
  EXPECT_GT(replica.metric(0, "lowkey_model_steps_total", "direct"), 0);
}

// Nothing is allocated or freed once a batch's steps have their graphs, and nothing grows over thousands.
TEST_F(RecordedSteps, AllocateNothing) {
  const auto place = std::make_shared<Place>();
  EngineReplica replica(engine(model(), place));
  const std::vector<int> lengths = {100};
  // What grows on first use has grown: with the prompt computed, and with its pages found.
  for (int round = 0; round < 3; ++round) (void)answers(replica, lengths);
  const uint64_t allocations = calls().allocations();
  const size_t bytes = kernels::cuda::emulation::allocated_bytes();
  const kernels::StepGraphs::Counts before = place->backends[0]->step_graphs()->counts();
  for (int round = 0; round < 21; ++round) (void)answers(replica, lengths);
  EXPECT_EQ(calls().allocations(), allocations);
  EXPECT_EQ(kernels::cuda::emulation::allocated_bytes(), bytes);
  const kernels::StepGraphs::Counts after = place->backends[0]->step_graphs()->counts();
  EXPECT_EQ(after.captured, before.captured);
  EXPECT_GE(after.replayed, before.replayed + 2000);
}

}  // namespace
}  // namespace lowkey::testing
