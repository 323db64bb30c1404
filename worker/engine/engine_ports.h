// How an engine reaches the world: the service implements these; tests plug in loopback ones.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/hash128.h"
#include "kernels/page/page_header.h"
#include "kvstore/service/page_io.h"

namespace lowkey::wire {
class TokenEvents;
class StepPlan;
class RestoreCommand;
class PrefixEvents;
}  // namespace lowkey::wire

namespace lowkey::worker {

// A copy of one complete page of this rank, checksummed, on its way to a store. The copy makes the page's own
// memory free to go at once; staging is bounded and a full one drops the spill, never the step.
struct StagedPage {
  kernels::PageHeader header;
  std::array<std::span<const std::byte>, kernels::kMaxSlabs> slabs;  // empty span: none
  std::shared_ptr<void> keep_alive;                                  // owns the bytes
};

// Called on the step thread; must not block.
struct EnginePorts {
  std::function<void(const wire::StepPlan&)> publish_plan;  // leader: to every follower, in order
  std::function<void(const wire::TokenEvents&)> emit;       // leader: to the coordinator
  std::function<void(const wire::RestoreCommand&)>
      send_restore;                                              // leader: to every follower (own rank apart)
  std::function<void(const wire::PrefixEvents&)> prefix_events;  // leader: to the coordinator; may be empty
  std::function<void(std::vector<StagedPage>)> spill;            // every rank: own slices
  // Every rank: fetch the wanted slabs of the pages (identities with the rank slice mixed in), in order;
  // without gaps it ends at the first page that cannot be had. `done` exactly once, on any thread.
  std::function<void(std::vector<kvstore::PageRead>, kvstore::RestoreOptions,
                     std::function<void(const kvstore::RestoreReport&)> done)>
      restore;
};

}  // namespace lowkey::worker
