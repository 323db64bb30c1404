#include "cli/cluster_plan.h"

#include <gtest/gtest.h>

namespace lowkey::cli {
namespace {

using transport::Role;
using Named = std::vector<std::optional<Role>>;

TEST(ClusterPlan, DefaultsToOneReplicaOverAllMiddleRanks) {
  const auto plan = ClusterPlan::make(ServeConfig{}, Named(4));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->tp, 2);
  EXPECT_EQ(plan->ranks[0].role, Role::kCoordinator);
  EXPECT_EQ(plan->ranks[1].role, Role::kWorker);
  EXPECT_EQ(plan->ranks[2].replica_rank, 1);
  EXPECT_EQ(plan->ranks[3].role, Role::kStore);
}

TEST(ClusterPlan, NamesTheSumThatDoesNotHold) {
  ServeConfig config;
  config.tp = 2;
  config.replicas = 2;
  const auto plan = ClusterPlan::make(config, Named(5));
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().code, Code::kUsage);
  EXPECT_NE(plan.error().message.find("= 6"), std::string::npos) << plan.error().message;
  EXPECT_NE(plan.error().message.find("5 ranks"), std::string::npos) << plan.error().message;
}

TEST(ClusterPlan, TooFewRanks) {
  EXPECT_FALSE(ClusterPlan::make(ServeConfig{}, Named(2)).ok());
  ServeConfig config;
  config.stores = 0;
  EXPECT_TRUE(ClusterPlan::make(config, Named(2)).ok());
}

TEST(ClusterPlan, ADiskNeedsAStore) {
  ServeConfig config;
  config.disk = "/cache";
  EXPECT_TRUE(ClusterPlan::make(config, Named(3)).ok());
  config.stores = 0;
  EXPECT_EQ(ClusterPlan::make(config, Named(3)).error().message,
            "--disk /cache: expected at least one store, found --stores 0");
}

TEST(ClusterPlan, ReplicasTakeAdjacentRanks) {
  ServeConfig config;
  config.tp = 2;
  config.replicas = 2;
  const auto plan = ClusterPlan::make(config, Named(6));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->ranks[3].replica, 1);
  EXPECT_EQ(plan->ranks[3].replica_rank, 0);
  EXPECT_EQ(plan->ranks[4].replica_rank, 1);
}

TEST(ClusterPlan, NamedRolesMayComeInAnyOrderBehindTheCoordinator) {
  const auto plan =
      ClusterPlan::make(ServeConfig{}, Named{Role::kCoordinator, Role::kStore, Role::kWorker, Role::kWorker});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->tp, 2);
  EXPECT_EQ(plan->ranks[3].replica_rank, 1);
  EXPECT_FALSE(ClusterPlan::make(ServeConfig{}, Named{Role::kWorker, Role::kCoordinator, Role::kStore}).ok());
  EXPECT_FALSE(ClusterPlan::make(ServeConfig{}, Named{Role::kCoordinator, std::nullopt, Role::kStore}).ok());
}

TEST(ClusterPlan, AJobThatJoinsIsOneReplica) {
  ServeConfig config;
  config.join = "127.0.0.1:7700";
  const auto plan = ClusterPlan::make(config, Named(2, Role::kWorker));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->tp, 2);
  EXPECT_EQ(plan->stores, 0);
  EXPECT_EQ(plan->ranks[1].replica_rank, 1);
  EXPECT_EQ(ClusterPlan::make(config, Named(2)).error().code, Code::kUsage);
  EXPECT_EQ(ClusterPlan::make(config, Named{Role::kWorker, Role::kStore}).error().code, Code::kUsage);
  config.tp = 1;
  EXPECT_EQ(ClusterPlan::make(config, Named(2, Role::kWorker)).error().code, Code::kUsage);
}

TEST(ClusterPlan, AStoreJoinsAlone) {
  ServeConfig config;
  config.join = "127.0.0.1:7700";
  const auto plan = ClusterPlan::make(config, Named{Role::kStore});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->stores, 1);
  EXPECT_EQ(plan->replicas, 0);
  EXPECT_EQ(plan->ranks[0].role, Role::kStore);
  EXPECT_EQ(ClusterPlan::make(config, Named(2, Role::kStore)).error().code, Code::kUsage);
}

TEST(ClusterPlan, ACoordinatorAloneNeedsAPortToBeFoundAt) {
  ServeConfig config;
  EXPECT_EQ(ClusterPlan::make(config, Named{Role::kCoordinator}).error().code, Code::kUsage);
  config.cluster_port = 7700;
  const auto plan = ClusterPlan::make(config, Named{Role::kCoordinator});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->ranks.size(), 1u);
  EXPECT_EQ(plan->replicas, 0);
}

}  // namespace
}  // namespace lowkey::cli
