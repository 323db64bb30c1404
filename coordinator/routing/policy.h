// How a replica is chosen among those that can take a request (--routing).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "coordinator/routing/candidate.h"

namespace lowkey::coordinator {

struct Choice {
  size_t candidate = 0;  // index
  // As lowkey_routed_requests_total counts it. prefix: it has more of the prompt than another, load: it has
  // less to do than another or does it faster, turn: nothing told them apart, only: there was no other.
  const char* reason = "turn";
};

class RoutingPolicy {
 public:
  virtual ~RoutingPolicy() = default;
  virtual const char* name() const = 0;
  // `candidates`: at least one, by ascending id. `last`: the replica that was chosen last, or -1.
  virtual Choice choose(std::span<const Candidate> candidates, int last) const = 0;
};

// "kv": smallest predicted time to the first token, its own and that of those behind it (Candidate::cost); of
// those about as good the ones with least to compute, of these the quickest, of these the least loaded.
// "least-loaded": fewest requests of ours in flight, then least running and waiting by its own report, then
// in turn. "round-robin": in turn. Other names are refused by the settings.
std::unique_ptr<RoutingPolicy> make_policy(const std::string& name);

}  // namespace lowkey::coordinator
