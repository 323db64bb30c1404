#include "transport/attestation.h"

#include <gtest/gtest.h>

#include <fstream>

#include "monitoring/metrics.h"
#include "tests/support/temp_folder.h"
#include "transport/metrics_reporter.h"

namespace lowkey::transport {
namespace {

PeerInfo on_host(const std::string& host, bool rdma) {
  PeerInfo peer;
  peer.host = host;
  peer.rdma = rdma;
  return peer;
}

TEST(Attestation, ExpectsTheBestThatBothHostsAllow) {
  EXPECT_EQ(expected_path(on_host("a", true), on_host("a", true)), Path::kShm);
  EXPECT_EQ(expected_path(on_host("a", true), on_host("b", true)), Path::kRdma);
  EXPECT_EQ(expected_path(on_host("a", true), on_host("b", false)), Path::kTcp);
  EXPECT_EQ(expected_path(on_host("a", false), on_host("b", true)), Path::kTcp);
  EXPECT_EQ(expected_path(on_host("", false), on_host("", false)),
            Path::kTcp);  // nothing known: nothing shared
}

Attestation attestation(Path found, Path expected) {
  Attestation path;
  path.peer_rank = 3;
  path.found = found;
  path.expected = expected;
  path.device = "tcp/eth0";
  return path;
}

TEST(Attestation, ARequirementIsMetOrNamesThePair) {
  EXPECT_TRUE(check_required(attestation(Path::kTcp, Path::kRdma), "any").ok());
  EXPECT_TRUE(check_required(attestation(Path::kTcp, Path::kTcp), "expected").ok());
  EXPECT_TRUE(check_required(attestation(Path::kShm, Path::kShm), "shm").ok());
  EXPECT_FALSE(check_required(attestation(Path::kShm, Path::kShm), "rdma").ok());
  const Status refused = check_required(attestation(Path::kTcp, Path::kRdma), "expected");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message,
            "--require-transport expected: store 3 is reached over tcp (tcp/eth0), not rdma");
}

TEST(Attestation, WhatIsOnlyPresumedMeetsNoRequirement) {
  Attestation path = attestation(Path::kShm, Path::kShm);
  path.presumed = true;
  EXPECT_TRUE(check_required(path, "any").ok());
  EXPECT_FALSE(check_required(path, "expected").ok());
  EXPECT_EQ(check_required(path, "shm").error().message,
            "--require-transport shm: UCX does not tell how store 3 is reached, which must be over shm");
  EXPECT_NE(describe(path).find("store 3: presumably shm"), std::string::npos) << describe(path);
}

TEST(Attestation, SaysWhatItFoundInOneLine) {
  Attestation path = attestation(Path::kTcp, Path::kTcp);
  EXPECT_EQ(describe(path),
            "store 3: tcp (tcp/eth0), expected tcp; put not measured, get not measured (host memory)");
  path.put_bytes_per_second = 117.3e6;
  path.get_bytes_per_second = 8.25e9;
  EXPECT_NE(describe(path).find("put 117.3 MB/s, get 8.2 GB/s"), std::string::npos) << describe(path);
}

// Where UCX does not reach the GPU's memory, and where it does: the pages pass through host memory, and the
// pair says so.
TEST(Attestation, SaysHowGpuMemoryTravels) {
  EXPECT_EQ(gpu_memory(false, false), GpuMemory::kNone);
  EXPECT_EQ(gpu_memory(false, true), GpuMemory::kNone);
  EXPECT_EQ(gpu_memory(true, false), GpuMemory::kStaged);
  EXPECT_EQ(gpu_memory(true, true), GpuMemory::kReachable);
  Attestation path = attestation(Path::kTcp, Path::kTcp);
  path.gpu = gpu_memory(true, false);
  path.gpu_put_bytes_per_second = 6.5e9;
  EXPECT_NE(describe(path).find("(host memory); put 6.5 GB/s, get not measured (GPU memory, staged)"),
            std::string::npos)
      << describe(path);
}

TEST(Attestation, ReadsRdmaPortsOffTheKernel) {
  const lowkey::testing::TempFolder folder;
  EXPECT_FALSE(has_active_rdma(folder.path() / "absent"));
  const auto port = [&](const std::string& device, int number, const std::string& state) {
    const auto path = folder.path() / device / "ports" / std::to_string(number);
    std::filesystem::create_directories(path);
    std::ofstream(path / "state") << state << "\n";
  };
  EXPECT_FALSE(has_active_rdma(folder.path()));
  port("mlx5_0", 1, "1: DOWN");
  port("mlx5_1", 1, "2: INIT");
  EXPECT_FALSE(has_active_rdma(folder.path()));
  port("mlx5_1", 2, "4: ACTIVE");
  EXPECT_TRUE(has_active_rdma(folder.path()));
}

// A plane that has measured what the test says.
struct StatsOnly final : ControlPlane {
  std::string address() const override { return {}; }
  void connect(const std::string&, Deadline, std::function<void(Result<ConnectionPtr>)>) override {}
  void shutdown() override {}
  TransportStats stats() const override { return now; }
  TransportStats now;
};

TEST(Attestation, TheMetricsFollowAPeerThatComesBackAnotherWay) {
  monitoring::Metrics metrics({{"role", "worker"}, {"rank", "1"}});
  MetricsReporter reporter(metrics);
  StatsOnly plane;
  reporter.attach(plane);
  const auto page = [&] {
    const std::string snapshot = reporter.serialize();
    return monitoring::render_page(std::span(&snapshot, 1)).value();
  };
  const auto value = [](const std::string& page, const std::string& name, const std::string& label) {
    for (size_t at = page.find(name + "{"); at != page.npos; at = page.find(name + "{", at + 1)) {
      const std::string line = page.substr(at, page.find('\n', at) - at);
      if (line.find(label) != line.npos) return line.substr(line.rfind(' ') + 1);
    }
    return std::string("absent");
  };
  plane.now.paths_now = {attestation(Path::kTcp, Path::kShm)};
  plane.now.paths_now[0].get_bytes_per_second = 5e8;
  std::string text = page();
  EXPECT_EQ(value(text, "lowkey_transport_info", "transport=\"tcp\""), "1");
  EXPECT_EQ(value(text, "lowkey_transport_mismatch", "peer_rank=\"3\""), "1");
  EXPECT_EQ(value(text, "lowkey_transport_bandwidth_bytes_per_second", "direction=\"get\""), "500000000");

  EXPECT_EQ(text.find("memory=\"device\""), std::string::npos) << "the pages are in host memory";

  plane.now.paths_now = {attestation(Path::kShm, Path::kShm)};
  plane.now.paths_now[0].gpu = GpuMemory::kStaged;
  plane.now.paths_now[0].gpu_put_bytes_per_second = 3e9;
  text = page();
  EXPECT_EQ(value(text, "lowkey_transport_bandwidth_bytes_per_second", "put\",memory=\"device\""),
            "3000000000");
  EXPECT_EQ(value(text, "lowkey_transport_info", "transport=\"tcp\""), "absent");
  EXPECT_EQ(value(text, "lowkey_transport_info", "transport=\"shm\""), "1");
  EXPECT_EQ(value(text, "lowkey_transport_mismatch", "peer_rank=\"3\""), "0");

  plane.now.paths_now.clear();
  text = page();  // it is gone, and nothing is left to warn of
  for (const char* name :
       {"lowkey_transport_info", "lowkey_transport_mismatch", "lowkey_transport_bandwidth_bytes_per_second"})
    EXPECT_EQ(value(text, name, "peer_rank=\"3\""), "absent");
}

}  // namespace
}  // namespace lowkey::transport
