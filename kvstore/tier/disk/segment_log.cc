#include "kvstore/tier/disk/segment_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/log.h"

namespace lowkey::kvstore {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kMinSegmentBytes = 64ull << 10;
constexpr int kMostBeside = 16;  // folders of one number

}  // namespace

// ---- folder
// -------------------------------------------------------------------------------------------------

SegmentLog::SegmentLog(const Options& options)
    : options_(options),
      segment_bytes_(std::min(options.segment_bytes, std::max(options.capacity / 8, kMinSegmentBytes))),
      folder_(fs::path(options.folder) / fmt::format("store-{}", options.number)) {}

Result<std::unique_ptr<SegmentLog>> SegmentLog::open(const Options& options) {
  std::unique_ptr<SegmentLog> log(new SegmentLog(options));
  const fs::path folder = log->folder_;
  for (int beside = 0; beside <= (options.or_beside ? kMostBeside : 0); ++beside) {
    if (beside > 0) log->folder_ = fmt::format("{}.{}", folder.string(), beside);
    LOWKEY_ASSIGN(locked, log->lock_folder(beside == 0 ? options.lock_patience : Duration::zero()));
    if (!locked) continue;
    if (beside > 0) spdlog::info("--disk: another store has taken over {}", folder.string());
    return log;
  }
  return Error{Code::kUsage, fmt::format("--disk: {} is in use by another process", folder.string()), "disk"};
}

Result<bool> SegmentLog::lock_folder(Duration patience) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) {
    return Error{Code::kUsage, fmt::format("--disk: cannot make {}: {}", folder_.string(), error.message()),
                 "disk"};
  }
  const Deadline deadline = Deadline::in(patience);
  for (;;) {
    LOWKEY_ASSIGN(lock, try_lock(folder_));
    if (lock) {
      locks_.push_back(std::move(lock));
      return true;
    }
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the kernel gives no deadline for locks
  }
}

SegmentLog::~SegmentLog() {
  seal();
}

// ---- index
// --------------------------------------------------------------------------------------------------

std::optional<DiskPage> SegmentLog::find(const Hash128& identity) const {
  std::lock_guard lock(mutex_);
  const auto known = index_.find(identity);
  return known == index_.end() ? std::nullopt : std::optional(known->second.page);
}

DiskStats SegmentLog::stats() const {
  std::lock_guard lock(mutex_);
  return {.capacity = options_.capacity, .bytes = bytes_, .pages = index_.size(), .torn = torn_};
}

void SegmentLog::insert(Segments::iterator segment, uint64_t offset, const DiskRecord& record,
                        std::vector<DiskChange>& changes) {
  const Hash128 identity = record.header.identity;
  const Place place{segment,
                    offset,
                    {.slab_bytes = record.slab_bytes,
                     .levels_known = record.header.levels_present,
                     .has_sink = record.header.has_sink != 0,
                     .rank = record.header.rank}};
  segment->identities.push_back(identity);
  std::lock_guard lock(mutex_);
  const auto [at, inserted] = index_.try_emplace(identity, place);
  if (!inserted && replaces(at->second, place)) at->second = place;
  if (inserted) changes.push_back({identity, record.header.rank, true});
}

// What is scanned or written later in one folder is newer, and what is written now is newest. Which of two
// folders has the newer record nobody knows: the one with more slabs, and the own one where both have as
// many.
bool SegmentLog::replaces(const Place& known, const Place& found) const {
  if (found.segment->own != known.segment->own) return found.segment->own;
  const fs::path folder = found.segment->path.parent_path();
  if (folder == folder_ || folder == known.segment->path.parent_path()) return true;
  const auto slabs = [](const Place& place) { return std::popcount(mask_of(place.page.slab_bytes)); };
  return slabs(found) > slabs(known);
}

void SegmentLog::erase(const Hash128& identity) {
  std::vector<DiskChange> changes;
  {
    std::lock_guard lock(mutex_);
    const auto known = index_.find(identity);
    if (known == index_.end()) return;
    changes.push_back({identity, known->second.page.rank, false});
    index_.erase(known);
  }
  changed(changes);
}

void SegmentLog::drop(Segments::iterator segment, bool remove_file) {
  if (open_ && *open_ == segment) {  // somebody has deleted its file
    open_.reset();
    open_fd_.reset();
  }
  std::vector<DiskChange> changes;
  {
    std::lock_guard lock(mutex_);
    for (const Hash128& identity : segment->identities) {
      const auto known = index_.find(identity);
      if (known == index_.end() || known->second.segment != segment) continue;
      changes.push_back({identity, known->second.page.rank, false});
      index_.erase(known);
    }
    if (segment->own) bytes_ -= segment->bytes;
  }
  if (remove_file && ::unlink(segment->path.c_str()) != 0 && errno != ENOENT) {
    spdlog::warn("--disk: cannot delete {}: {}", segment->path.string(), std::strerror(errno));
  }
  segments_.erase(segment);
  changed(changes);
}

void SegmentLog::changed(const std::vector<DiskChange>& changes) const {
  if (options_.on_change && !changes.empty()) options_.on_change(changes);
}

// ---- writing
// ------------------------------------------------------------------------------------------------

DiskOutcome SegmentLog::append(const kernels::PageHeader& header, const Slabs& slabs) {
  DiskRecord record{.header = header};
  for (size_t i = 0; i < slabs.size(); ++i) {
    record.slab_bytes[i] = static_cast<uint32_t>(slabs[i].size());
    if (!slabs[i].empty() && slab_checksum(slabs[i]) != header.checksums[i]) return DiskOutcome::kCorrupt;
  }
  const uint64_t bytes = record.bytes();
  if (open_ && (*open_)->bytes + bytes > segment_bytes_) seal();
  if (!make_room(bytes)) return DiskOutcome::kFull;
  if (!open_) {
    if (const DiskOutcome begun = begin_segment(); begun != DiskOutcome::kDone) return begun;
  }
  record.segment = (*open_)->number;
  return write_record(record, slabs);
}

