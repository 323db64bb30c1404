#include "transport/ucx/endpoint_info.h"

#include <gtest/gtest.h>

namespace lowkey::transport {
namespace {

constexpr char kSharedMemory[] = R"(#
# UCP endpoint 
#
#               peer: <no debug data>
#                 lane[0]:  0:sysv/memory.0 md[0]           -> md[0]/sysv/sysdev[255] am am_bw#0
#                 lane[1]:  1:posix/memory.0 md[1]          -> md[1]/posix/sysdev[255]
#
#                  put[0]: 0..<short>..4294967296..<bcopy>..(inf)
#                  get[0]: 0..<bcopy>..(inf)
#                  put[1]: 0..<short>..4294967296..<bcopy>..(inf)
#                  get[1]: 0..<bcopy>..(inf)
#
#                  rma_bw: mds #
)";

// A connection made by address: the lane of the connection manager has no resource.
constexpr char kTcp[] = R"(#
# UCP endpoint 
#
#               peer: <no debug data>
#                 lane[0]:  cm tcp
#                 lane[1]:  1:tcp/eth0.100.0 md[0]          -> md[0]/tcp/sysdev[255] am am_bw#0
#
#                  rma_bw: mds #
)";

constexpr char kRdma[] = R"(#
# UCP endpoint
#
#               peer: host-b:1234
#                 lane[0]:  3:rc_mlx5/mlx5_0:1.0 md[3]      -> md[3]/ib/sysdev[0] rma_bw#0 am am_bw#0
#                 lane[1]:  4:rc_mlx5/mlx5_1:1.0 md[4]      -> md[4]/ib/sysdev[1] rma_bw#1
#                 lane[2]:  0:tcp/eth0.0 md[0]              -> md[0]/tcp/sysdev[255] wireup
#
#                  put[0]: 0..<short>..172..<bcopy>..1112..<zcopy>..(inf)
#                  get[0]: 0..<bcopy>..1112..<zcopy>..(inf)
#                  put[1]: 0..<short>..172..<bcopy>..1112..<zcopy>..(inf)
#                  get[1]: 0..<bcopy>..1112..<zcopy>..(inf)
)";

TEST(EndpointInfo, SharedMemory) {
  const auto lanes = parse_endpoint_info(kSharedMemory);
  ASSERT_EQ(lanes.size(), 2u);
  EXPECT_EQ(lanes[0].transport, "sysv");
  EXPECT_EQ(lanes[0].device, "memory");
  EXPECT_TRUE(lanes[0].messages);
  EXPECT_FALSE(lanes[1].messages);
  EXPECT_TRUE(lanes[0].one_sided && lanes[1].one_sided);
  EXPECT_EQ(path_of(transfer_lanes(lanes)), Path::kShm);
  EXPECT_EQ(device_names(transfer_lanes(lanes)), "sysv/memory,posix/memory");
}

TEST(EndpointInfo, TcpEmulatesTransfersOverItsMessages) {
  const auto lanes = parse_endpoint_info(kTcp);
  ASSERT_EQ(lanes.size(), 1u);
  EXPECT_EQ(lanes[0].device, "eth0.100");  // a VLAN: only the last number is UCX's
  EXPECT_FALSE(lanes[0].one_sided);
  EXPECT_EQ(path_of(transfer_lanes(lanes)), Path::kTcp);
  EXPECT_EQ(device_names(transfer_lanes(lanes)), "tcp/eth0.100");
}

TEST(EndpointInfo, RdmaOnTwoPortsAndNotTheWireUpLane) {
  const auto lanes = parse_endpoint_info(kRdma);
  ASSERT_EQ(lanes.size(), 3u);
  EXPECT_EQ(path_of(transfer_lanes(lanes)), Path::kRdma);
  EXPECT_EQ(device_names(transfer_lanes(lanes)), "rc_mlx5/mlx5_0:1,rc_mlx5/mlx5_1:1");
}

TEST(EndpointInfo, AMixedPathIsAsGoodAsItsWorstLane) {
  EXPECT_EQ(path_of({{"rc_verbs", "mlx5_0:1", true, false}, {"tcp", "eth0", true, false}}), Path::kTcp);
}

TEST(EndpointInfo, WhatDoesNotLookAsExpectedIsPassedOver) {
  for (const char* text : {"", "\n\n", "lane[", "lane[x]: 0:tcp/eth0.0", "lane[0]",
                           "lane[0]:", "lane[0]: 0:", "lane[0]: :tcp/eth0.0", "lane[0]: 0:tcp",
                           "lane[0]: 0:/eth0.0", "lane[0]: 0:tcp/.0", "lane[0]: 0:tcp/eth0",
                           "put[0]: 0..(inf)", "lane[99999999999999]: 0:tcp/eth0.0"}) {
    EXPECT_TRUE(parse_endpoint_info(text).empty()) << text;
  }
  EXPECT_EQ(device_names({}), "unknown");
  const std::string whole = kRdma;
  for (size_t length = 0; length < whole.size(); ++length) parse_endpoint_info(whole.substr(0, length));
}

}  // namespace
}  // namespace lowkey::transport
