// Pages in the segments of one folder (disk_record.h), and the index of what is where.
//
// One store owns a folder, by a lock on it. When the number of stores or their ranks change, pages are looked
// for in another store than the one that wrote them; so a store also reads the segments that the host's other
// folders held when it started (shared), and takes over, as its own, folders that nobody owns any more:
// adopt().
//
// What survives: a segment is fdatasync'ed when it is full and when the log is closed in order. A process
// that is killed loses the record it was writing; a machine that loses power, at most the records of the
// newest segment. The newest segment's slabs are therefore checked at start, and what is torn is cut off; all
// others are checked whenever they are read. A segment of another format is kept, unread, until its space is
// needed.
//
// Threads: find(), stats() and stop() from any; everything else from one. Errors are outcomes: nothing here
// throws or ends the process, whatever the disk does.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "base/hash128.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "kvstore/tier/disk/disk_record.h"
#include "kvstore/tier/disk/segment_file.h"

namespace lowkey::kvstore {

// A page on disk, as far as a store must know without reading it.
struct DiskPage {
  SlabBytes slab_bytes{};
  uint8_t levels_known = 0;  // PageHeader::levels_present
  bool has_sink = false;
  uint16_t rank = 0;
};

struct DiskChange {
  Hash128 identity;
  uint16_t rank = 0;
  bool held = false;  // else gone
};

struct DiskStats {
  uint64_t capacity = 0;
  uint64_t bytes = 0;  // in own segments
  uint64_t pages = 0;  // that can be found
  uint64_t torn = 0;   // records and damaged stretches that were cut off or skipped at start
};

class SegmentLog {
 public:
  struct Options {
    std::string folder;  // of all stores of the host; this one's is store-<number> in it
    int number = 0;
    // Where another store of the host has taken store-<number> over, one beside it is used: store-<number>.1
    bool or_beside = false;
    uint64_t capacity = 0;                 // bytes of own segments
    uint64_t segment_bytes = 64ull << 20;  // at most; an eighth of the capacity where that is less
    Duration lock_patience = std::chrono::seconds(5);  // for a predecessor that is about to end
    std::function<void(const std::vector<DiskChange>&)>
        on_change;  // on the thread of the call that caused it
  };
  using Slabs = std::array<std::span<const std::byte>, kernels::kMaxSlabs>;  // empty: none
  using Targets = std::array<std::span<std::byte>, kernels::kMaxSlabs>;      // empty: not wanted

  // Makes and locks the folder; reads nothing yet.
  static Result<std::unique_ptr<SegmentLog>> open(const Options& options);
  ~SegmentLog();

  void scan();                       // own segments; before anything is appended
  void adopt();                      // other folders of the host; once all stores of the job hold their locks
  void stop() { stopping_ = true; }  // any thread: ends a scan early, what it has not seen stays as it is

  // kFull: no space, whatever the reason; kFailed: other errors of the disk; kCorrupt: the slabs do not match
  // their checksums, nothing was written. Replaces what was there of the page. `header` describes the slabs.
  DiskOutcome append(const kernels::PageHeader& header, const Slabs& slabs);
  // Fills the targets with verified bytes. After kCorrupt and kFailed the page is not found any more. A
  // target has the size of its slab, or the outcome is kMiss.
  DiskOutcome read(const Hash128& identity, const Targets& targets, kernels::PageHeader* header);
  void sync();  // what was written is on the medium when this returns, as far as the system tells

  std::optional<DiskPage> find(const Hash128& identity) const;
  DiskStats stats() const;

 private:
  struct Segment {
    uint64_t number = 0;
    std::filesystem::path path;
    uint64_t bytes = 0;
    uint64_t last_use = 0;
    bool own = true;                  // else shared: only read
    std::vector<Hash128> identities;  // of its records, superseded ones included
  };
  using Segments = std::list<Segment>;
  struct Place {
    Segments::iterator segment;
    uint64_t offset = 0;
    DiskPage page;
  };

  explicit SegmentLog(const Options& options);
  Result<bool> lock_folder(Duration patience);  // false: somebody else has it
  void scan_folder(const std::filesystem::path& folder, bool own, bool newest_is_open);
  void scan_segment(Segments::iterator segment, bool verify);
  bool slabs_good(int fd, uint64_t offset, const DiskRecord& record) const;
  void insert(Segments::iterator segment, uint64_t offset, const DiskRecord& record,
              std::vector<DiskChange>& changes);
  bool replaces(const Place& known, const Place& found) const;
  void erase(const Hash128& identity);
  void drop(Segments::iterator segment, bool remove_file);
  bool make_room(uint64_t bytes);
  DiskOutcome begin_segment();
  void seal();
  DiskOutcome write_record(const DiskRecord& record, const Slabs& slabs);
  void changed(const std::vector<DiskChange>& changes) const;

  const Options options_;
  const uint64_t segment_bytes_;
  std::filesystem::path folder_;
  std::vector<UniqueFd> locks_;  // of the own folder and of adopted ones
  Segments segments_;
  std::optional<Segments::iterator> open_;  // that grows
  UniqueFd open_fd_;
  std::atomic<bool> stopping_ = false;
  uint64_t next_number_ = 1;
  uint64_t next_use_ = 1;
  mutable std::mutex mutex_;  // of what follows
  std::unordered_map<Hash128, Place> index_;
  uint64_t bytes_ = 0;
  uint64_t torn_ = 0;
};

}  // namespace lowkey::kvstore