// Drops the least recently used segments until a record of `bytes` fits.
bool SegmentLog::make_room(uint64_t bytes) {
  if (bytes + kDiskAlignment > options_.capacity) return false;
  for (;;) {
    const uint64_t needed = bytes + (open_ ? 0 : kDiskAlignment);
    if (stats().bytes + needed <= options_.capacity) return true;
    auto oldest = segments_.end();
    for (auto segment = segments_.begin(); segment != segments_.end(); ++segment) {
      if (!segment->own || (open_ && segment == *open_)) continue;
      if (oldest == segments_.end() || segment->last_use < oldest->last_use) oldest = segment;
    }
    if (oldest != segments_.end()) {
      drop(oldest, true);
    } else if (open_) {
      seal();
    } else {
      return bytes == 0;
    }
  }
}

DiskOutcome SegmentLog::begin_segment() {
  const uint64_t number = next_number_++;
  const fs::path path = folder_ / fmt::format("segment-{:016x}", number);
  UniqueFd fd(::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644));
  if (!fd) return disk_outcome(errno);
  DiskBlock block = pack_segment(number);
  iovec part{block.data(), block.size()};
  if (!write_fully(fd.get(), {&part, 1}, 0)) {
    const DiskOutcome outcome = disk_outcome(errno);
    ::unlink(path.c_str());
    return outcome;
  }
  segments_.push_back({.number = number, .path = path, .bytes = kDiskAlignment, .last_use = next_use_++});
  open_ = std::prev(segments_.end());
  open_fd_ = std::move(fd);
  std::lock_guard lock(mutex_);
  bytes_ += kDiskAlignment;
  return DiskOutcome::kDone;
}

DiskOutcome SegmentLog::write_record(const DiskRecord& record, const Slabs& slabs) {
  static constexpr std::array<std::byte, kDiskAlignment> kPadding{};
  DiskBlock block = pack_record(record);
  std::array<iovec, 1 + 2 * kernels::kMaxSlabs> parts;
  size_t n = 0;
  const auto add = [&](const std::byte* bytes, size_t size) {  // pwritev only reads
    if (size > 0) parts[n++] = {const_cast<std::byte*>(bytes), size};
  };
  add(block.data(), block.size());
  for (const auto& slab : slabs) {
    add(slab.data(), slab.size());
    add(kPadding.data(), disk_rounded(slab.size()) - slab.size());
  }
  const auto segment = *open_;
  if (!write_fully(open_fd_.get(), std::span(parts).first(n), segment->bytes)) {
    const DiskOutcome outcome = disk_outcome(errno);
    // What was written of it must not stand in the way of the next record.
    if (::ftruncate(open_fd_.get(), static_cast<off_t>(segment->bytes)) != 0 ||
        outcome == DiskOutcome::kFailed)
      seal();
    return outcome;
  }
  // Begun now, so that little is left to wait for when the segment is synced, and reads with it.
  ::sync_file_range(open_fd_.get(), static_cast<off_t>(segment->bytes), static_cast<off_t>(record.bytes()),
                    SYNC_FILE_RANGE_WRITE);
  std::vector<DiskChange> changes;
  insert(segment, segment->bytes, record, changes);
  segment->bytes += record.bytes();
  segment->last_use = next_use_++;
  {
    std::lock_guard lock(mutex_);
    bytes_ += record.bytes();
  }
  changed(changes);
  return DiskOutcome::kDone;
}

void SegmentLog::sync() {
  if (open_ && ::fdatasync(open_fd_.get()) != 0) {
    spdlog::warn("--disk: {} may not survive a power loss: {}", (*open_)->path.string(),
                 std::strerror(errno));
  }
}

void SegmentLog::seal() {
  sync();
  open_.reset();
  open_fd_.reset();
}

// ---- reading
// ------------------------------------------------------------------------------------------------

DiskOutcome SegmentLog::read(const Hash128& identity, const Targets& targets, kernels::PageHeader* header) {
  Segments::iterator segment;
  uint64_t offset = 0;
  {
    std::lock_guard lock(mutex_);
    const auto known = index_.find(identity);
    if (known == index_.end()) return DiskOutcome::kMiss;
    segment = known->second.segment;
    offset = known->second.offset;
  }
  segment->last_use = next_use_++;
  const UniqueFd fd(::open(segment->path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    if (errno != ENOENT) return DiskOutcome::kFailed;
    drop(segment, false);  // its owner needed the space
    return DiskOutcome::kMiss;
  }
  const auto gone = [&](DiskOutcome outcome) {
    erase(identity);
    return outcome;
  };
  DiskBlock block;
  if (!read_fully(fd.get(), block, offset)) return gone(DiskOutcome::kFailed);
  const auto record = unpack_record(block, segment->number);
  if (!record || record->header.identity != identity) return gone(DiskOutcome::kCorrupt);
  for (int i = 0; i < kernels::kMaxSlabs; ++i) {
    if (targets[i].empty()) continue;
    if (targets[i].size() != record->slab_bytes[i]) return DiskOutcome::kMiss;
    if (!read_fully(fd.get(), targets[i], offset + record->slab_offset(i))) return gone(DiskOutcome::kFailed);
    if (slab_checksum(targets[i]) != record->header.checksums[i]) return gone(DiskOutcome::kCorrupt);
  }
  *header = record->header;
  return DiskOutcome::kDone;
}

}  // namespace lowkey::kvstore
