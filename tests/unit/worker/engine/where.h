// Where a replica of an engine's test computes.
#pragma once

#include <map>
#include <memory>
#include <ostream>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "tests/support/guarded_backend.h"

namespace lowkey::worker {

// Ranks, and whether their models and pages lie on a device that the host cannot look into.
struct Where {
  int ranks = 1;
  bool device = false;
};
inline void PrintTo(const Where& where, std::ostream* out) {
  *out << where.ranks << (where.device ? "OnADevice" : "");
}

// The backends of all replicas that are made from one set of options.
struct Backends {
  std::vector<std::unique_ptr<kernels::Backend>> all;
  std::map<int, kernels::Backend*> latest;  // by rank: of the replica that is being made

  kernels::Backend& add(int rank, bool device) {
    auto backend = kernels::make_cpu_backend({.dtype = kernels::DType::kF32, .threads = 1});
    if (device) backend = std::make_unique<testing::GuardedBackend>(std::move(backend));
    latest[rank] = all.emplace_back(std::move(backend)).get();
    return *latest[rank];
  }
};

}  // namespace lowkey::worker
