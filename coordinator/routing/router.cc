#include "coordinator/routing/router.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>

#include "base/serve_config.h"
#include "coordinator/membership/membership.h"
#include "coordinator/routing/prediction.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {

using monitoring::Metric;
using transport::ConnectionPtr;
using transport::Role;

namespace {

// A report may have been written before a request that was sent a moment earlier had arrived.
constexpr auto kReportDelay = std::chrono::milliseconds(20);
// Where no replica has measured anything.
constexpr double kFirstPrefill = 1000;

// Who tells its pages: leaders and stores.
std::optional<Holder> holder_of(const transport::PeerInfo& peer) {
  if (peer.role == Role::kStore) return Holder{Holder::Kind::kStore, peer.world_rank};
  if (peer.role == Role::kWorker && peer.replica_rank == 0)
    return Holder{Holder::Kind::kDevice, peer.replica};
  return std::nullopt;
}

}  // namespace

const Candidate* RoutingDecision::chosen() const {
  for (const auto& candidate : candidates)
    if (candidate.replica == replica) return &candidate;
  return nullptr;
}

Router::Router(const ServeConfig& config, const Membership& membership, monitoring::Metrics& metrics)
    : membership_(membership),
      metrics_(metrics),
      policy_(make_policy(config.routing)),
      min_levels_(static_cast<uint32_t>(config.min_levels)),
      step_tokens_(static_cast<uint32_t>(config.step_tokens)),
      index_(metrics) {}

void Router::on_up(const ConnectionPtr& connection) {
  const auto holder = holder_of(connection->peer());
  if (!holder || !membership_.is_member(connection)) return;
  index_.drop(*holder);
  ask_for_all(connection, *holder);
}

void Router::on_down(const ConnectionPtr& connection) {
  const auto holder = holder_of(connection->peer());
  if (holder) index_.drop(*holder);
}

void Router::on_prefix_events(const ConnectionPtr& connection, const wire::PrefixEvents& events) {
  const auto holder = holder_of(connection->peer());
  if (!holder || !membership_.is_member(connection))
    return spdlog::warn("prefix events from rank {}, which holds no pages", connection->peer().world_rank);
  if (index_.on_events(*holder, events)) return;
  spdlog::info("prefix events of rank {} have a gap before {}: asking for all of them",
               connection->peer().world_rank, events.sequence());
  metrics_.add(Metric::kRouterResyncs);
  ask_for_all(connection, *holder);
}

void Router::ask_for_all(const ConnectionPtr& connection, Holder holder) {
  const Status sent =
      connection->send(transport::MessageType::kPrefixResync, wire::PrefixResync().SerializeAsString());
  if (sent.ok()) return index_.await_reset(holder);
  spdlog::warn("prefix resync of rank {}: {}", connection->peer().world_rank, sent.error().message);
}

RoutingDecision Router::choose(const RoutingRequest& request) const {
  RoutingDecision decision{.policy = policy_->name(), .tokens = request.tokens.size()};
  decision.candidates = candidates_for(request, decision);
  if (decision.candidates.empty()) return decision;
  const Choice choice = policy_->choose(decision.candidates, last_);
  decision.replica = decision.candidates[choice.candidate].replica;
  decision.reason = choice.reason;
  const CacheKey& key = membership_.find(decision.replica)->cache;
  decision.page_tokens = key.page_tokens;
  decision.pages = pages_to_find(key, request.salt, request.tokens);
  return decision;
}

std::vector<Candidate> Router::candidates_for(const RoutingRequest& request,
                                              RoutingDecision& decision) const {
  std::vector<const Replica*> able;
  for (const auto& [id, replica] : membership_.replicas())
    if (id != request.excluded && replica.can_serve() && replica.max_sequence_tokens >= request.total_tokens)
      able.push_back(&replica);
  double prefill = 0;
  int measured = 0;
  for (const Replica* replica : able) {
    prefill += replica->rates.prefill_tokens_per_second;
    measured += replica->rates.prefill_tokens_per_second > 0 ? 1 : 0;
  }
  prefill = measured > 0 ? prefill / measured : kFirstPrefill;

  std::vector<Candidate> candidates(able.size());
  std::vector<bool> done(able.size());
  // One scan for all replicas whose pages have the same identities.
  for (size_t first = 0; first < able.size(); ++first) {
    if (done[first]) continue;
    const CacheKey& key = able[first]->cache;
    std::vector<size_t> same;
    std::vector<int> ids;
    for (size_t i = first; i < able.size(); ++i) {
      if (!(able[i]->cache == key)) continue;
      done[i] = true;
      same.push_back(i);
      ids.push_back(able[i]->id);
    }
    const PrefixScan scan = scan_prefix(index_, under_way_, key, ids, request.salt, request.tokens);
    for (const auto& [rank, pages] : scan.in_stores) decision.in_stores[rank] += pages;
    for (size_t i = 0; i < same.size(); ++i) {
      const Replica& replica = *able[same[i]];
      const uint32_t levels = request.min_levels > 0 ? request.min_levels : min_levels_;
      candidates[same[i]] = predict(replica,
                                    {.tokens = request.tokens.size(),
                                     .prefix = scan.runs[i],
                                     .first_level_only = levels <= 1,
                                     .queued_tokens = sent_since_report(replica.id, replica.reported_at),
                                     .step_tokens = step_tokens_},
                                    prefill);
    }
  }
  return candidates;
}

uint64_t Router::sent_since_report(int replica, TimePoint reported_at) const {
  uint64_t tokens = 0;
  for (const auto& [id, request] : unstarted_)
    if (request.replica == replica && request.sent + kReportDelay > reported_at) tokens += request.tokens;
  return tokens;
}

void Router::note_started(uint64_t id) {
  const auto node = unstarted_.extract(id);
  if (!node.empty()) under_way_.remove(node.mapped().replica, node.mapped().pages);
}

void Router::note_submitted(uint64_t id, RoutingDecision& decision) {
  const Candidate* chosen = decision.chosen();
  LOWKEY_CHECK(chosen, "request {} was sent to replica {}, which was not chosen", id, decision.replica);
  last_ = decision.replica;
  note_started(id);
  if (const Replica* replica = membership_.find(decision.replica))
    index_.used(decision.replica, replica->cache.num_ranks, decision.pages);
  under_way_.add(decision.replica, decision.pages);
  unstarted_[id] = {decision.replica, chosen->compute_tokens, Clock::now(), std::move(decision.pages)};
  metrics_.add(Metric::kRoutedRequests, 1, {{"reason", decision.reason}});
  metrics_.observe(Metric::kPredictedTtft, chosen->first_token());
}

}  // namespace lowkey::coordinator
