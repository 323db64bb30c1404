// How an engine reaches the world: the service implements these; tests plug in loopback ones.
#pragma once

#include <functional>
#include <vector>

#include "kvstore/service/page_io.h"

namespace lowkey::wire {
class TokenEvents;
class StepPlan;
class RestoreCommand;
class PrefixEvents;
}  // namespace lowkey::wire

namespace lowkey::worker {

// Called on the step thread; must not block.
struct EnginePorts {
  std::function<void(const wire::StepPlan&)> publish_plan;  // leader: to every follower, in order
  std::function<void(const wire::TokenEvents&)> emit;       // leader: to the coordinator
  std::function<void(const wire::RestoreCommand&)>
      send_restore;                                              // leader: to every follower (own rank apart)
  std::function<void(const wire::PrefixEvents&)> prefix_events;  // leader: to the coordinator; may be empty
  // Every rank: copies of its own slices, without checksums. `done` exactly once, on any thread.
  std::function<void(std::vector<kvstore::PageWrite>, std::function<void(const kvstore::SpillOutcome&)> done)>
      spill;
  // Every rank: fetch the wanted slabs of the pages (identities with the rank slice mixed in), in order;
  // without gaps it ends at the first page that cannot be had. `done` exactly once, on any thread.
  std::function<void(std::vector<kvstore::PageRead>, kvstore::RestoreOptions,
                     std::function<void(const kvstore::RestoreReport&)> done)>
      restore;
  // The stores that can be written to and asked: another number whenever they have changed, 0 while there is
  // none. Any thread. Empty: some are there, always the same.
  std::function<uint64_t()> stores;
};

}  // namespace lowkey::worker
