#include "kvstore/tier/disk/disk_tier.h"

#include <pthread.h>

#include "base/log.h"

namespace lowkey::kvstore {

namespace {

template <class Slabs>
uint64_t total_bytes(const Slabs& slabs) {
  uint64_t bytes = 0;
  for (const auto& slab : slabs) bytes += slab.size();
  return bytes;
}

}  // namespace

DiskTier::DiskTier(const Options& options, Post post)
    : options_(options), post_(std::move(post)), jobs_(options.max_jobs) {}

Result<std::unique_ptr<DiskTier>> DiskTier::open(const Options& options, Post post, OnChange on_change) {
  std::unique_ptr<DiskTier> tier(new DiskTier(options, std::move(post)));
  SegmentLog::Options log_options = options.log;
  if (on_change) {
    log_options.on_change = [post = tier->post_, on_change](const std::vector<DiskChange>& changes) {
      post([on_change, changes] { on_change(changes); });
    };
  }
  LOWKEY_ASSIGN(log, SegmentLog::open(log_options));
  tier->log_ = std::move(log);
  (void)tier->jobs_.try_push([&tier = *tier] {
    const TimePoint begin = Clock::now();
    tier.log_->scan();
    tier.scanned_ = true;
    const DiskStats found = tier.log_->stats();
    spdlog::info("disk tier: {} pages in {} found in {:.2f} s; {} damaged places skipped", found.pages,
                 tier.options_.log.folder, seconds(Clock::now() - begin), found.torn);
  });
  if (options.threaded) {
    tier->thread_ = std::thread([&tier = *tier] { tier.run(); });
    pthread_setname_np(tier->thread_.native_handle(), "disk");
  }
  return tier;
}

bool DiskTier::close(Deadline deadline) {
  jobs_.close();
  log_->stop();
  return !thread_.joinable() || is_finished_.wait_until(deadline.at()) == std::future_status::ready;
}

DiskTier::~DiskTier() {
  if (!log_) return;  // never opened
  close(Deadline::in(Duration::zero()));
  if (thread_.joinable()) thread_.join();
}

void DiskTier::run() {
  for (;;) {
    if (auto job = jobs_.pop(Deadline::in(std::chrono::hours(1)))) {
      (*job)();
    } else if (jobs_.closed()) {
      return finished_.set_value();
    }
  }
}

void DiskTier::work() {
  while (auto job = jobs_.try_pop()) (*job)();
}

bool DiskTier::write(const kernels::PageHeader& header, const SegmentLog::Slabs& slabs, Done done) {
  return jobs_.try_push([this, header, slabs, done = std::move(done)] {
    post_([done, job = write_now(header, slabs)] { done(job); });
  });
}

bool DiskTier::read(const Hash128& identity, const SegmentLog::Targets& targets, Done done) {
  return jobs_.try_push([this, identity, targets, done = std::move(done)] {
    post_([done, job = read_now(identity, targets)] { done(job); });
  });
}

void DiskTier::adopt() {
  (void)jobs_.try_push([this] { log_->adopt(); });  // a full queue this early: the disk hangs
}

DiskTier::Job DiskTier::write_now(const kernels::PageHeader& header, const SegmentLog::Slabs& slabs) {
  Job job{.header = header, .bytes = total_bytes(slabs)};
  const TimePoint begin = Clock::now();
  if (paused_until_ && begin < *paused_until_) {
    job.outcome = last_failure_;
    return job;
  }
  job.outcome = log_->append(header, slabs);
  job.time = Clock::now() - begin;
  const bool failed = job.outcome == DiskOutcome::kFull || job.outcome == DiskOutcome::kFailed;
  if (failed && !paused_until_) {
    spdlog::warn("disk tier: pages are not written to {}: {}", options_.log.folder,
                 job.outcome == DiskOutcome::kFull ? "no space" : "the disk refuses");
  } else if (!failed && paused_until_) {
    spdlog::info("disk tier: pages are written to {} again", options_.log.folder);
  }
  paused_until_.reset();
  if (failed) {
    paused_until_ = Clock::now() + options_.retry;
    last_failure_ = job.outcome;
  }
  return job;
}

DiskTier::Job DiskTier::read_now(const Hash128& identity, const SegmentLog::Targets& targets) {
  Job job{.bytes = total_bytes(targets)};
  const TimePoint begin = Clock::now();
  job.outcome = log_->read(identity, targets, &job.header);
  job.time = Clock::now() - begin;
  return job;
}

}  // namespace lowkey::kvstore
