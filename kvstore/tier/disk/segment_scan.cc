// What a start finds: own segments, those of others, and the folders that nobody owns any more.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "kvstore/tier/disk/segment_log.h"

namespace lowkey::kvstore {

namespace fs = std::filesystem;

void SegmentLog::scan() {
  scan_folder(folder_, true, true);
}

void SegmentLog::adopt() {
  for (const fs::path& folder : entries_of(options_.folder)) {
    if (!folder.filename().string().starts_with("store-") || folder == folder_) continue;
    auto lock = try_lock(folder);
    if (!lock) continue;
    const bool own = static_cast<bool>(lock.value());
    if (own) locks_.push_back(std::move(lock.value()));
    scan_folder(folder, own, own);
  }
  make_room(0);
}

void SegmentLog::scan_folder(const fs::path& folder, bool own, bool newest_was_open) {
  std::vector<std::pair<uint64_t, fs::path>> files;
  for (const fs::path& path : entries_of(folder)) {
    if (const auto number = segment_number(path.filename().string())) files.emplace_back(*number, path);
  }
  std::sort(files.begin(), files.end());
  for (size_t i = 0; i < files.size() && !stopping_; ++i) {
    const auto& [number, path] = files[i];
    const bool adopted = folder != folder_;
    if (!adopted) next_number_ = std::max(next_number_, number + 1);
    segments_.push_back({.number = number,
                         .path = path,
                         .bytes = file_bytes(path),
                         .last_use = adopted ? 0 : next_use_++,
                         .own = own});
    {
      std::lock_guard lock(mutex_);
      if (own) bytes_ += segments_.back().bytes;
    }
    scan_segment(std::prev(segments_.end()), newest_was_open && i + 1 == files.size());
  }
}

// `newest`: may have been written to when its process or machine stopped.
void SegmentLog::scan_segment(Segments::iterator segment, bool newest) {
  const UniqueFd fd(::open(segment->path.c_str(), O_RDONLY | O_CLOEXEC));
  DiskBlock block;
  if (!fd || !read_fully(fd.get(), block, 0) || !is_segment(block, segment->number)) {
    segment->last_use = 0;  // of another format, or nothing at all: the first to go
    if (!segment->own || segment->bytes < kDiskAlignment) drop(segment, segment->own);
    return;
  }
  uint64_t good_end = kDiskAlignment, torn = 0;
  bool in_damage = false;
  std::vector<DiskChange> changes;
  for (uint64_t offset = kDiskAlignment; offset + kDiskAlignment <= segment->bytes;) {
    if (stopping_) return;
    std::optional<DiskRecord> record;
    if (read_fully(fd.get(), block, offset)) record = unpack_record(block, segment->number);
    const bool whole = record && offset + record->bytes() <= segment->bytes;
    if (whole && (!newest || slabs_good(fd.get(), offset, *record))) {
      insert(segment, offset, *record, changes);
      offset += record->bytes();
      good_end = offset;
      in_damage = false;
      continue;
    }
    torn += !in_damage;
    in_damage = true;
    offset += whole ? record->bytes() : kDiskAlignment;  // whatever follows may be good again
  }
  if (!in_damage && good_end < segment->bytes) ++torn;  // less than a block
  if (newest && segment->own && good_end < segment->bytes) {
    if (::truncate(segment->path.c_str(), static_cast<off_t>(good_end)) == 0) {
      std::lock_guard lock(mutex_);
      bytes_ -= segment->bytes - good_end;
      segment->bytes = good_end;
    }
  }
  {
    std::lock_guard lock(mutex_);
    torn_ += torn;
  }
  changed(changes);
}

bool SegmentLog::slabs_good(int fd, uint64_t offset, const DiskRecord& record) const {
  std::vector<std::byte> bytes;
  for (int i = 0; i < kernels::kMaxSlabs; ++i) {
    bytes.resize(record.slab_bytes[i]);
    if (bytes.empty()) continue;
    if (!read_fully(fd, bytes, offset + record.slab_offset(i))) return false;
    if (slab_checksum(bytes) != record.header.checksums[i]) return false;
  }
  return true;
}

}  // namespace lowkey::kvstore
