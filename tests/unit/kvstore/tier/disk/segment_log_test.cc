#include "kvstore/tier/disk/segment_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>
#include <set>

#include "tests/support/temp_folder.h"
#include "tests/unit/kvstore/tier/disk/disk_page.h"

namespace lowkey::kvstore {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;

class SegmentLogTest : public ::testing::Test {
 protected:
  std::unique_ptr<SegmentLog> open(int number = 0) {
    SegmentLog::Options options{.folder = (folder.path() / "disk").string(),
                                .number = number,
                                .capacity = capacity,
                                .segment_bytes = 64 << 10,
                                .lock_patience = Duration::zero()};
    options.on_change = [this](const std::vector<DiskChange>& changes) {
      for (const DiskChange& change : changes) {
        change.held ? (void)held.insert(change.identity) : (void)held.erase(change.identity);
      }
    };
    auto log = std::move(SegmentLog::open(options).value());
    held.clear();
    log->scan();
    return log;
  }
  DiskOutcome put(SegmentLog& log, uint64_t n, size_t bytes = 4096) {
    const KnownPage page = known_page(n, bytes);
    return log.append(page.header, views(page));
  }
  // Reads both levels and compares every byte.
  DiskOutcome get(SegmentLog& log, uint64_t n, size_t bytes = 4096) {
    const KnownPage page = known_page(n, bytes);
    std::array<std::vector<std::byte>, kernels::kMaxSlabs> read;
    SegmentLog::Targets targets;
    for (size_t i = 0; i < read.size(); ++i)
      targets[i] = read[i] = std::vector<std::byte>(page.slabs[i].size());
    for (size_t i = 0; i < read.size(); ++i) targets[i] = read[i];
    kernels::PageHeader header;
    const DiskOutcome outcome = log.read(known_identity(n), targets, &header);
    if (outcome == DiskOutcome::kDone) {
      EXPECT_EQ(read, page.slabs);
      EXPECT_EQ(header.header_checksum, page.header.header_checksum);
    }
    return outcome;
  }
  std::vector<fs::path> segments(int number = 0) {
    std::vector<fs::path> paths;
    for (const auto& entry :
         fs::directory_iterator(folder.path() / "disk" / fmt::format("store-{}", number))) {
      if (segment_number(entry.path().filename().string())) paths.push_back(entry.path());
    }
    std::sort(paths.begin(), paths.end());
    return paths;
  }
  uint64_t bytes_in_files() {
    uint64_t bytes = 0;
    for (const auto& path : segments()) bytes += fs::file_size(path);
    return bytes;
  }
  static void flip(const fs::path& path, uint64_t offset) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(file.get() ^ 0x10);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(byte);
  }

  TempFolder folder;
  uint64_t capacity = 1 << 20;
  std::set<Hash128> held;
};

constexpr uint64_t kRecord = 512 + 4096 + 2048;  // of put()

TEST_F(SegmentLogTest, PagesSurviveARestart) {
  {
    auto log = open();
    for (uint64_t n = 0; n < 40; ++n) ASSERT_EQ(put(*log, n), DiskOutcome::kDone);
    EXPECT_EQ(get(*log, 17), DiskOutcome::kDone);
    EXPECT_EQ(get(*log, 40), DiskOutcome::kMiss);
  }
  EXPECT_GT(segments().size(), 3u) << "segments are bounded";
  auto log = open();
  EXPECT_EQ(log->stats().pages, 40u);
  EXPECT_EQ(log->stats().torn, 0u);
  EXPECT_EQ(log->stats().bytes, bytes_in_files());
  EXPECT_EQ(held.size(), 40u);
  for (uint64_t n = 0; n < 40; ++n) EXPECT_EQ(get(*log, n), DiskOutcome::kDone);
  ASSERT_EQ(put(*log, 40), DiskOutcome::kDone) << "and it goes on in a new segment";
  EXPECT_EQ(get(*log, 40), DiskOutcome::kDone);
}

TEST_F(SegmentLogTest, OneLevelCanBeReadAlone) {
  auto log = open();
  ASSERT_EQ(put(*log, 1), DiskOutcome::kDone);
  std::vector<std::byte> level(2048), wrong(2047);
  kernels::PageHeader header;
  EXPECT_EQ(log->read(known_identity(1), {std::span<std::byte>(), level}, &header), DiskOutcome::kDone);
  EXPECT_EQ(level, known_slab(1, 1, 2048));
  EXPECT_EQ(log->read(known_identity(1), {std::span<std::byte>(), wrong}, &header), DiskOutcome::kMiss);
  EXPECT_EQ(log->find(known_identity(1))->slab_bytes[0], 4096u);
}

