#include "base/host_memory.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/bytes.h"
#include "tests/support/temp_folder.h"

namespace lowkey {
namespace {

// A system as its files describe it.
struct HostMemory : ::testing::Test {
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((folder.path() / path).parent_path());
    std::ofstream(folder.path() / path) << text << "\n";
  }
  // 1 TiB that this machine does not have: limits count only where they are lower.
  HostMemory() { write("proc/meminfo", "MemTotal:  2147483648 kB\nMemAvailable:   1073741824 kB"); }

  testing::TempFolder folder;
  const HostFiles files{folder.path() / "proc", folder.path() / "cgroup"};
};

TEST_F(HostMemory, WithoutGroupsTheHostIsTheLimit) {
  EXPECT_EQ(host_memory_available_bytes(files), 1ull << 40);
  EXPECT_EQ(host_memory_limit_bytes(files), host_memory_limit_bytes({folder.path(), folder.path()}));
  EXPECT_GE(usable_cores(files), 1);
}

TEST_F(HostMemory, ReadsVersionTwo) {
  write("proc/self/cgroup", "0::/outer/inner");
  write("cgroup/outer/memory.max", "1048576");
  write("cgroup/outer/memory.current", "700000");
  write("cgroup/outer/memory.stat", "anon 1\ninactive_file 150000\nactive_file 50000");
  write("cgroup/outer/inner/memory.max", "max");
  write("cgroup/outer/inner/memory.current", "1000");
  write("cgroup/outer/cpu.max", "50000 100000");
  EXPECT_EQ(host_memory_limit_bytes(files), kMiB);
  EXPECT_EQ(host_memory_available_bytes(files), kMiB - 500000) << "clean file pages give way";
  EXPECT_EQ(usable_cores(files), 1);
}

TEST_F(HostMemory, ReadsVersionOne) {
  write("proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/mine\n3:hugetlb,memory:/mine\n0::/");
  write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712");  // its way to say none
  write("cgroup/memory/memory.usage_in_bytes", "123456789");
  write("cgroup/memory/mine/memory.limit_in_bytes", "2097152");
  write("cgroup/memory/mine/memory.usage_in_bytes", "1000000");
  write("cgroup/memory/mine/memory.stat",
        "inactive_file 1\ntotal_inactive_file 300000\ntotal_active_file 200000");
  write("cgroup/cpu/mine/cpu.cfs_quota_us", "100000");
  write("cgroup/cpu/mine/cpu.cfs_period_us", "100000");
  EXPECT_EQ(host_memory_limit_bytes(files), 2 * kMiB);
  EXPECT_EQ(host_memory_available_bytes(files), 2 * kMiB - 500000);
  EXPECT_EQ(usable_cores(files), 1);
}

// In a container the path is the host's; what is mounted is the own group.
TEST_F(HostMemory, FindsTheGroupOfAContainerAtTheRoot) {
  write("proc/self/cgroup", "4:memory:/docker/0123");
  write("cgroup/memory/memory.limit_in_bytes", "4194304");
  write("cgroup/memory/memory.usage_in_bytes", "5000000");
  EXPECT_EQ(host_memory_limit_bytes(files), 4 * kMiB);
  EXPECT_EQ(host_memory_available_bytes(files), 0u);
}

}  // namespace
}  // namespace lowkey
