#include "kvstore/service/tiered_lookup.h"

#include <algorithm>
#include <bit>

#include "base/log.h"
#include "monitoring/metrics.h"

namespace lowkey::kvstore {

using monitoring::Metric;

struct TieredLookup::Lookup {
  explicit Lookup(boost::asio::io_context& io) : timer(io) {}

  Owner owner = 0;
  std::vector<Hash128> identities;
  SlabMask wanted = 0;
  bool gaps = false;
  Done done;
  std::vector<std::optional<Page>> pages;  // one per identity
  std::vector<size_t> to_read;             // ascending
  size_t next_read = 0;
  size_t outstanding = 0;
  size_t end = 0;  // without gaps: the run cannot go farther
  bool over = false;
  uint64_t reads_ended = 0;  // of all, when it began to wait
  boost::asio::steady_timer timer;
};

TieredLookup::TieredLookup(boost::asio::io_context& io, StoreIndex& index, std::span<std::byte> pool,
                           DiskTier& disk, monitoring::Metrics& metrics, const Options& options,
                           std::function<void()> on_progress)
    : io_(io),
      index_(index),
      pool_(pool),
      disk_(disk),
      metrics_(metrics),
      options_(options),
      on_progress_(std::move(on_progress)) {}

TieredLookup::Source TieredLookup::source_of(const Hash128& identity, SlabMask wanted, bool gaps) const {
  const SlabMask there = index_.present(identity);
  SlabMask lacks = index_.lacking(identity, wanted);
  const auto disk = disk_.find(identity);
  // A copy that was written coarse knows nothing of what the one on disk has more.
  if (disk && there != 0) lacks |= mask_of(disk->slab_bytes) & ~there & (wanted == 0 ? ~SlabMask{0} : wanted);
  if (there != 0 && lacks == 0) return {Where::kMemory};
  if (disk) {
    const SlabMask on_disk = mask_of(disk->slab_bytes), levels = disk->levels_known;
    const SlabMask known = on_disk | levels;
    const SlabMask needed = there != 0 ? lacks : wanted == 0 ? known : wanted & known;
    const SlabMask useful = needed & on_disk;
    if (useful == needed || (gaps && useful != 0)) {
      // A leading run of levels, because that is what a page in memory is; and the sink.
      const int num_levels = std::max(1, static_cast<int>(std::bit_width(useful & levels)));
      const SlabMask load = on_disk & (((1u << num_levels) - 1) | ~levels);
      Source source{Where::kDisk};
      for (size_t i = 0; i < source.load.size(); ++i) {
        if ((load >> i & 1) != 0) source.load[i] = disk->slab_bytes[i];
      }
      return source;
    }
  }
  return {gaps && there != 0 && (wanted == 0 || (there & wanted) != 0) ? Where::kMemory : Where::kNowhere};
}

void TieredLookup::lookup(Owner owner, std::vector<Hash128> identities, SlabMask wanted, bool gaps,
                          Done done) {
  index_.expire(options_.now());
  const auto lookup = std::make_shared<Lookup>(io_);
  lookup->owner = owner;
  lookup->wanted = wanted;
  lookup->gaps = gaps;
  lookup->done = std::move(done);
  lookup->pages.resize(identities.size());
  lookup->end = identities.size();
  lookup->identities = std::move(identities);
  const bool may_wait = waiting_.size() < options_.max_waiting && !hangs_;
  for (size_t i = 0; i < lookup->end; ++i) {
    const Where where = source_of(lookup->identities[i], wanted, gaps).where;
    if (where == Where::kDisk && may_wait) {
      lookup->to_read.push_back(i);
    } else if (where != Where::kMemory || !lease(*lookup, i, 1)) {
      if (!gaps) lookup->end = i;
    }
  }
  if (lookup->to_read.empty()) return finish(lookup);
  waiting_.push_back(lookup);
  lookup->reads_ended = reads_ended_;
  lookup->timer.expires_after(options_.deadline);
  lookup->timer.async_wait([weak = weak_from_this(), lookup](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (error || !self || lookup->over) return;
    self->expired(lookup);
  });
  advance();
}

void TieredLookup::expired(const std::shared_ptr<Lookup>& lookup) {
  if (!hangs_ && !reads_.empty() && lookup->reads_ended == reads_ended_) {
    hangs_ = true;
    spdlog::warn("--disk: no read has ended for {:.1f} s: until one does, what is only on disk is a miss",
                 seconds(options_.deadline));
  }
  waiting_.remove(lookup);
  finish(lookup);
  on_progress_();
}

bool TieredLookup::lease(Lookup& lookup, size_t i, uint32_t tier) {
  const auto found = index_.lease(lookup.owner, lookup.identities[i], options_.now());
  if (!found) return false;
  lookup.pages[i] = Page{*found, tier};
  lookup.pages[i]->found.index = i;
  return true;
}

void TieredLookup::advance() {
  std::vector<std::shared_ptr<Lookup>> complete;  // ended after the loop: an answer may end its owner
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    const auto lookup = *it;
    while (lookup->next_read < lookup->to_read.size() && bytes_ < options_.max_bytes) {
      const size_t i = lookup->to_read[lookup->next_read++];
      if (i >= lookup->end) continue;
      ++lookup->outstanding;
      if (!read(lookup, i)) settle(*lookup, i, false);
    }
    if (lookup->next_read < lookup->to_read.size() || lookup->outstanding > 0) {
      ++it;
      continue;
    }
    it = waiting_.erase(it);
    lookup->timer.cancel();
    complete.push_back(lookup);
  }
  for (const auto& lookup : complete) finish(lookup);
}

