// What a leader tells the other ranks of its replica: plans of steps and restores, to an executor of exact
// pages in levels and to one whose recipe chooses tokens. The model and the stores stop the fuzzer at
// whatever the plan leads them to outside of this rank's memory. A message of type 0 is a step, of type 1 a
// restore, of type 2 a coordinator's sampling parameters.
#include <array>
#include <cstring>

#include "kernels/ops/reference_backend.h"
#include "kvstore/recipe/resolve.h"
#include "tests/fuzz/messages.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/executor.h"
#include "worker/engine/sampling_params.h"

namespace lowkey::worker {
namespace {

using kernels::kMaxSlabs;
using kvstore::PageMemory;

constexpr int kVocab = 32, kPositions = 512;

void check_slab(const PageMemory& memory, int slab, const std::byte* at) {
  const kvstore::SlabPool& pool = memory.slabs(slab);
  LOWKEY_CHECK(at >= pool.address(0) && at <= pool.address(pool.max_slabs() - 1), "slab {} outside", slab);
}

// One of two ranks; the other agrees with everything.
class Comm final : public transport::HostComm {
 public:
  int rank() const override { return 1; }
  int size() const override { return 2; }
  Status all_reduce_sum(std::span<float>, Deadline) override { return {}; }
  Status gather(std::span<const float>, std::span<float>, int, Deadline) override { return {}; }
  Status barrier(Deadline) override { return {}; }
  Result<std::vector<std::string>> all_gather(const std::string& mine, Deadline) override {
    return std::vector<std::string>{mine, mine};
  }
};

// Touches what a model's attention would.
class ProbingModel final : public Model {
 public:
  explicit ProbingModel(const PageMemory& memory) : memory_(memory) {
    config_.vocab_size = kVocab;
    config_.max_positions = kPositions;
  }
  const ModelConfig& config() const override { return config_; }
  uint64_t packed_bytes() const override { return 0; }
  int vocab_shard() const override { return kVocab / 2; }

  Status forward(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm&, Deadline,
                 std::span<float>) override {
    LOWKEY_CHECK(batch.tokens.size() == batch.positions.size());
    int rows = 0;
    for (const kernels::SequenceSlice& slice : batch.sequences) {
      LOWKEY_CHECK(slice.first_row == rows && slice.num_rows >= 1, "row {}", slice.first_row);
      rows += slice.num_rows;
      check(slice, layout);
    }
    LOWKEY_CHECK(rows == std::ssize(batch.tokens), "{} rows", rows);
    for (size_t i = 0; i < batch.tokens.size(); ++i)
      LOWKEY_CHECK(batch.tokens[i] >= 0 && batch.tokens[i] < kVocab && batch.positions[i] >= 0 &&
                   batch.positions[i] < kPositions);
    for (const int32_t row : batch.logit_rows) LOWKEY_CHECK(row >= 0 && row < rows, "logits of row {}", row);
    return {};
  }

 private:
  void check(const kernels::SequenceSlice& slice, const kernels::PageLayout& layout) const {
    LOWKEY_CHECK(slice.first_slot >= 0 && slice.first_slot < kPositions, "slot {}", slice.first_slot);
    const int before = slice.first_slot / layout.page_tokens;
    const int complete = (slice.first_slot + slice.num_rows) / layout.page_tokens;
    for (int page = 0; page < complete; ++page) {
      const int levels = slice.page_levels[page];
      LOWKEY_CHECK(levels <= layout.num_levels && (page < before || levels == layout.num_levels));
      std::byte* const* slabs = slice.slabs + static_cast<size_t>(page) * kMaxSlabs;
      for (int level = 0; level < levels; ++level) check_slab(memory_, level, slabs[level]);
      if (page == 0 && levels > 0 && layout.sink_tokens > 0)
        check_slab(memory_, layout.sink_slab(), slabs[layout.sink_slab()]);
    }
    std::memset(slice.tail, 0, layout.tail_bytes);
    if (slice.observer != nullptr) touch(*slice.observer, slice, layout);
  }
  static void touch(const kernels::TokenObserver& observer, const kernels::SequenceSlice& slice,
                    const kernels::PageLayout& layout) {
    LOWKEY_CHECK(slice.first_slot + slice.num_rows <= observer.capacity, "{} slots scored",
                 observer.capacity);
    const size_t floats = static_cast<size_t>(observer.capacity) * layout.num_kv_heads * layout.num_banks;
    for (float* room : {observer.column_sums, observer.window_sums, observer.key_norms})
      if (room != nullptr) std::memset(room, 0, floats * sizeof(float));
  }

