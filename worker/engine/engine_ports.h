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

namespace lowkey::wire {
class TokenEvents;
class StepPlan;
class RestoreCommand;
}  // namespace lowkey::wire

namespace lowkey::worker {

// A copy of one complete page of this rank, checksummed, on its way to a store. The copy makes the page's own
// memory free to go at once; staging is bounded and a full one drops the spill, never the step.
struct StagedPage {
  kernels::PageHeader header;
  std::array<std::span<const std::byte>, kernels::kMaxSlabs> slabs;  // empty span: none
  std::shared_ptr<void> keep_alive;                                  // owns the bytes
};

// A page of this rank to be filled from a store.
struct RestoreTarget {
  Hash128 identity;  // rank slice mixed in
  std::array<std::span<std::byte>, kernels::kMaxSlabs> slabs;
};

// Called on the step thread; must not block.
struct EnginePorts {
  std::function<void(const wire::StepPlan&)> publish_plan;  // leader: to every follower, in order
  std::function<void(const wire::TokenEvents&)> emit;       // leader: to the coordinator
  std::function<void(const wire::RestoreCommand&)>
      send_restore;                                    // leader: to every follower (own rank apart)
  std::function<void(std::vector<StagedPage>)> spill;  // every rank: own slices
  // Every rank: fetch the targets in order up to the first miss; `done(pages, reason)` on any thread.
  std::function<void(std::vector<RestoreTarget>, std::function<void(size_t, std::string)> done)> restore;
};

}  // namespace lowkey::worker
