// The rules of NcclComm against a library that does what NCCL promises, in host memory: what is begun is
// polled, errors and deadlines abort, and everything after that fails. NCCL itself needs devices
// (tests/gpu/run).
#include "transport/nccl/nccl_comm.h"

#include <gtest/gtest.h>

#include <thread>

#include "kernels/ops/host_backend.h"
#include "kernels/ops/reference_backend.h"
#include "transport/loopback/loopback_comm.h"

namespace lowkey::transport {
namespace {

// One per thread, that is per rank.
struct Fake {
  int pending = 0;  // polls until what was begun is taken in
  ncclResult_t then = ncclSuccess;
  int aborted = 0, destroyed = 0, reduced = 0;
  int blocking = -1, rank = -1, size = 0;
  bool stream_idle = true;
  std::vector<std::string> order;  // of what ends
};
thread_local Fake fake;

ncclComm_t handle() {
  return reinterpret_cast<ncclComm_t>(&fake);
}
ncclResult_t begun() {
  return fake.pending > 0 ? ncclInProgress : fake.then;
}

NcclApi fake_api() {
  NcclApi api;
  api.get_unique_id = [](ncclUniqueId* id) {
    for (char& byte : id->internal) byte = 'x';
    return ncclSuccess;
  };
  api.init_rank = [](ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
    if (id.internal[0] != 'x') return ncclInvalidArgument;
    *comm = handle();
    fake.size = size, fake.rank = rank, fake.blocking = config->blocking;
    return begun();
  };
  api.async_error = [](ncclComm_t, ncclResult_t* state) {
    if (fake.pending > 0) --fake.pending;
    *state = begun();
    return ncclSuccess;
  };
  api.finalize = [](ncclComm_t) {
    fake.order.push_back("finalize");
    return ncclSuccess;
  };
  api.destroy = [](ncclComm_t) {
    ++fake.destroyed;
    return ncclSuccess;
  };
  api.abort = [](ncclComm_t) {
    ++fake.aborted;
    fake.order.push_back("abort");
    return ncclSuccess;
  };
  api.all_reduce = [](const void*, void* data, size_t count, ncclDataType_t, ncclRedOp_t, ncclComm_t,
                      cudaStream_t) {
    ++fake.reduced;
    for (size_t i = 0; i < count; ++i) static_cast<float*>(data)[i] *= static_cast<float>(fake.size);
    return begun();
  };
  api.send = [](const void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) { return begun(); };
  api.receive = [](void* data, size_t count, ncclDataType_t, int peer, ncclComm_t, cudaStream_t) {
    for (size_t i = 0; i < count; ++i) static_cast<float*>(data)[i] = static_cast<float>(100 * peer);
    return ncclSuccess;
  };
  api.group_start = [] { return ncclSuccess; };
  api.group_end = [] { return begun(); };
  api.error_string = [](ncclResult_t result) { return result == ncclRemoteError ? "remote error" : "error"; };
  api.last_error = [](ncclComm_t) { return "socket of\nrank 1 closed"; };
  return api;
}

// Runs `body(comm, backend)` on both ranks of a group.
template <class Body>
void on_both(Body body) {
  auto hosts = make_loopback_comms(2);
  const auto rank = [&](int r) {
    fake = {};
    const auto backend = kernels::make_reference_backend(kernels::DType::kF32);
    auto comm = NcclComm::make(
        fake_api(), *hosts[r], *backend, [] { return Result<bool>(fake.stream_idle); },
        Deadline::in(std::chrono::seconds(20)));
    ASSERT_TRUE(comm.ok()) << comm.error().message;
    EXPECT_EQ(fake.blocking, 0);
    EXPECT_EQ(fake.rank, r);
    body(**comm, *backend);
  };
  std::jthread other([&] { rank(1); });
  rank(0);
}

TEST(NcclComm, WaitsUntilWhatWasBegunIsTakenIn) {
  on_both([](DeviceComm& comm, kernels::Backend&) {
    std::vector<float> x = {1, 2, 3};
    fake.pending = 50;
    EXPECT_TRUE(comm.all_reduce_sum({.data = x.data(), .rows = 1, .cols = 3},
                                    Deadline::in(std::chrono::seconds(20))));
    EXPECT_EQ(fake.pending, 0);
    EXPECT_EQ(x, (std::vector<float>{2, 4, 6}));
    EXPECT_TRUE(comm.settle(Deadline::in(std::chrono::seconds(20))));
  });
}

TEST(NcclComm, GathersByRank) {
  on_both([](DeviceComm& comm, kernels::Backend&) {
    std::vector<float> mine = {7, 8}, all(comm.rank() == 0 ? 4 : 0);
    EXPECT_TRUE(comm.gather({.data = mine.data(), .rows = 1, .cols = 2}, all,
                            Deadline::in(std::chrono::seconds(20))));
    if (comm.rank() == 0) {
      EXPECT_EQ(all, (std::vector<float>{7, 8, 100, 100}));
    }
  });
}

TEST(NcclComm, GathersOnTheDevice) {
  on_both([](DeviceComm& comm, kernels::Backend&) {
    std::vector<float> mine = {7, 8};
    const kernels::Tensor tensor{.data = mine.data(), .rows = 1, .cols = 2};
    const Deadline deadline = Deadline::in(std::chrono::seconds(20));
    ASSERT_TRUE(comm.gathers_on_device());
    if (comm.rank() != 0) {
      EXPECT_TRUE(comm.gather(tensor, {}, deadline));
      return;
    }
    kernels::Tensor all;
    ASSERT_TRUE(comm.gather_on_device(tensor, &all, deadline));
    ASSERT_TRUE(comm.settle(deadline));
    EXPECT_EQ(all.rows, 2);
    const float* values = all.as<float>();
    EXPECT_EQ(std::vector(values, values + 4), (std::vector<float>{7, 8, 100, 100}));
  });
}

TEST(NcclComm, AnErrorAbortsAndEverythingAfterItFails) {
  on_both([](DeviceComm& comm, kernels::Backend&) {
    std::vector<float> x = {1};
    const kernels::Tensor tensor{.data = x.data(), .rows = 1, .cols = 1};
    fake.pending = 3;
    fake.then = ncclRemoteError;
    const Status failed = comm.all_reduce_sum(tensor, Deadline::in(std::chrono::seconds(20)));
    ASSERT_FALSE(failed.ok());
    const std::string who = fmt::format("rank {} of 2", comm.rank());
    EXPECT_NE(failed.error().message.find(who), std::string::npos) << failed.error().message;
    EXPECT_NE(failed.error().message.find("remote error (socket of?rank 1 closed)"), std::string::npos);
    EXPECT_EQ(fake.aborted, 1);
    EXPECT_FALSE(comm.all_reduce_sum(tensor, Deadline::in(std::chrono::seconds(20))).ok());
    EXPECT_FALSE(comm.settle(Deadline::in(std::chrono::seconds(20))).ok());
    EXPECT_EQ(fake.aborted, 1);
    EXPECT_EQ(fake.reduced, 1);
  });
}

TEST(NcclComm, APeerThatDoesNotAnswerIsADeadline) {
  on_both([](DeviceComm& comm, kernels::Backend&) {
    fake.stream_idle = false;  // a kernel that waits for its peer for good
    const Status late = comm.settle(Deadline::in(std::chrono::milliseconds(5)));
    ASSERT_FALSE(late.ok());
    EXPECT_EQ(late.error().code, Code::kDeadlineExceeded);
    EXPECT_EQ(fake.aborted, 1);
  });
}

// Room is made by a call that waits for the stream, without a deadline.
TEST(NcclComm, MakesRoomOnlyBehindPeersThatAnswered) {
  on_both([](DeviceComm& comm, kernels::Backend&) {
    if (comm.rank() != 0) return;
    std::vector<float> mine = {7};
    const kernels::Tensor tensor{.data = mine.data(), .rows = 1, .cols = 1};
    kernels::Tensor all;
    fake.stream_idle = false;
    const Status late = comm.gather_on_device(tensor, &all, Deadline::in(std::chrono::milliseconds(5)));
    ASSERT_FALSE(late.ok());
    EXPECT_EQ(late.error().code, Code::kDeadlineExceeded);
    EXPECT_EQ(fake.aborted, 1);
  });
}

// A backend that records steps, and nothing else.
struct Recording final : kernels::HostBackend {
  struct Graphs final : kernels::StepGraphs {
    int padded_rows(const Step&) const override { return 0; }
    bool begin(const Step&) override { return true; }
    void end() override {}
    void abandon() override { fake.order.push_back("abandon"); }
    void set_capacity(size_t graphs) override { fake.order.push_back("capacity " + std::to_string(graphs)); }
    Counts counts() const override { return {}; }
  } graphs;
  using Tensor = kernels::Tensor;
  using Linear = kernels::Linear;
  using DType = kernels::DType;
  kernels::StepGraphs* step_graphs() override { return &graphs; }
  DType dtype() const override { return DType::kF32; }
  std::unique_ptr<Linear> pack_linear(const void*, DType, int, int, int64_t) override { return nullptr; }
  std::unique_ptr<Linear> pack_embedding(const void*, DType, int, int, int64_t) override { return nullptr; }
  void linear(const Linear&, const Tensor&, const float*, bool, const Tensor&) override {}
  void embed(const Linear&, std::span<const int32_t>, int, float, const Tensor&) override {}
  void rms_norm(const Tensor&, const float*, float, const Tensor&) override {}
  void rope(const kernels::RopeTable&, std::span<const int32_t>, const Tensor&) override {}
  void gated(kernels::Activation, const Tensor&, const Tensor&) override {}
  void soft_cap(float, const Tensor&) override {}
  void add(const Tensor&, const Tensor&) override {}
  void attend(const kernels::AttentionStep&) override {}
  void compact(const kernels::Compaction&) override {}
};

// NCCL would wait for graphs with its kernels for good.
TEST(NcclComm, GraphsGoBeforeTheCommunicator) {
  auto hosts = make_loopback_comms(2);
  const auto rank = [&](int r) {
    using Order = std::vector<std::string>;
    for (const bool fails : {false, true}) {
      fake = {};
      Recording backend;
      {
        auto comm = NcclComm::make(
            fake_api(), *hosts[r], backend, [] { return Result<bool>(true); },
            Deadline::in(std::chrono::seconds(20)));
        ASSERT_TRUE(comm.ok()) << comm.error().message;
        if (fails) fake.then = ncclRemoteError;
        std::vector<float> x = {1};
        EXPECT_EQ((*comm)
                      ->all_reduce_sum({.data = x.data(), .rows = 1, .cols = 1},
                                       Deadline::in(std::chrono::seconds(20)))
                      .ok(),
                  !fails);
      }
      EXPECT_EQ(fake.order, (Order{"abandon", "capacity 0", fails ? "abort" : "finalize"}));
    }
  };
  std::jthread other([&] { rank(1); });
  rank(0);
}

}  // namespace
}  // namespace lowkey::transport