TEST_F(SegmentLogTest, TheLeastRecentlyUsedSegmentGoesAndCapacityHolds) {
  capacity = 8 * (64 << 10);
  auto log = open();
  for (uint64_t n = 0; n < 200; ++n) {
    ASSERT_EQ(put(*log, n), DiskOutcome::kDone);
    ASSERT_EQ(get(*log, 0), DiskOutcome::kDone) << "used all the time, after page " << n;
    ASSERT_LE(log->stats().bytes, capacity);
    ASSERT_EQ(log->stats().bytes, bytes_in_files());
  }
  EXPECT_EQ(get(*log, 20), DiskOutcome::kMiss) << "gone with its segment";
  EXPECT_EQ(held.size(), log->stats().pages);
  EXPECT_FALSE(held.contains(known_identity(20)));
  EXPECT_EQ(put(*log, 1000, 1 << 20), DiskOutcome::kFull) << "larger than all of it";
  EXPECT_EQ(get(*log, 199), DiskOutcome::kDone) << "and nothing went for it";
}

TEST_F(SegmentLogTest, FlippedBitsAreAMissOfThatPageAlone) {
  auto log = open();
  for (uint64_t n = 0; n < 5; ++n) ASSERT_EQ(put(*log, n), DiskOutcome::kDone);
  const fs::path file = segments().at(0);
  flip(file, 512 + 1 * kRecord + 512 + 1000);  // a slab of page 1
  flip(file, 512 + 3 * kRecord + 100);         // the block of page 3
  EXPECT_EQ(get(*log, 1), DiskOutcome::kCorrupt);
  EXPECT_EQ(get(*log, 1), DiskOutcome::kMiss) << "forgotten";
  EXPECT_EQ(get(*log, 3), DiskOutcome::kCorrupt);
  EXPECT_EQ(get(*log, 4), DiskOutcome::kDone);
  log.reset();
  flip(file, 512 + 4 * kRecord + 512 + 4096 + 5);
  log = open();  // it is the newest segment: all of it is checked
  EXPECT_EQ(log->stats().torn, 2u) << "page 1, and from page 3 to the end";
  EXPECT_EQ(get(*log, 0), DiskOutcome::kDone);
  EXPECT_EQ(get(*log, 2), DiskOutcome::kDone);
  EXPECT_EQ(log->stats().pages, 2u);
  EXPECT_EQ(fs::file_size(file), 512 + 3 * kRecord) << "what follows the last good record is cut off";
}

TEST_F(SegmentLogTest, ATornRecordIsCutOffWhereverItIsTorn) {
  {
    auto log = open();
    for (uint64_t n = 0; n < 3; ++n) ASSERT_EQ(put(*log, n), DiskOutcome::kDone);
  }
  const fs::path file = segments().at(0), copy = folder.path() / "copy";
  fs::copy_file(file, copy);
  for (const uint64_t cut : {uint64_t{1}, uint64_t{100}, uint64_t{2048}, uint64_t{4000}, kRecord - 512,
                             kRecord - 1, kRecord, kRecord + 700}) {
    SCOPED_TRACE(cut);
    for (const auto& path : segments()) fs::remove(path);
    fs::copy_file(copy, file);
    fs::resize_file(file, 512 + 3 * kRecord - cut);
    auto log = open();
    const uint64_t whole = cut <= kRecord ? 2 : 1;
    EXPECT_EQ(log->stats().pages, whole);
    EXPECT_EQ(log->stats().torn, cut == kRecord ? 0u : 1u);
    EXPECT_EQ(fs::file_size(file), 512 + whole * kRecord);
    EXPECT_EQ(log->stats().bytes, 512 + whole * kRecord);
    EXPECT_EQ(put(*log, 7), DiskOutcome::kDone);
    EXPECT_EQ(get(*log, 0), DiskOutcome::kDone);
    EXPECT_EQ(get(*log, 7), DiskOutcome::kDone);
  }
}

TEST_F(SegmentLogTest, ATruncatedSegmentLosesItsEndAlone) {
  auto log = open();
  for (uint64_t n = 0; n < 20; ++n) ASSERT_EQ(put(*log, n), DiskOutcome::kDone);
  ASSERT_GE(segments().size(), 2u);
  fs::resize_file(segments().at(0), 512 + kRecord + 1000);
  EXPECT_EQ(get(*log, 0), DiskOutcome::kDone);
  EXPECT_EQ(get(*log, 1), DiskOutcome::kFailed) << "while it runs";
  EXPECT_EQ(get(*log, 1), DiskOutcome::kMiss);
  log.reset();
  log = open();
  EXPECT_EQ(get(*log, 0), DiskOutcome::kDone);
  EXPECT_EQ(get(*log, 2), DiskOutcome::kMiss);
  EXPECT_EQ(get(*log, 19), DiskOutcome::kDone);
  fs::remove(segments().at(0));
  EXPECT_EQ(get(*log, 0), DiskOutcome::kMiss) << "a segment that somebody deleted";
}

