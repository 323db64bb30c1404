// A page of a device on its way to a store, when its memory has another owner in the very next step: the
// store is given what the page was.
#include <gtest/gtest.h>

#include <cstring>

#include "kvstore/page/page_identity.h"
#include "tests/support/guarded_backend.h"
#include "transport/loopback/loopback_comm.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/executor.h"

namespace lowkey::worker {
namespace {

using Bytes = std::vector<std::byte>;

// Fills the first page of the first sequence.
class WritingModel final : public Model {
 public:
  explicit WritingModel(kernels::Backend& backend) : backend_(backend) {
    config_.vocab_size = 8;
    config_.max_positions = 1024;
  }
  const ModelConfig& config() const override { return config_; }
  uint64_t packed_bytes() const override { return 0; }
  int vocab_shard() const override { return 8; }
  Status forward(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                 Deadline deadline, std::span<float>) override {
    backend_.upload(Bytes(layout.slab_bytes[0], std::byte{0x77}), batch.sequences[0].slabs[0]);
    return comm.settle(deadline);
  }

 private:
  ModelConfig config_;
  kernels::Backend& backend_;
};

TEST(DeviceSpill, TheStoreIsGivenWhatThePageWas) {
  testing::GuardedBackend backend(kernels::make_reference_backend(kernels::DType::kF32));
  const kernels::CacheShape shape{
      .num_banks = 2, .num_kv_heads = 2, .head_dim = 16, .dtype = kernels::DType::kF32};
  const auto layout = kernels::PageLayout::make(kernels::PageSpec::embedded("q8", 8, 0), shape).value();
  const auto memory =
      std::move(kvstore::PageMemory::make(
                    layout,
                    {.budget = 1 << 20, .allocate = [&](uint64_t bytes) { return backend.allocate(bytes); }}))
          .value();
  std::vector<kvstore::PageWrite> spilled;
  EnginePorts ports;
  ports.spill = [&](std::vector<kvstore::PageWrite> pages, const auto& done) {
    spilled = std::move(pages);
    done({});
  };
  WritingModel model(backend);
  const auto comms = transport::make_loopback_comms(1);
  monitoring::Metrics metrics({{"role", "worker"}, {"rank", "0"}});
  Executor executor({.backend = &backend}, model, *memory, *comms[0], ports, metrics);

  const kvstore::SlabId slab = *memory->slabs(0).allocate(), tail = *memory->tails().allocate();
  const Bytes content(layout.slab_bytes[0], std::byte{0x11});
  backend.upload(content, memory->slab_address(0, slab));
  wire::StepPlan first;
  wire::PlacedPage& page = *first.add_spills();
  page.set_identity(std::string(sizeof(Hash128), 'i'));
  page.add_slabs(slab);
  ASSERT_TRUE(executor.execute(first));
  ASSERT_EQ(spilled.size(), 1u);

  wire::StepPlan second;
  wire::PlannedSequence& sequence = *second.add_sequences();
  sequence.set_sequence_id(1);
  sequence.set_tail(tail);
  sequence.add_slabs(slab);
  for (int i = 0; i < layout.page_tokens; ++i) sequence.add_tokens(1);
  ASSERT_TRUE(executor.execute(second));

  ASSERT_TRUE(spilled[0].arriving->wait());
  EXPECT_EQ(Bytes(spilled[0].slabs[0].begin(), spilled[0].slabs[0].end()), content);
  Bytes now(content.size());
  backend.download(memory->slab_address(0, slab), now);
  EXPECT_EQ(now, Bytes(content.size(), std::byte{0x77}));
}

}  // namespace
}  // namespace lowkey::worker
