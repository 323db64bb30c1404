#include "kvstore/service/store_set.h"

#include <boost/asio/post.hpp>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "kvstore/service/page_staging.h"
#include "monitoring/metrics.h"

namespace lowkey::kvstore {

using monitoring::Metric;

namespace {

constexpr uint64_t kStagingBytes = 64ull << 20;  // of transcoded pages, beside the copies they are made from

std::shared_ptr<TransferBuffers> staging_buffers(const SpillFormat& format) {
  size_t page = 1;
  if (format.transcoder) {
    for (const uint32_t slab : format.transcoder->spilled().slab_bytes) page += slab;
  }
  return std::make_shared<TransferBuffers>(page, std::max<size_t>(1, kStagingBytes / page), nullptr);
}

uint64_t bytes_of(const PageWrite& page) {
  uint64_t bytes = 0;
  for (const auto& slab : page.slabs) bytes += slab.size();
  return bytes;
}

}  // namespace

size_t rendezvous(const Hash128& identity, std::span<const int> stores) {
  LOWKEY_CHECK(!stores.empty());
  const std::span<const std::byte> bytes = std::as_bytes(std::span(&identity, 1));
  size_t best = 0;
  Hash128 best_weight;
  for (size_t i = 0; i < stores.size(); ++i) {
    const Hash128 weight = hash128(bytes, {0, static_cast<uint64_t>(stores[i])});
    if (i == 0 || weight > best_weight) {
      best = i;
      best_weight = weight;
    }
  }
  return best;
}

// One restore spread over stores.
struct StoreSet::Restore {
  struct Part {
    StoreClient* store = nullptr;
    std::vector<size_t> pages;  // of the caller, ascending
    RestoreOutcome outcome;
  };
  size_t num_pages = 0;
  bool lossy = false;
  TimePoint begin = Clock::now();
  std::vector<Part> parts;
  size_t parts_left = 0;
  std::function<void(const RestoreReport&)> done;
};

// Pages on the byte thread on their way to stores.
struct StoreSet::Staging {
  std::vector<PageWrite> pages;
  Deadline deadline;
  std::function<void(const SpillOutcome&)> done;
  int64_t bytes = 0;
  SpillOutcome outcome;  // so far: of pages that could not be staged
};

StoreSet::StoreSet(boost::asio::io_context& io, transport::DataPlane& data, monitoring::Metrics& metrics,
                   const PageOrigin& origin, SpillFormat format)
    : io_(io),
      data_(data),
      metrics_(metrics),
      spilled_bytes_(std::make_shared<InFlight>(metrics, Metric::kSpillBytesInFlight)),
      restored_bytes_(std::make_shared<InFlight>(metrics, Metric::kRestoreBytesInFlight)),
      context_{origin, std::move(format), bytes_},
      staging_(staging_buffers(context_.format)),
      self_(std::make_shared<StoreSet*>(this)) {}

StoreSet::~StoreSet() {
  *self_ = nullptr;
  clients_.clear();
  spilled_bytes_->detach();
  restored_bytes_->detach();
}

void StoreSet::on_up(const transport::ConnectionPtr& store, bool admitted) {
  const StoreClient::Shared shared{io_, data_, context_, spilled_bytes_, restored_bytes_};
  clients_.emplace(store->id(), std::make_unique<StoreClient>(shared, store, admitted));
}

void StoreSet::admit(const transport::ConnectionPtr& store) {
  if (const auto client = clients_.find(store->id()); client != clients_.end()) client->second->admit();
}

void StoreSet::on_message(const transport::ConnectionPtr& store, transport::MessageType type,
                          std::string_view body) {
  if (const auto client = clients_.find(store->id()); client != clients_.end()) {
    client->second->on_message(type, body);
  }
}

void StoreSet::on_down(const transport::ConnectionPtr& store, const Error& error) {
  const auto client = clients_.find(store->id());
  if (client == clients_.end()) return;
  const auto gone = std::move(client->second);  // not to be chosen by what its failures set off
  clients_.erase(client);
  gone->on_down(fmt::format("store, rank {}: {}", store->peer().world_rank, error.message));
}

std::vector<uint64_t> StoreSet::ready() const {
  std::vector<uint64_t> ready;
  for (const auto& [id, client] : clients_) {
    if (client->ready()) ready.push_back(id);
  }
  return ready;
}

template <class Identity>
std::vector<StoreClient*> StoreSet::stores_of(size_t num_pages, Identity&& identity_of) const {
  std::vector<int> ranks;
  std::vector<StoreClient*> ready;
  for (const auto& [id, client] : clients_) {
    if (!client->ready()) continue;
    ranks.push_back(client->connection()->peer().world_rank);
    ready.push_back(client.get());
  }
  std::vector<StoreClient*> stores(num_pages, nullptr);
  for (size_t i = 0; i < num_pages && !ready.empty(); ++i)
    stores[i] = ready[rendezvous(identity_of(i), ranks)];
  return stores;
}

void StoreSet::spill(std::vector<PageWrite> pages, Deadline deadline,
                     std::function<void(const SpillOutcome&)> done) {
  const bool as_they_are =
      std::ranges::none_of(pages, [&](const auto& page) { return needs_staging(page, context_.format); });
  if (as_they_are) return put(std::move(pages), deadline, std::move(done));
  auto staging = std::make_shared<Staging>(Staging{std::move(pages), deadline, std::move(done)});
  for (const PageWrite& page : staging->pages) staging->bytes += static_cast<int64_t>(bytes_of(page));
  spilled_bytes_->change(staging->bytes);
  stage_and_put(std::move(staging));
}

void StoreSet::stage_and_put(std::shared_ptr<Staging> staging) {
  const auto ended = [self = self_, &io = io_, in_flight = spilled_bytes_](std::shared_ptr<Staging> ready) {
    boost::asio::post(io, [self, in_flight, ready = std::move(ready)] {
      in_flight->change(-ready->bytes);
      if (!*self) {
        ready->outcome.failed += ready->pages.size();
        if (ready->done) ready->done(ready->outcome);
        return;
      }
      count((*self)->metrics_, ready->outcome);
      (*self)->put(std::move(ready->pages), ready->deadline, [ready](const SpillOutcome& outcome) {
        ready->outcome += outcome;
        if (ready->done) ready->done(ready->outcome);
      });
    });
  };
  auto job = [staging, ended, this]() mutable {
    const TimePoint begin = Clock::now();
    SpillOutcome& outcome = staging->outcome;
    outcome.prepared_bytes = static_cast<uint64_t>(staging->bytes);
    std::erase_if(staging->pages, [&](PageWrite& page) {
      const Staged staged = stage(page, context_.format, *staging_);
      outcome.staging_full += staged == Staged::kNoMemory;
      outcome.failed += staged == Staged::kUnfit;
      return staged != Staged::kReady;
    });
    outcome.prepare_seconds = seconds(Clock::now() - begin);
    ended(std::move(staging));
  };
  if (bytes_.submit(ByteThread::Lane::kSpill, std::move(job))) return;
  staging->outcome.staging_full = staging->pages.size();
  staging->pages.clear();
  ended(std::move(staging));
}

void StoreSet::put(std::vector<PageWrite> pages, Deadline deadline,
                   std::function<void(const SpillOutcome&)> done) {
  if (pages.empty()) return done ? done({}) : void();
  std::map<StoreClient*, std::vector<PageWrite>> parts;
  const auto stores = stores_of(pages.size(), [&](size_t i) { return pages[i].header.identity; });
  for (size_t i = 0; i < pages.size(); ++i) parts[stores[i]].push_back(std::move(pages[i]));
  struct Sum {
    SpillOutcome outcome;
    size_t parts_left;
  };
  auto sum = std::make_shared<Sum>(Sum{.parts_left = parts.size()});
  const auto ended = [&metrics = metrics_, sum, done](const SpillOutcome& outcome) {
    count(metrics, outcome);
    sum->outcome += outcome;
    if (--sum->parts_left == 0 && done) done(sum->outcome);
  };
  for (auto& [client, part] : parts) {
    if (client) {
      client->spill(std::move(part), deadline, ended);
    } else {
      ended({.failed = part.size(), .reason = "no store is connected"});
    }
  }
}

void StoreSet::count(monitoring::Metrics& metrics, const SpillOutcome& outcome) {
  const auto add = [&](const char* name, size_t pages) {
    if (pages > 0) metrics.add(Metric::kSpillOutcomes, static_cast<double>(pages), {{"outcome", name}});
  };
  add("stored", outcome.stored);
  add("already_present", outcome.already_present);
  add("dropped_store_full", outcome.store_full);
  add("dropped_staging_full", outcome.staging_full);
  add("failed", outcome.failed);
}

void StoreSet::restore(std::vector<PageRead> pages, const RestoreOptions& options, Deadline deadline,
                       std::function<void(const RestoreReport&)> done) {
  auto restore = std::make_shared<Restore>();
  restore->num_pages = pages.size();
  restore->lossy = context_.format.transcoder && context_.format.transcoder->lossy();
  restore->done = std::move(done);
  const auto stores = stores_of(pages.size(), [&](size_t i) { return pages[i].identity; });
  for (size_t i = 0; i < pages.size(); ++i) {
    LOWKEY_CHECK(wanted_slabs(pages[i]) != 0, "page {} of a restore wants nothing", i);
    auto part = std::ranges::find(restore->parts, stores[i], &Restore::Part::store);
    if (part == restore->parts.end()) part = restore->parts.insert(part, {stores[i], {}, {}});
    part->pages.push_back(i);
  }
  restore->parts_left = restore->parts.size();
  if (restore->parts.empty()) return finish(metrics_, *restore);
  for (size_t p = 0; p < restore->parts.size(); ++p) {
    const Restore::Part& part = restore->parts[p];
    const auto ended = [&metrics = metrics_, restore, p](RestoreOutcome outcome) {
      restore->parts[p].outcome = std::move(outcome);
      if (--restore->parts_left == 0) finish(metrics, *restore);
    };
    if (!part.store) {
      ended(RestoreOutcome::failed(part.pages.size(), "no store is connected"));
      continue;
    }
    std::vector<PageRead> reads;
    for (const size_t i : part.pages) reads.push_back(pages[i]);
    part.store->restore(std::move(reads), options, deadline, ended);
  }
}

void StoreSet::finish(monitoring::Metrics& metrics, const Restore& restore) {
  RestoreReport report{.lossy = restore.lossy};
  report.sources.resize(restore.num_pages, PageSource::kNone);
  std::array<size_t, 6> fates{};  // by PageFate
  size_t first_lost = restore.num_pages;
  for (const Restore::Part& part : restore.parts) {
    report.bytes += part.outcome.bytes;
    bool whole = true;
    for (size_t i = 0; i < part.pages.size(); ++i) {
      const PageFate fate = part.outcome.fates[i];
      ++fates[static_cast<size_t>(fate)];
      if (fate == PageFate::kFromHost) report.sources[part.pages[i]] = PageSource::kHost;
      if (fate == PageFate::kFromDisk) report.sources[part.pages[i]] = PageSource::kDisk;
      if (in_place(fate) || !std::exchange(whole, false) || part.pages[i] >= first_lost) continue;
      first_lost = part.pages[i];
      report.reason = fmt::format("page {}: {}", first_lost, part.outcome.reason);
    }
  }
  report.restored = first_lost;
  report.seconds = seconds(Clock::now() - restore.begin);
  const auto add = [&](const char* name, std::initializer_list<PageFate> counted) {
    size_t pages = 0;
    for (const PageFate fate : counted) pages += fates[static_cast<size_t>(fate)];
    if (pages > 0) metrics.add(Metric::kRestoreOutcomes, static_cast<double>(pages), {{"outcome", name}});
    return pages;
  };
  add("corrupt", {PageFate::kCorrupt});
  add("failed", {PageFate::kFailed});
  add("miss", {PageFate::kMiss});
  if (add("restored", {PageFate::kFromHost, PageFate::kFromDisk}) > 0)
    metrics.observe(Metric::kRestoreSeconds, report.seconds);
  restore.done(report);
}

}  // namespace lowkey::kvstore
