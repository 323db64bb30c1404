#include "kvstore/service/disk_writer.h"

#include "monitoring/metrics.h"

namespace lowkey::kvstore {

using monitoring::Metric;

void DiskWriter::committed(const Hash128& identity) {
  if (backlog_.size() >= kMaxBacklog) return count("dropped_queue");
  backlog_.push_back(identity);
}

void DiskWriter::pump() {
  while (writes_ < kMaxWrites && !backlog_.empty()) {
    const Hash128 identity = backlog_.front();
    backlog_.pop_front();
    const auto on_disk = disk_.find(identity);
    if (on_disk && (index_.present(identity) & ~mask_of(on_disk->slab_bytes)) == 0) continue;
    const auto page = index_.lease(StoreIndex::kStoreItself, identity, Clock::now());
    if (!page) {
      count("dropped_queue");
      continue;
    }
    SegmentLog::Slabs slabs;
    for (size_t i = 0; i < slabs.size(); ++i) {
      if (page->slabs[i].bytes > 0) slabs[i] = pool_.subspan(page->slabs[i].offset, page->slabs[i].bytes);
    }
    ++writes_;
    const bool taken = disk_.write(page->header, slabs,
                                   [weak = weak_from_this(), identity, lease = page->lease](const auto& job) {
                                     if (const auto self = weak.lock()) self->ended(identity, lease, job);
                                   });
    if (taken) continue;
    --writes_;
    index_.release(StoreIndex::kStoreItself, page->lease);
    count("dropped_queue");
  }
}

void DiskWriter::ended(const Hash128&, uint64_t lease, const DiskTier::Job& job) {
  --writes_;
  if (job.outcome == DiskOutcome::kCorrupt) {
    index_.release_corrupt(StoreIndex::kStoreItself, lease);  // no reader would take it either
  } else {
    index_.release(StoreIndex::kStoreItself, lease);
  }
  switch (job.outcome) {
    case DiskOutcome::kDone:
      count("written");
      metrics_.add(Metric::kDiskBytes, static_cast<double>(job.bytes), {{"direction", "write"}});
      metrics_.add(Metric::kDiskSeconds, seconds(job.time), {{"direction", "write"}});
      break;
    case DiskOutcome::kFull:
      count("dropped_full");
      break;
    case DiskOutcome::kCorrupt:
      count("corrupt");
      break;
    default:
      count("failed");
  }
  pump();
  on_progress_();
}

void DiskWriter::count(const char* outcome) {
  metrics_.add(Metric::kDiskPages, 1, {{"outcome", outcome}});
}

}  // namespace lowkey::kvstore
