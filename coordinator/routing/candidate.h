// One replica that could take a request, as routing sees it.
#pragma once

#include <cstdint>

#include "coordinator/routing/prefix_scan.h"

namespace lowkey::coordinator {

struct Candidate {
  int replica = 0;
  PrefixRun prefix;
  bool restores = false;  // the store part is predicted to be fetched rather than computed again
  // Predicted, seconds. Their sum is the time to the first token.
  double queue = 0;    // what was there before
  double restore = 0;  // of the store part, if it is fetched
  double compute = 0;  // of the rest of the prompt
  uint64_t compute_tokens = 0;
  uint32_t in_flight = 0;  // requests of ours
  uint32_t load = 0;       // running and waiting, by its own last report

  double first_token() const { return queue + restore + compute; }
  // What it costs everybody: a second of computing is one that those behind it wait, too. Without that,
  // prefixes are computed again elsewhere for the sake of a moment's queue, and held twice from then on. On
  // Mooncake's conversations (tests/bench/routing_sim.py) 8 is as quick as any weight at a load of 0.9, 6 %
  // before none, no slower than none at 0.6, and finds nine tenths of what perfect knowledge would.
  static constexpr double kWaitBehindIt = 8;
  double own_cost() const { return restore + compute * (1 + kWaitBehindIt); }
  double cost() const { return queue + own_cost(); }
};

}  // namespace lowkey::coordinator