// False: neither has it been read, nor will it be. Otherwise the outcome comes by settle().
bool TieredLookup::read(const std::shared_ptr<Lookup>& lookup, size_t i) {
  const Hash128& identity = lookup->identities[i];
  if (const auto same = reads_.find(identity); same != reads_.end()) {
    same->second.waiters.emplace_back(lookup, i);
    return true;
  }
  const Source source = source_of(identity, lookup->wanted, lookup->gaps);
  if (source.where != Where::kDisk) return false;  // since the lookup came
  auto reserved = index_.reserve(StoreIndex::kStoreItself, identity, source.load, options_.now());
  while (reserved.grant == StoreIndex::Grant::kFull && give_up_end(*lookup, i)) {
    reserved = index_.reserve(StoreIndex::kStoreItself, identity, source.load, options_.now());
  }
  if (reserved.grant != StoreIndex::Grant::kGranted) return false;
  SegmentLog::Targets targets;
  Read read{.reservation = reserved.id};
  for (size_t s = 0; s < targets.size(); ++s) {
    const Slab& slab = reserved.slabs[s];
    if (slab.bytes > 0) targets[s] = pool_.subspan(slab.offset, slab.bytes);
    read.bytes += slab.bytes;
  }
  read.waiters.emplace_back(lookup, i);
  const bool taken =
      disk_.read(identity, targets, [weak = weak_from_this(), identity](const DiskTier::Job& job) {
        if (const auto self = weak.lock()) self->read_ended(identity, job);
      });
  if (!taken) {
    index_.abort(StoreIndex::kStoreItself, reserved.id);
    return false;
  }
  bytes_ += read.bytes;
  reads_.emplace(identity, std::move(read));
  return true;
}

// A run that is larger than memory: what is leased at its end makes room for page i.
bool TieredLookup::give_up_end(Lookup& lookup, size_t i) {
  if (lookup.gaps) return false;
  for (size_t last = lookup.pages.size(); last-- > i + 1;) {
    if (!lookup.pages[last]) continue;
    index_.release(lookup.owner, lookup.pages[last]->found.lease);
    lookup.pages[last].reset();
    lookup.end = std::min(lookup.end, last);
    return true;
  }
  return false;
}

void TieredLookup::read_ended(const Hash128& identity, const DiskTier::Job& job) {
  const auto entry = reads_.extract(identity);
  const Read& read = entry.mapped();
  bytes_ -= read.bytes;
  ++reads_ended_;
  if (std::exchange(hangs_, false)) spdlog::info("--disk: it answers again");
  count(job);
  const bool good = job.outcome == DiskOutcome::kDone &&
                    index_.commit(StoreIndex::kStoreItself, read.reservation, job.header, options_.now());
  if (!good) index_.abort(StoreIndex::kStoreItself, read.reservation);
  for (const auto& [lookup, i] : read.waiters) {
    if (!lookup->over) settle(*lookup, i, good);
  }
  advance();
  on_progress_();
}

// Page i of the lookup has been read, or cannot be. What was read can still be too little: another lookup may
// have wanted fewer levels, and with gaps a page in memory is better than none.
void TieredLookup::settle(Lookup& lookup, size_t i, bool good) {
  --lookup.outstanding;
  const Hash128& identity = lookup.identities[i];
  const SlabMask there = index_.present(identity);
  const bool enough = there != 0 && (index_.lacking(identity, lookup.wanted) == 0 ||
                                     (lookup.gaps && (lookup.wanted == 0 || (there & lookup.wanted) != 0)));
  if (enough && lease(lookup, i, good ? 2 : 1)) return;
  if (!lookup.gaps) lookup.end = std::min(lookup.end, i);
}

void TieredLookup::finish(const std::shared_ptr<Lookup>& lookup) {
  lookup->over = true;
  lookup->timer.cancel();
  std::vector<Page> found;
  std::vector<Hash128> identities;
  bool ended = false;
  for (size_t i = 0; i < lookup->pages.size(); ++i) {
    const auto& page = lookup->pages[i];
    ended |= !lookup->gaps && !page;
    if (!page) continue;
    if (ended) {
      index_.release(lookup->owner, page->found.lease);
      continue;
    }
    found.push_back(*page);
    identities.push_back(lookup->identities[i]);
  }
  index_.touch(identities);
  std::exchange(lookup->done, nullptr)(found);
}

void TieredLookup::drop_owner(Owner owner) {
  waiting_.remove_if([&](const auto& lookup) {
    if (lookup->owner != owner) return false;
    lookup->over = true;
    lookup->timer.cancel();
    return true;
  });
}

void TieredLookup::count(const DiskTier::Job& job) {
  const auto add = [&](const char* outcome) { metrics_.add(Metric::kDiskPages, 1, {{"outcome", outcome}}); };
  if (job.outcome == DiskOutcome::kDone) {
    add("read");
    metrics_.add(Metric::kDiskBytes, static_cast<double>(job.bytes), {{"direction", "read"}});
    metrics_.add(Metric::kDiskSeconds, seconds(job.time), {{"direction", "read"}});
  } else if (job.outcome == DiskOutcome::kCorrupt) {
    add("corrupt");
  } else if (job.outcome == DiskOutcome::kFailed) {
    add("failed");
  }
}

}  // namespace lowkey::kvstore
