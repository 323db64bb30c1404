#include "base/numa.h"

#include <gtest/gtest.h>
#include <sched.h>

namespace lowkey {
namespace {

using Nodes = std::vector<int>;

TEST(Numa, SpreadsOverNodesOnlyWhereThereAreSeveral) {
  const NumaInterleave interleave;
  EXPECT_EQ(interleave.active(), usable_numa_nodes().size() > 1);
}

TEST(Numa, WorkersOfAHostDivideItsNodesEvenly) {
  const Nodes two{0, 1}, four{0, 2, 4, 6};
  EXPECT_EQ(nodes_of_worker(two, 0, 1), two) << "one worker: all of them";
  EXPECT_EQ(nodes_of_worker(two, 0, 2), Nodes{0});
  EXPECT_EQ(nodes_of_worker(two, 1, 2), Nodes{1});
  EXPECT_EQ(nodes_of_worker(two, 1, 4), Nodes{0}) << "several on one";
  EXPECT_EQ(nodes_of_worker(two, 2, 4), Nodes{1});
  EXPECT_EQ(nodes_of_worker(four, 0, 2), (Nodes{0, 2})) << "several of one";
  EXPECT_EQ(nodes_of_worker(four, 1, 2), (Nodes{4, 6}));
  EXPECT_EQ(nodes_of_worker(Nodes{5}, 2, 3), Nodes{5});
  EXPECT_EQ(nodes_of_worker(Nodes{}, 0, 2), Nodes{});
}

TEST(Numa, WorkersThatCannotDivideThemTakeAll) {
  const Nodes two{0, 1}, four{0, 1, 2, 3};
  for (int worker = 0; worker < 3; ++worker) {
    EXPECT_EQ(nodes_of_worker(two, worker, 3), two);
    EXPECT_EQ(nodes_of_worker(four, worker, 3), four);
  }
}

TEST(Numa, EveryNodeIsUsedByTheSameNumberOfWorkers) {
  for (int count = 1; count <= 8; ++count) {
    Nodes nodes;
    for (int node = 0; node < count; ++node) nodes.push_back(10 + node);
    for (int workers = 1; workers <= 16; ++workers) {
      std::vector<int> users(count);
      for (int worker = 0; worker < workers; ++worker) {
        for (const int node : nodes_of_worker(nodes, worker, workers)) ++users[node - 10];
      }
      for (const int of_node : users)
        EXPECT_EQ(of_node, users[0]) << count << " nodes, " << workers << " workers";
      EXPECT_GE(users[0], 1);
    }
  }
}

TEST(Numa, ReadsTheKernelsLists) {
  EXPECT_EQ(parse_cpu_list("0-3,8"), (Nodes{0, 1, 2, 3, 8}));
  EXPECT_EQ(parse_cpu_list("5"), Nodes{5});
  EXPECT_EQ(parse_cpu_list(""), Nodes{});
  EXPECT_EQ(parse_cpu_list("x,-1,2-99999,7"), Nodes{7});
}

TEST(Numa, AProcessOnOneNodeIsLeftAlone) {
  if (usable_numa_nodes().size() > 1) GTEST_SKIP() << "this machine has several nodes";
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_EQ(place_worker(1, 2), Nodes{});
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

}  // namespace
}  // namespace lowkey
