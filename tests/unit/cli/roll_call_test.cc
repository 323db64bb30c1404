// Phases of the start, with a thread for each rank.
#include "cli/roll_call.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "transport/loopback/loopback_comm.h"

namespace lowkey::cli {
namespace {

using namespace std::chrono_literals;

// Counts the calls.
class CountingComm final : public transport::HostComm {
 public:
  explicit CountingComm(std::unique_ptr<transport::HostComm> comm) : comm_(std::move(comm)) {}
  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  Status all_reduce_sum(std::span<float> data, Deadline deadline) override {
    return comm_->all_reduce_sum(data, deadline);
  }
  Status gather(std::span<const float> mine, std::span<float> all, int root, Deadline deadline) override {
    return comm_->gather(mine, all, root, deadline);
  }
  Status barrier(Deadline deadline) override { return comm_->barrier(deadline); }
  Result<std::vector<std::string>> all_gather(const std::string& mine, Deadline deadline) override {
    auto all = comm_->all_gather(mine, deadline);
    ++calls_;
    calls_.notify_all();
    return all;
  }
  void wait_calls(int wanted) {
    for (int calls = calls_; calls < wanted; calls = calls_) calls_.wait(calls);
  }

 private:
  const std::unique_ptr<transport::HostComm> comm_;
  std::atomic<int> calls_ = 0;
};

struct Ranks {
  explicit Ranks(int size) {
    for (auto& comm : transport::make_loopback_comms(size))
      comms.push_back(std::make_unique<CountingComm>(std::move(comm)));
  }
  std::future<Roll> call(int rank, RollCall options, std::function<Status()> work) {
    options.phase = "loading";
    options.longest_pause = 5ms;
    return std::async(std::launch::async, [this, rank, options, work = std::move(work)] {
      return call_roll(*comms[rank], options, work);
    });
  }
  std::vector<std::unique_ptr<CountingComm>> comms;
};

Status done() {
  return {};
}

TEST(RollCall, WaitsForTheSlowestAndKeepsCallingMeanwhile) {
  Ranks ranks(3);
  auto slow = ranks.call(0, {}, [&] {
    ranks.comms[0]->wait_calls(20);
    return Status();
  });
  auto second = ranks.call(1, {}, done), third = ranks.call(2, {}, done);
  for (auto* rank : {&slow, &second, &third}) {
    const Roll roll = rank->get();
    EXPECT_TRUE(roll.status.ok());
    EXPECT_TRUE(roll.all_there);
  }
}

TEST(RollCall, AFailureCallsOffWhatOthersStillDo) {
  Ranks ranks(3);
  std::promise<Error> cut_off;
  auto working = ranks.call(0, {.on_cut_off = [&](const Error& error) { cut_off.set_value(error); }},
                            [&]() -> Status {  // what cannot be called off, in a process that could not end
                              const Error error = cut_off.get_future().get();
                              EXPECT_EQ(error.code, Code::kBadInput);
                              EXPECT_EQ(error.message, "") << "the rank that failed tells why";
                              return {};
                            });
  auto failing = ranks.call(1, {}, []() -> Status {
    return Error{Code::kBadInput, "model.safetensors", {}};
  });
  auto third = ranks.call(2, {}, done);
  EXPECT_EQ(failing.get().status.error().message, "model.safetensors");
  const Roll roll = third.get();
  ASSERT_FALSE(roll.status.ok());
  EXPECT_EQ(roll.status.error().code, Code::kBadInput);
  EXPECT_EQ(roll.status.error().message, "");
  EXPECT_FALSE(roll.all_there) << "nobody may wait for the one that was called off";
  EXPECT_EQ(working.get().status.error().code, Code::kBadInput);
}

TEST(RollCall, AFailureThatNobodyIsCalledOffForLeavesAllThere) {
  Ranks ranks(2);
  auto failing = ranks.call(0, {}, [&]() -> Status {
    ranks.comms[0]->wait_calls(5);  // until the other one is done
    return Error{Code::kUsage, "no", {}};
  });
  auto other = ranks.call(1, {}, done);
  EXPECT_TRUE(failing.get().all_there);
  const Roll roll = other.get();
  EXPECT_EQ(roll.status.error().code, Code::kUsage);
  EXPECT_TRUE(roll.all_there);
}

TEST(RollCall, SilenceIsALossInThatPhase) {
  Ranks ranks(3);
  std::promise<Error> cut_off;
  auto working = ranks.call(
      0, {.patience = 100ms, .on_cut_off = [&](const Error& error) { cut_off.set_value(error); }}, [&] {
        EXPECT_EQ(cut_off.get_future().get().code, Code::kUnavailable);
        return Status();
      });
  auto waiting = ranks.call(1, {.patience = 100ms}, done);
  const Roll roll = waiting.get();
  ASSERT_FALSE(roll.status.ok());
  EXPECT_EQ(roll.status.error().code, Code::kUnavailable);
  EXPECT_TRUE(roll.status.error().message.starts_with("while loading: ")) << roll.status.error().message;
  EXPECT_FALSE(roll.all_there);
  EXPECT_FALSE(working.get().all_there);
}

TEST(RollCall, NobodyIsCalledWhereNobodyIs) {
  Ranks alone(1);
  EXPECT_TRUE(alone.call(0, {}, done).get().status.ok());
  alone.comms[0]->wait_calls(0);
}

}  // namespace
}  // namespace lowkey::cli
