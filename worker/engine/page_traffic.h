// Pages of one rank that leave for a store and come back from one: copies in staging memory on the way out,
// addresses to be filled on the way in. Knows this rank's slices and their place in memory, not sequences.
//
// Thread rule: the step thread, but for what the ports answer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "base/hash128.h"
#include "base/result.h"
#include "kernels/ops/page_copies.h"
#include "kvstore/page/page_memory.h"
#include "monitoring/metrics.h"
#include "worker/engine/engine_ports.h"
#include "worker/engine/staging_pool.h"

namespace lowkey::wire {
class PlacedPage;
class RestoreCommand;
class RestoreResult;
class StepPlan;
}  // namespace lowkey::wire

namespace lowkey::worker {

struct PageTrafficOptions {
  Hash128 model_fingerprint;
  Hash128 layout_fingerprint;
  int rank = 0;
  int num_ranks = 1;
  uint64_t staging_bytes = 0;             // bound of page copies on their way to a store
  kernels::PageCopies* copies = nullptr;  // null: the host copies pages itself
};

// A page of a plan's spills, without the rank slice.
struct SpilledPage {
  Hash128 identity;
  bool held = false;  // a store has this rank's slice: it was stored, or was there already
};

class PageTraffic {
 public:
  // Everything named outlives it. `ports.restore` and `ports.spill` may be empty: no store.
  PageTraffic(const PageTrafficOptions& options, kvstore::PageMemory& memory, const EnginePorts& ports,
              monitoring::Metrics& metrics);

  // What the backend is asked from now on starts after the copies begun so far: their pages may change hands.
  void fence();
  // Copies the plan's pages, and gives the copies to the port. Those that find no room are counted, and no
  // store will hold them. Errors: of a plan that does not fit this rank's memory.
  Status spill(const wire::StepPlan& plan);
  // `done` on any thread, exactly once.
  void restore(const wire::RestoreCommand& command, std::function<void(const wire::RestoreResult&)> done);

  bool can_spill() const { return ports_.spill && (!ports_.stores || ports_.stores() != 0); }
  size_t spill_room() const { return staging_->available(); }  // pages
  // Bytes given to stores since the last call, and the seconds of copying and preparing them.
  std::pair<uint64_t, double> take_spilled();
  // Told, for every plan that spills, what became of this rank's slices of its pages: on any thread, once.
  // Before the first plan; outlives what is under way.
  using OnSpilled = std::function<void(std::vector<SpilledPage>)>;
  void set_on_spilled(OnSpilled on_spilled) { on_spilled_ = std::move(on_spilled); }

 private:
  struct Spilled {
    std::mutex mutex;
    uint64_t bytes = 0;
    double seconds = 0;
    void add(uint64_t more, double took);
  };
  using Pieces = std::vector<kernels::PageCopies::Piece>;

  Result<std::vector<std::byte*>> addresses(const wire::PlacedPage& page) const;
  bool stage(const wire::PlacedPage& page, const Hash128& identity, std::span<std::byte* const> slabs,
             std::vector<kvstore::PageWrite>* staged, Pieces* pieces);
  void copy(const Pieces& pieces, std::vector<kvstore::PageWrite>* staged);

  const PageTrafficOptions options_;
  kvstore::PageMemory& memory_;
  const EnginePorts& ports_;
  monitoring::Metrics& metrics_;
  const std::shared_ptr<StagingPool> staging_;
  const std::shared_ptr<Spilled> spilled_ = std::make_shared<Spilled>();
  OnSpilled on_spilled_;
};

}  // namespace lowkey::worker