TEST_F(SegmentLogTest, TheSegmentThatIsWrittenMayBeDeleted) {
  auto log = open();
  ASSERT_EQ(put(*log, 1), DiskOutcome::kDone);
  for (const auto& path : segments()) fs::remove(path);
  EXPECT_EQ(get(*log, 1), DiskOutcome::kMiss);
  EXPECT_EQ(log->stats().bytes, 0u);
  ASSERT_EQ(put(*log, 2), DiskOutcome::kDone) << "in another one";
  EXPECT_EQ(get(*log, 2), DiskOutcome::kDone);
  EXPECT_EQ(log->stats().bytes, bytes_in_files());
}

TEST_F(SegmentLogTest, ASegmentOfAnotherFormatIsIgnoredAndReclaimedFirst) {
  fs::create_directories(folder.path() / "disk" / "store-0");
  const fs::path foreign = folder.path() / "disk" / "store-0" / "segment-0000000000000005";
  std::ofstream(foreign, std::ios::binary) << std::string(100'000, 'x');
  capacity = 400'000;
  auto log = open();
  EXPECT_EQ(log->stats().pages, 0u);
  EXPECT_EQ(log->stats().bytes, 100'000u) << "it takes its space";
  for (uint64_t n = 0; n < 48; ++n) ASSERT_EQ(put(*log, n), DiskOutcome::kDone);
  EXPECT_FALSE(fs::exists(foreign));
  EXPECT_EQ(get(*log, 0), DiskOutcome::kDone) << "which was enough";
}

TEST_F(SegmentLogTest, AFullDiskIsAnOutcomeAndEndsWithTheFullness) {
  struct Restore {
    rlimit before{};
    void (*handler)(int) = std::signal(SIGXFSZ, SIG_IGN);
    Restore() { getrlimit(RLIMIT_FSIZE, &before); }
    ~Restore() {
      setrlimit(RLIMIT_FSIZE, &before);
      std::signal(SIGXFSZ, handler);
    }
  } restore;
  auto log = open();
  ASSERT_EQ(put(*log, 1), DiskOutcome::kDone);
  rlimit limit = restore.before;
  limit.rlim_cur = 512 + kRecord + 1000;  // the next record fits in part
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_EQ(put(*log, 2), DiskOutcome::kFull);
  EXPECT_EQ(put(*log, 3), DiskOutcome::kFull);
  EXPECT_EQ(get(*log, 1), DiskOutcome::kDone) << "what is there stays";
  EXPECT_EQ(log->stats().bytes, bytes_in_files()) << "no part of a record stays behind";
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &restore.before), 0);
  EXPECT_EQ(put(*log, 2), DiskOutcome::kDone);
  EXPECT_EQ(get(*log, 2), DiskOutcome::kDone);
  EXPECT_EQ(get(*log, 3), DiskOutcome::kMiss);
}

TEST_F(SegmentLogTest, AFolderHasOneOwner) {
  auto log = open();
  const auto second = SegmentLog::open(
      {.folder = (folder.path() / "disk").string(), .capacity = 1 << 20, .lock_patience = Duration::zero()});
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("in use"), std::string::npos) << second.error().message;
  std::ofstream(folder.path() / "file") << "x";
  const auto none = SegmentLog::open({.folder = (folder.path() / "file").string(), .capacity = 1 << 20});
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("--disk"), std::string::npos) << none.error().message;
}

TEST_F(SegmentLogTest, AnotherNumberOfStoresFindsThePagesAllTheSame) {
  {
    auto zero = open(0), one = open(1);
    for (uint64_t n = 0; n < 20; ++n) ASSERT_EQ(put(n % 2 ? *one : *zero, n), DiskOutcome::kDone);
  }
  {  // one store: it takes over the folder that nobody owns
    auto zero = open(0);
    zero->adopt();
    for (uint64_t n = 0; n < 20; ++n) EXPECT_EQ(get(*zero, n), DiskOutcome::kDone) << n;
    uint64_t bytes = bytes_in_files();
    for (const auto& path : segments(1)) bytes += fs::file_size(path);
    EXPECT_EQ(zero->stats().bytes, bytes) << "and counts it";
    for (uint64_t n = 100; n < 190; ++n) ASSERT_EQ(put(*zero, n), DiskOutcome::kDone);
    for (uint64_t n = 200; n < 290; ++n) ASSERT_EQ(put(*zero, n), DiskOutcome::kDone);
    EXPECT_TRUE(segments(1).empty()) << "and its space";
  }
  {  // two again, and every page is asked of the other one
    auto zero = open(0), one = open(1);
    ASSERT_EQ(put(*one, 500), DiskOutcome::kDone);
    one->adopt();
    zero->adopt();
    EXPECT_EQ(get(*one, 289), DiskOutcome::kDone) << "read in the other's folder";
    EXPECT_EQ(get(*zero, 500), DiskOutcome::kDone);
    EXPECT_LE(one->stats().bytes, 512 + kRecord) << "which is not its own";
    for (uint64_t n = 600; n < 800; ++n) ASSERT_EQ(put(*zero, n), DiskOutcome::kDone);
    EXPECT_EQ(get(*one, 289), DiskOutcome::kMiss) << "its owner needed the space";
    EXPECT_EQ(get(*one, 500), DiskOutcome::kDone);
  }
}

