#include "transport/core/path_probe.h"

#include <gtest/gtest.h>

namespace lowkey::transport {
namespace {

using namespace std::chrono_literals;

constexpr size_t kPool = 64u << 20;

TEST(NextProbeBytes, GrowsWithinBytesAndTime) {
  // 64 KiB in 10 us: the link could do far more than eight times as much.
  EXPECT_EQ(next_probe_bytes(64 << 10, 10us, 8 << 20, 50ms), 512u << 10);
  // 1 Gbit/s: 512 KiB took 4.2 ms, and 40 ms are left: 0.8 of what fits, in whole pieces.
  const size_t third = next_probe_bytes(512 << 10, 4200us, 8 << 20, 40ms);
  EXPECT_EQ(third % (64 << 10), 0u);
  EXPECT_NEAR(static_cast<double>(third), 0.8 * 40 / 4.2 * (512 << 10), 64 << 10);
  EXPECT_EQ(next_probe_bytes(4 << 20, 400us, (3 << 20) + 1000, 49ms),
            0u);                                                    // the rest is smaller than the last
  EXPECT_EQ(next_probe_bytes(64 << 10, 60ms, 8 << 20, -10ms), 0u);  // a slow link: one batch says enough
  EXPECT_EQ(next_probe_bytes(64 << 10, 20ms, 8 << 20, 30ms), 128u << 10);  // or just a late one: another
  EXPECT_EQ(next_probe_bytes(64 << 10, Duration::zero(), 8 << 20, 50ms), 512u << 10);
}

// Completes every batch at once and remembers it.
struct Recorder {
  struct Batch {
    TransferKind kind;
    std::vector<Transfer> transfers;
  };
  PathProbe::Move move() {
    return [this](TransferKind kind, std::vector<Transfer> batch, Deadline, std::shared_ptr<void>,
                  std::function<void(Status)> done) {
      batches.push_back({kind, std::move(batch)});
      const bool fails = fail_at > 0 && batches.size() == fail_at;
      done(fails ? Status(Error{Code::kUnavailable, "gone", {}}) : Status());
    };
  }
  PathProbe::Done done() {
    return [this](const PathRates& host, const PathRates& device) {
      rates.emplace_back(host.put, host.get);
      device_rates = device;
    };
  }
  std::vector<Batch> batches;
  std::vector<std::pair<double, double>> rates;
  PathRates device_rates;
  size_t fail_at = 0;
};

TEST(PathProbe, WritesOnlyTheScratchRangeAndKeepsItsBudget) {
  Recorder recorder;
  ProbeBudget budget;
  budget.time = 1h;  // its bytes alone count, however long this thread is not scheduled
  std::make_shared<PathProbe>(kPool, budget, nullptr, recorder.move(), recorder.done())->start();
  size_t moved[2] = {0, 0};
  uint64_t lowest_get = kPool, highest_get = 0;
  for (const auto& batch : recorder.batches) {
    for (const Transfer& transfer : batch.transfers) {
      const uint64_t end = transfer.remote_offset + transfer.local.size();
      moved[batch.kind == TransferKind::kPut ? 0 : 1] += transfer.local.size();
      if (batch.kind == TransferKind::kPut) {
        EXPECT_GE(transfer.remote_offset, kPool);
        EXPECT_LE(end, kPool + kScratchBytes);
      } else {
        EXPECT_LE(end, kPool);
        lowest_get = std::min(lowest_get, transfer.remote_offset);
        highest_get = std::max(highest_get, end);
      }
    }
  }
  for (const size_t bytes : moved) {
    EXPECT_GT(bytes, 0u);
    EXPECT_LE(bytes, budget.bytes + (64 << 10));
  }
  EXPECT_EQ(lowest_get, 0u);
  EXPECT_GT(highest_get, kPool / 2);  // spread over the pool
  ASSERT_EQ(recorder.rates.size(), 1u);
  EXPECT_GT(recorder.rates[0].first, 0);
  EXPECT_GT(recorder.rates[0].second, 0);
}

TEST(PathProbe, MeasuresAPoolSmallerThanOnePiece) {
  Recorder recorder;
  std::make_shared<PathProbe>(1000, ProbeBudget(), nullptr, recorder.move(), recorder.done())->start();
  for (const auto& batch : recorder.batches) {
    for (const Transfer& transfer : batch.transfers) {
      const uint64_t end = transfer.remote_offset + transfer.local.size();
      EXPECT_LE(end, batch.kind == TransferKind::kGet ? 1000 : 1000 + kScratchBytes);
    }
  }
  EXPECT_EQ(recorder.rates.size(), 1u);
}

TEST(PathProbe, AFailureLeavesWhatIsKnown) {
  Recorder recorder;
  recorder.fail_at = 1;
  std::make_shared<PathProbe>(kPool, ProbeBudget(), nullptr, recorder.move(), recorder.done())->start();
  ASSERT_EQ(recorder.rates.size(), 1u);
  EXPECT_EQ(recorder.rates[0].first, 0);
  EXPECT_GT(recorder.rates[0].second, 0);
}

// A device in host memory.
struct Staged final : kernels::StagedMemory {
  std::span<std::byte> host() override { return memory; }
  Status download(size_t bytes) override { return copy(bytes, &downloaded); }
  Status upload(size_t bytes) override { return copy(bytes, &uploaded); }
  Status copy(size_t bytes, size_t* count) {
    if (lost) return Error{Code::kInternal, "the device is lost", {}};
    EXPECT_LE(bytes, memory.size());
    *count += bytes;
    return {};
  }
  std::vector<std::byte> memory = std::vector<std::byte>(2 * kScratchBytes);
  size_t downloaded = 0, uploaded = 0;
  bool lost = false;
};

// Every byte of the device's share is copied once, out before it is put and in behind its get, and moved from
// and to the page-locked memory alone.
TEST(PathProbe, MeasuresADevicesMemoryWithItsCopies) {
  Recorder recorder;
  const auto device = std::make_shared<Staged>();
  std::make_shared<PathProbe>(kPool, ProbeBudget(), device, recorder.move(), recorder.done())->start();
  size_t moved[2] = {0, 0};
  for (const auto& batch : recorder.batches) {
    for (const Transfer& transfer : batch.transfers) {
      if (transfer.local.data() < device->memory.data() ||
          transfer.local.data() >= device->memory.data() + device->memory.size())
        continue;
      moved[batch.kind == TransferKind::kPut ? 0 : 1] += transfer.local.size();
    }
  }
  EXPECT_GT(moved[0], 0u);
  EXPECT_EQ(moved[0], device->downloaded);
  EXPECT_EQ(moved[1], device->uploaded);
  ASSERT_EQ(recorder.rates.size(), 1u);
  EXPECT_GT(recorder.rates[0].first, 0);
  EXPECT_GT(recorder.device_rates.put, 0);
  EXPECT_GT(recorder.device_rates.get, 0);
}

TEST(PathProbe, ALostDeviceLeavesWhatIsKnownOfTheHost) {
  Recorder recorder;
  const auto device = std::make_shared<Staged>();
  device->lost = true;
  std::make_shared<PathProbe>(kPool, ProbeBudget(), device, recorder.move(), recorder.done())->start();
  ASSERT_EQ(recorder.rates.size(), 1u);
  EXPECT_GT(recorder.rates[0].second, 0);
  EXPECT_EQ(recorder.device_rates.put, 0);
  EXPECT_EQ(recorder.device_rates.get, 0);
}

}  // namespace
}  // namespace lowkey::transport
