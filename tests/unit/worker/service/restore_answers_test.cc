// An answer to a restore that is lost would be owed for good: whoever loses it ends the replica.
#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <thread>

#include "tests/support/fake_connection.h"
#include "tests/unit/worker/engine/cache_reading_model.h"
#include "transport/loopback/loopback_comm.h"
#include "worker/service/follower_service.h"
#include "worker/service/leader_service.h"

namespace lowkey::worker {
namespace {

using transport::MessageType;
using transport::Role;

struct Ended {
  WorkerService::Options options() {
    return {.replica_size = 2, .on_end = [this](const Error& error) { reason = error.message; }};
  }
  std::string reason;  // empty: it goes on
};

TEST(RestoreAnswers, AFollowerThatCannotSendOneEnds) {
  boost::asio::io_context io;
  monitoring::Metrics metrics{{{"role", "worker"}, {"rank", "1"}}};
  CacheReadingModel model(1, 2);
  kernels::PageSpec spec;
  spec.page_tokens = 16;
  const auto layout =
      kernels::PageLayout::make(spec, model.config().cache_shape(2, kernels::DType::kF32)).value();
  const auto memory = kvstore::PageMemory::make(layout, 1 << 20).value();
  auto comms = transport::make_loopback_comms(2);
  Ended ended;
  FollowerService service(io, metrics, ended.options());
  // Without a store a restore is answered at once.
  Follower follower({}, model, *memory, *comms[1], {}, metrics);
  service.set_engine(follower);
  const auto leader = std::make_shared<test::FakeConnection>(Role::kWorker, 1);
  const auto handlers = service.handlers();
  handlers.on_up(leader);
  std::thread steps([&] { EXPECT_TRUE(service.run(std::chrono::minutes(1)).ok()); });
  const auto ask = [&](uint64_t id) {
    wire::RestoreCommand command;
    command.set_restore_id(id);
    handlers.on_message(leader, MessageType::kRestoreCommand, command.SerializeAsString());
    const int sent = leader->sent[MessageType::kRestoreResult];
    const Deadline deadline = Deadline::in(std::chrono::seconds(20));
    while (leader->sent[MessageType::kRestoreResult] == sent && !deadline.passed()) {
      io.restart();
      io.run_for(std::chrono::milliseconds(1));
    }
  };
  ask(1);
  EXPECT_EQ(leader->sent[MessageType::kRestoreResult], 1);
  EXPECT_EQ(ended.reason, "");
  leader->outcome = Error{Code::kResourceExhausted, "too much in flight"};
  ask(2);
  EXPECT_EQ(ended.reason, "leader of the replica: too much in flight");
  service.stop();
  steps.join();
}

TEST(RestoreAnswers, ALeaderThatCannotReadOneEnds) {
  boost::asio::io_context io;
  monitoring::Metrics metrics{{{"role", "worker"}, {"rank", "1"}}};
  Ended ended;
  LeaderService service(io, metrics, ended.options());
  const auto follower = std::make_shared<test::FakeConnection>(Role::kWorker, 2, 0, 1);
  service.handlers().on_message(follower, MessageType::kRestoreResult, "\xff\xff");
  EXPECT_EQ(ended.reason, "rank 1 of the replica: malformed RestoreResult of 2 bytes");
}

}  // namespace
}  // namespace lowkey::worker
