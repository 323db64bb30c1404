#include "coordinator/routing/least_loaded.h"

#include <tuple>

#include "coordinator/membership/membership.h"

namespace lowkey::coordinator {

int least_loaded(const std::map<int, Replica>& replicas, uint64_t tokens, int last, int excluded) {
  int best = -1;
  std::tuple<uint32_t, uint32_t, bool> best_load;
  for (const auto& [id, replica] : replicas) {
    if (id == excluded || !replica.can_serve() || replica.max_sequence_tokens < tokens) continue;
    const std::tuple load(replica.in_flight, replica.running + replica.waiting, id <= last);
    if (best >= 0 && load >= best_load) continue;
    best = id;
    best_load = load;
  }
  return best;
}

}  // namespace lowkey::coordinator
