// Which replica gets a request, and why. Keeps the index of prefix pages and the requests that replicas have
// not reported on yet. I/O thread only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "coordinator/routing/candidate.h"
#include "coordinator/routing/pages_under_way.h"
#include "coordinator/routing/policy.h"
#include "coordinator/routing/router_index.h"
#include "transport/control_plane.h"

namespace lowkey {
struct ServeConfig;
}
namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::coordinator {

class Membership;

struct RoutingRequest {
  std::span<const int32_t> tokens;  // of the prompt, and of the answer that the client has already
  uint64_t total_tokens = 0;        // prompt and whole answer
  std::string_view salt;
  uint32_t min_levels = 0;  // 0: the server's
  int excluded = -1;        // a replica that has just failed this request
};

struct RoutingDecision {
  int replica = -1;  // -1: none can take it
  const char* policy = "";
  const char* reason = "";
  uint64_t tokens = 0;
  uint32_t page_tokens = 0;  // of the chosen one; 0: not told
  std::vector<Candidate> candidates;
  std::map<int, uint32_t> in_stores;  // world rank -> pages of the candidates' store parts
  std::vector<Hash128> pages;         // of the prompt, as the chosen one names them

  const Candidate* chosen() const;  // null: none
};

class Router {
 public:
  // Of the settings it reads routing, min_levels and step_tokens. Feeds lowkey_routed_requests_total, the
  // router's index and resyncs, and lowkey_predicted_time_to_first_token_seconds. `membership` outlives it.
  Router(const ServeConfig& config, const Membership& membership, monitoring::Metrics& metrics);

  // What a member that has just come has already, it is asked to tell.
  void on_up(const transport::ConnectionPtr& connection);
  void on_down(const transport::ConnectionPtr& connection);
  void on_prefix_events(const transport::ConnectionPtr& connection, const wire::PrefixEvents& events);

  RoutingDecision choose(const RoutingRequest& request) const;
  // The request was sent there, resp. its first token has come or it has ended. Takes the decision's pages.
  void note_submitted(uint64_t id, RoutingDecision& decision);
  void note_started(uint64_t id);

  const RouterIndex& index() const { return index_; }

 private:
  struct Unstarted {
    int replica = -1;
    uint64_t tokens = 0;  // that it was predicted to compute
    TimePoint sent{};
    std::vector<Hash128> pages;
  };
  std::vector<Candidate> candidates_for(const RoutingRequest& request, RoutingDecision& decision) const;
  uint64_t sent_since_report(int replica, TimePoint reported_at) const;
  void ask_for_all(const transport::ConnectionPtr& connection, Holder holder);

  const Membership& membership_;
  monitoring::Metrics& metrics_;
  const std::unique_ptr<RoutingPolicy> policy_;
  const uint32_t min_levels_;
  const uint32_t step_tokens_;
  RouterIndex index_;
  std::unordered_map<uint64_t, Unstarted> unstarted_;  // bounded by the requests that the coordinator holds
  PagesUnderWay under_way_;                            // of those
  int last_ = -1;
};

}  // namespace lowkey::coordinator
