#include "kvstore/service/store_set.h"

#include <algorithm>

#include "base/log.h"
#include "monitoring/metrics.h"

namespace lowkey::kvstore {

using monitoring::Metric;

namespace {

// Two buffers keep a restore going; the others are for stores that gave up while the transport still wrote.
constexpr size_t kBounceBytes = 2ull << 20;
constexpr size_t kBounceBuffers = 8;

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

// One restore spread over stores: `pages[i]` of the caller is page `position` of its store's part.
struct StoreSet::Restore {
  struct Part {
    std::vector<size_t> pages;  // of the caller, ascending
    RestoreOutcome outcome;
  };
  size_t num_pages = 0;
  TimePoint begin = Clock::now();
  std::map<StoreClient*, Part> parts;
  size_t parts_left = 0;
  std::function<void(const RestoreReport&)> done;
};

StoreSet::StoreSet(boost::asio::io_context& io, transport::DataPlane& data, monitoring::Metrics& metrics,
                   const PageOrigin& origin)
    : io_(io),
      data_(data),
      metrics_(metrics),
      origin_(origin),
      buffers_(std::make_shared<BounceBuffers>(kBounceBytes, kBounceBuffers)) {}

StoreSet::~StoreSet() = default;

void StoreSet::on_up(const transport::ConnectionPtr& store) {
  clients_.emplace(store->id(),
                   std::make_unique<StoreClient>(io_, data_, store, origin_, verifier_, buffers_));
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

size_t StoreSet::num_ready() const {
  return std::ranges::count_if(clients_, [](const auto& client) { return client.second->ready(); });
}

template <class Identity>
std::map<StoreClient*, std::vector<size_t>> StoreSet::split(size_t num_pages, Identity&& identity_of) const {
  std::vector<int> ranks;
  std::vector<StoreClient*> ready;
  for (const auto& [id, client] : clients_) {
    if (!client->ready()) continue;
    ranks.push_back(client->connection()->peer().world_rank);
    ready.push_back(client.get());
  }
  std::map<StoreClient*, std::vector<size_t>> parts;
  for (size_t i = 0; i < num_pages; ++i) {
    parts[ready.empty() ? nullptr : ready[rendezvous(identity_of(i), ranks)]].push_back(i);
  }
  return parts;
}

void StoreSet::spill(std::vector<PageWrite> pages, Deadline deadline,
                     std::function<void(const SpillOutcome&)> done) {
  const auto parts = split(pages.size(), [&](size_t i) { return pages[i].header.identity; });
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
  if (parts.empty() && done) return done({});
  for (const auto& [client, indices] : parts) {
    std::vector<PageWrite> part;
    for (const size_t i : indices) part.push_back(std::move(pages[i]));
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

void StoreSet::restore(std::vector<PageRead> pages, const RestoreOptions&, Deadline deadline,
                       std::function<void(const RestoreReport&)> done) {
  auto restore = std::make_shared<Restore>();
  restore->num_pages = pages.size();
  restore->done = std::move(done);
  const auto parts = split(pages.size(), [&](size_t i) { return pages[i].identity; });
  for (const auto& [client, indices] : parts) restore->parts[client].pages = indices;
  restore->parts_left = parts.size();
  if (parts.empty()) return finish(metrics_, *restore);
  for (const auto& [client, indices] : parts) {
    const auto ended = [&metrics = metrics_, restore, client = client](const RestoreOutcome& outcome) {
      restore->parts.at(client).outcome = outcome;
      if (--restore->parts_left == 0) finish(metrics, *restore);
    };
    if (!client) return ended({.end = RestoreEnd::kFailed, .reason = "no store is connected"});
    std::vector<PageRead> part;
    for (const size_t i : indices) part.push_back(pages[i]);
    client->restore(std::move(part), deadline, ended);
  }
}

void StoreSet::finish(monitoring::Metrics& metrics, const Restore& restore) {
  // The first page that is not in place, and what kept it away.
  size_t restored = restore.num_pages;
  RestoreOutcome end;
  for (const auto& [client, part] : restore.parts) {
    if (part.outcome.restored == part.pages.size()) continue;
    if (const size_t missing = part.pages[part.outcome.restored]; missing < restored) {
      restored = missing;
      end = part.outcome;
    }
  }
  const auto add = [&](const char* name, size_t pages) {
    if (pages > 0) metrics.add(Metric::kRestoreOutcomes, static_cast<double>(pages), {{"outcome", name}});
  };
  // Of the pages after a corrupt one nothing is known: they count as missed, only the one as corrupt.
  const size_t rest = restore.num_pages - restored;
  const size_t corrupt = end.end == RestoreEnd::kCorrupt ? 1 : 0;
  add("restored", restored);
  add("corrupt", corrupt);
  add(end.end == RestoreEnd::kFailed ? "failed" : "miss", rest - corrupt);
  if (restored > 0) metrics.observe(Metric::kRestoreSeconds, seconds(Clock::now() - restore.begin));
  RestoreReport report{.restored = restored,
                       .seconds = seconds(Clock::now() - restore.begin),
                       .reason = end.reason};
  report.sources.resize(restore.num_pages, PageSource::kNone);
  std::fill_n(report.sources.begin(), restored, PageSource::kHost);
  restore.done(report);
}

}  // namespace lowkey::kvstore
