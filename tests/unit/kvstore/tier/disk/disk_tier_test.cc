#include "kvstore/tier/disk/disk_tier.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <future>

#include "tests/support/temp_folder.h"
#include "tests/unit/kvstore/tier/disk/disk_page.h"

namespace lowkey::kvstore {
namespace {

using testing::TempFolder;

// No file may be longer while it lives.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

class DiskTierTest : public ::testing::Test {
 protected:
  std::unique_ptr<DiskTier> open(bool threaded, Duration retry, size_t max_jobs = 1024) {
    return std::move(DiskTier::open(
                         {.log = {.folder = folder.path().string(), .capacity = 1 << 20},
                          .max_jobs = max_jobs,
                          .retry = retry,
                          .threaded = threaded},
                         [](auto f) { f(); }, nullptr)
                         .value());
  }
  DiskOutcome put(DiskTier& tier, const KnownPage& page) {
    DiskOutcome outcome = DiskOutcome::kMiss;
    EXPECT_TRUE(tier.write(page.header, views(page), [&](const auto& job) { outcome = job.outcome; }));
    tier.work();
    return outcome;
  }

  TempFolder folder;
};

TEST_F(DiskTierTest, WritesAndReadsOnItsOwnThread) {
  const KnownPage page = known_page(1, 4096);
  std::vector<std::byte> first(4096), second(2048);
  auto tier = open(true, std::chrono::seconds(1));
  std::promise<DiskTier::Job> written, read;
  const auto caller = std::this_thread::get_id();
  ASSERT_TRUE(tier->write(page.header, views(page), [&](const auto& job) {
    EXPECT_NE(std::this_thread::get_id(), caller);
    written.set_value(job);
  }));
  ASSERT_EQ(written.get_future().get().outcome, DiskOutcome::kDone);
  ASSERT_TRUE(tier->read(known_identity(1), {std::span(first), std::span(second)},
                         [&](const auto& job) { read.set_value(job); }));
  const DiskTier::Job job = read.get_future().get();
  EXPECT_EQ(job.outcome, DiskOutcome::kDone);
  EXPECT_EQ(job.bytes, 6144u);
  EXPECT_EQ(job.header.identity, known_identity(1));
  EXPECT_EQ(first, page.slabs[0]);
  EXPECT_EQ(second, page.slabs[1]);
}

TEST_F(DiskTierTest, AFullDiskIsNotAskedForEveryPage) {
  const KnownPage one = known_page(1, 4096), two = known_page(2, 4096);
  auto patient = open(false, std::chrono::hours(1));
  {
    const FullDisk full(1000);
    EXPECT_EQ(put(*patient, one), DiskOutcome::kFull);
  }
  EXPECT_EQ(put(*patient, one), DiskOutcome::kFull) << "though there is space again";
  patient.reset();
  auto eager = open(false, Duration::zero());
  {
    const FullDisk full(1000);
    EXPECT_EQ(put(*eager, one), DiskOutcome::kFull);
  }
  EXPECT_EQ(put(*eager, one), DiskOutcome::kDone);
  EXPECT_EQ(put(*eager, two), DiskOutcome::kDone);
}

TEST_F(DiskTierTest, DamagedMemoryIsNotWritten) {
  KnownPage page = known_page(1, 4096);
  page.slabs[1][100] ^= std::byte{4};
  auto tier = open(false, std::chrono::hours(1));
  EXPECT_EQ(put(*tier, page), DiskOutcome::kCorrupt);
  EXPECT_FALSE(tier->find(known_identity(1)));
  EXPECT_EQ(put(*tier, known_page(2, 4096)), DiskOutcome::kDone) << "which is not the disk's fault";
}

TEST_F(DiskTierTest, ADiskThatHangsIsNotWaitedForAtTheEnd) {
  auto tier = open(true, std::chrono::hours(1));
  const KnownPage page = known_page(1, 4096);
  std::promise<void> written, read;
  ASSERT_TRUE(tier->write(page.header, views(page), [&](const auto&) { written.set_value(); }));
  written.get_future().wait();
  std::filesystem::path pipe;  // opening it for reading waits until somebody writes
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
    if (segment_number(entry.path().filename().string())) pipe = entry.path();
  }
  std::filesystem::remove(pipe);
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  ASSERT_TRUE(tier->read(known_identity(1), {}, [&](const auto&) { read.set_value(); }));
  EXPECT_FALSE(tier->close(Deadline::in(std::chrono::milliseconds(20))));
  EXPECT_FALSE(tier->write(page.header, views(page), [](const auto&) {}));
  auto done = read.get_future();
  while (done.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) {
    const UniqueFd writer(::open(pipe.c_str(), O_WRONLY | O_NONBLOCK));
  }
  EXPECT_TRUE(tier->close(Deadline::in(std::chrono::seconds(20))));
}

TEST_F(DiskTierTest, ItsQueueIsBounded) {
  const KnownPage page = known_page(1, 4096);
  auto tier = open(false, std::chrono::hours(1), 3);  // the scan is the first job
  EXPECT_TRUE(tier->write(page.header, views(page), [](const auto&) {}));
  EXPECT_TRUE(tier->write(page.header, views(page), [](const auto&) {}));
  EXPECT_FALSE(tier->write(page.header, views(page), [](const auto&) {}));
  EXPECT_FALSE(tier->read(known_identity(1), {}, [](const auto&) {}));
  tier->work();
  EXPECT_EQ(put(*tier, page), DiskOutcome::kDone);
}

}  // namespace
}  // namespace lowkey::kvstore