// A cluster that was started again, and the store that joined it before joins once more.
TEST_F(SegmentLogTest, AFolderThatWasTakenOverHasOneBesideIt) {
  { ASSERT_EQ(put(*open(1), 1), DiskOutcome::kDone); }
  auto zero = open(0);
  zero->adopt();
  ASSERT_EQ(get(*zero, 1), DiskOutcome::kDone);
  SegmentLog::Options options{.folder = (folder.path() / "disk").string(),
                              .number = 1,
                              .capacity = capacity,
                              .lock_patience = Duration::zero()};
  EXPECT_FALSE(SegmentLog::open(options).ok());
  options.or_beside = true;
  const auto joined = SegmentLog::open(options), another = SegmentLog::open(options);
  ASSERT_TRUE(joined.ok()) << joined.error().message;
  ASSERT_TRUE(another.ok()) << another.error().message;
  (*joined)->scan();
  (*joined)->adopt();
  EXPECT_EQ(get(**joined, 1), DiskOutcome::kDone) << "what it left can be read";
  ASSERT_EQ(put(**joined, 2), DiskOutcome::kDone);
  zero.reset();
  zero = open(0);
  zero->adopt();
  EXPECT_EQ(get(*zero, 2), DiskOutcome::kDone) << "and others find what it writes";
}

TEST_F(SegmentLogTest, OfTwoFoldersRecordsTheFullerOneIsFound) {
  const auto append = [](SegmentLog& log, uint64_t n, int levels) {
    const KnownPage page = known_page(n, 4096, levels);
    ASSERT_EQ(log.append(page.header, views(page)), DiskOutcome::kDone);
  };
  {
    auto one = open(1);
    append(*one, 1, 1);  // as the page was once
    append(*one, 2, 2);
  }
  auto zero = open(0);
  append(*zero, 1, 2);
  append(*zero, 2, 1);
  zero->adopt();
  for (const uint64_t n : {1, 2}) EXPECT_EQ(get(*zero, n), DiskOutcome::kDone) << "both levels of " << n;
  append(*zero, 2, 1);
  EXPECT_EQ(zero->find(known_identity(2))->levels_known, 1u) << "what is written now replaces what there was";
}

TEST_F(SegmentLogTest, KilledWhileWriting) {
  for (int round = 0; round < 5; ++round) {
    SCOPED_TRACE(round);
    int progress[2];
    ASSERT_EQ(pipe(progress), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {  // writes until it is killed; tells which pages it has put
      auto log = SegmentLog::open({.folder = (folder.path() / "disk").string(),
                                   .capacity = 16 << 20,
                                   .segment_bytes = 256 << 10,
                                   .lock_patience = std::chrono::seconds(5)});
      if (!log) _exit(1);
      (*log)->scan();
      for (uint64_t n = 0;; ++n) {
        const KnownPage page = known_page(1000 * round + n, 4096);
        if ((*log)->append(page.header, views(page)) != DiskOutcome::kDone) _exit(2);
        if (write(progress[1], &n, sizeof n) != sizeof n) _exit(3);
      }
    }
    close(progress[1]);
    uint64_t last = 0;
    while (last < 50 + static_cast<uint64_t>(round) * 37) ASSERT_EQ(read(progress[0], &last, sizeof last), 8);
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    while (read(progress[0], &last, sizeof last) == sizeof last) {
    }
    close(progress[0]);
    capacity = 16 << 20;
    auto log = open();
    for (uint64_t n = 0; n <= last; ++n) {
      ASSERT_EQ(get(*log, 1000 * round + n), DiskOutcome::kDone) << "page " << n << " of " << last;
    }
    EXPECT_LE(log->stats().torn, 1u) << "the one it was writing";
  }
}

}  // namespace
}  // namespace lowkey::kvstore
