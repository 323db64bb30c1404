#include "monitoring/process_stats.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

#include "base/deadline.h"

namespace lowkey::monitoring {
namespace {

constexpr size_t kBytes = 64 << 20;

struct Mapping {
  explicit Mapping(int flags)
      : data(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0)) {
    std::memset(data, 1, kBytes);
  }
  ~Mapping() { munmap(data, kBytes); }
  void* data;
};

TEST(ProcessStats, CountsAnonymousAndSharedMemory) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer's shadow memory counts as well";
#endif
  auto before = read_process_stats();
  ASSERT_TRUE(before.ok()) << before.error().message;
  Mapping anonymous(MAP_PRIVATE), shared(MAP_SHARED);
  auto after = read_process_stats();
  ASSERT_TRUE(after.ok());
  const double slack = 8 << 20;  // the kernel counts resident pages lazily, per CPU
  EXPECT_NEAR(static_cast<double>(after->anonymous_bytes - before->anonymous_bytes), kBytes, slack);
  EXPECT_NEAR(static_cast<double>(after->shared_bytes - before->shared_bytes), kBytes, slack);
}

TEST(ProcessStats, CountsCpuTimeAndAge) {
  auto before = read_process_stats();
  ASSERT_TRUE(before.ok());
  auto deadline = Deadline::in(std::chrono::seconds(20));
  volatile unsigned work = 0;
  double spent = 0;
  while (spent < 0.05 && !deadline.passed()) {
    for (int i = 0; i < 1000000; ++i) work = work + 1;
    spent = read_process_stats()->cpu_seconds - before->cpu_seconds;
  }
  EXPECT_GE(spent, 0.05);
  EXPECT_GE(before->age_seconds, 0);
  EXPECT_LT(before->age_seconds, 3600);
}

TEST(ProcessStats, AMissingProcessIsAnError) {
  EXPECT_FALSE(read_process_stats(0x3fffffff).ok());
}

}  // namespace
}  // namespace lowkey::monitoring
