// A worker's ties to its stores: as long as one is named, and has not said that it leaves, it is dialled
// again.
#include "cli/cluster_member.h"

#include <gtest/gtest.h>

#include "tests/unit/transport/node.h"
#include "transport/loopback/loopback_network.h"

namespace lowkey::cli {
namespace {

using transport::ConnectionPtr;
using transport::ControlHandlers;
using transport::ControlOptions;
using transport::MessageType;
using transport::Node;
using transport::Role;
using transport::test_options;

class StoreTies : public ::testing::Test {
 protected:
  using Planes = decltype(Node::Make()(std::declval<boost::asio::io_context&>(), {}, {}));

  Planes make(boost::asio::io_context& io, ControlOptions options, ControlHandlers handlers) {
    LOWKEY_ASSIGN(planes, network->make_transport(io, std::move(options), std::move(handlers)));
    return std::pair(std::move(planes.control), std::move(planes.data));
  }
  std::unique_ptr<Node> store(int rank) {
    return std::make_unique<Node>(
        [this](auto& io, auto options, auto handlers) {
          return make(io, std::move(options), std::move(handlers));
        },
        test_options(Role::kStore, rank));
  }
  ~StoreTies() override {
    if (worker) worker->stop();
    member.reset();
  }

  const std::shared_ptr<transport::LoopbackNetwork> network = transport::LoopbackNetwork::create();
  std::unique_ptr<Node> three = store(3), four = store(4);
  std::unique_ptr<ClusterMember> member;
  std::unique_ptr<Node> worker = std::make_unique<Node>(
      [this](auto& io, auto options, auto handlers) -> Planes {
        member = std::make_unique<ClusterMember>(io, ClusterMember::Options{});
        LOWKEY_ASSIGN(planes, make(io, std::move(options), member->wrap(std::move(handlers))));
        member->attach(*planes.first);
        return planes;
      },
      test_options(Role::kWorker, 1));
};

TEST_F(StoreTies, OneThatWasClosedForAnErrorIsDialledAgainAndOneThatLeavesIsNot) {
  const auto close = [](Node& side, const ConnectionPtr& connection) {
    side.on_io([&] {
      connection->close("malformed message");
      return 0;
    });
  };
  worker->on_io([&] {
    member->set_stores({{3, three->control->address()}});
    return 0;
  });
  ASSERT_TRUE(worker->wait_ups(1));
  close(*worker, worker->ups()[0]);
  ASSERT_TRUE(worker->wait_ups(2)) << "closed by the worker";
  ASSERT_TRUE(three->wait_ups(2));
  close(*three, three->ups()[1]);
  ASSERT_TRUE(worker->wait_ups(3)) << "closed by the store";

  worker->on_io([&] {
    member->set_stores({{3, three->control->address()}, {4, four->control->address()}});
    return 0;
  });
  ASSERT_TRUE(worker->wait_ups(4));
  ASSERT_TRUE(three->wait_ups(3));
  ASSERT_TRUE(three->send(three->ups()[2], MessageType::kLeave, "").ok());
  ASSERT_TRUE(worker->wait_messages(1));
  close(*worker, worker->ups()[2]);
  ASSERT_TRUE(worker->wait_downs(3));
  close(*worker, worker->ups()[3]);
  ASSERT_TRUE(worker->wait_ups(5)) << "all that are missing are dialled at once";
  EXPECT_EQ(worker->ups()[4]->peer().world_rank, 4);
  EXPECT_EQ(three->ups().size(), 3u);
}

}  // namespace
}  // namespace lowkey::cli