  const PageMemory& memory_;
  ModelConfig config_;
};

struct Rank {
  explicit Rank(const std::string& recipe_text, uint64_t budget) {
    const auto recipe = kvstore::parse_recipe(recipe_text, "fuzz").value();
    const kvstore::ModelShape shape{.name = "fuzz", .num_layers = 2, .num_kv_heads = 2, .head_dim = 16};
    cache = kvstore::resolve(recipe, nullptr, shape, 0, 1).value();
    memory = PageMemory::make(cache.pages,
                              {.budget = budget, .archive = cache.archive_spec(), .max_tokens = kPositions})
                 .value();
    model = std::make_unique<ProbingModel>(*memory);
    ports.spill = [this](std::vector<kvstore::PageWrite> pages, auto done) {
      for (const auto& page : pages)
        for (const auto& slab : page.slabs)
          sum += slab.empty() ? 0 : static_cast<int>(slab.front()) + static_cast<int>(slab.back());
      done({.stored = pages.size()});
    };
    ports.restore = [this](std::vector<kvstore::PageRead> pages, kvstore::RestoreOptions, auto done) {
      for (const auto& page : pages)
        for (int slab = 0; slab < kMaxSlabs; ++slab)
          if (!page.slabs[slab].empty()) check_slab(*memory, slab, page.slabs[slab].data());
      done({.sources = std::vector<kvstore::PageSource>(pages.size(), kvstore::PageSource::kHost),
            .restored = pages.size()});
    };
  }

  void run(const uint8_t* data, size_t size) {
    static monitoring::Metrics metrics({{"role", "worker"}, {"rank", "1"}});
    Executor executor({.staging_bytes = 1 << 16, .backend = backend.get()}, *model, *memory, comm, ports,
                      metrics);
    bool lost = false;  // a rank that cannot follow its leader ends
    fuzz::for_each_message(data, size, [&](uint8_t type, std::string_view body) {
      const auto parse = [&](auto& message) {
        return message.ParseFromArray(body.data(), static_cast<int>(body.size()));
      };
      wire::StepPlan plan;
      wire::RestoreCommand command;
      if (lost) return;
      if (type % 3 == 0 && parse(plan)) {
        const Status executed = executor.execute(plan);
        LOWKEY_CHECK(executed.ok() || !executed.error().message.empty());
        lost = !executed.ok();
      } else if (type % 3 == 1 && parse(command)) {
        int answers = 0;
        executor.pages().restore(command, [&](const wire::RestoreResult&) { ++answers; });
        LOWKEY_CHECK(answers == 1, "{} answers", answers);
      }
    });
  }

  kvstore::ResolvedCache cache;
  std::unique_ptr<PageMemory> memory;
  std::unique_ptr<ProbingModel> model;
  const std::unique_ptr<kernels::Backend> backend = kernels::make_reference_backend(kernels::DType::kBf16);
  Comm comm;
  EnginePorts ports;
  int sum = 0;
};

void check_sampling(std::string_view body) {
  wire::SamplingParams message;
  if (!message.ParseFromArray(body.data(), static_cast<int>(body.size()))) return;
  const auto params = SamplingParams::from_wire(message, kVocab);
  if (!params) {
    LOWKEY_CHECK(params.error().code == Code::kInvalidArgument && !params.error().param.empty());
    return;
  }
  LOWKEY_CHECK(params->temperature >= 0 && params->top_p > 0 && params->top_p <= 1 && params->top_k >= 0);
  LOWKEY_CHECK(params->max_tokens >= 0 && params->min_tokens >= 0 &&
               params->min_tokens <= params->max_tokens);
  LOWKEY_CHECK(params->repetition_penalty > 0, "{}", params->repetition_penalty);
  for (const auto& [token, bias] : params->bias) LOWKEY_CHECK(token >= 0 && token < kVocab);
}

}  // namespace
}  // namespace lowkey::worker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using lowkey::worker::Rank;
  static Rank levels(
      "name: levels\nbits: {quantizer: embedded, width: 4}\nhot: {sink: 4}\nstream: {levels: [0.5, 1]}\n",
      1 << 20);
  static Rank chooser(
      "name: chooser\ntokens: {score: h2o, budget: {heavy: 0.25, recent: 0.25}}\n"
      "bits: {quantizer: affine, width: 2, group: 16, key: {axis: channel}, value: {axis: token}}\n"
      "hot: {flush: 32}\nstream: {prefill: exact}\n",
      1 << 20);
  if (size == 0) return 0;
  (data[0] & 1 ? chooser : levels).run(data + 1, size - 1);
  lowkey::fuzz::for_each_message(data + 1, size - 1, [](uint8_t type, std::string_view body) {
    if (type % 3 == 2) lowkey::worker::check_sampling(body);
  });
  return 0;
}
