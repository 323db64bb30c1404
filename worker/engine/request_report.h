// What became of one request in the cache, gathered while it runs: for its usage, and for whoever asks why it
// hit, missed, waited or was computed again. Step thread only.
#pragma once

#include <string>
#include <vector>

#include "worker/engine/cost_model.h"

namespace lowkey::wire {
class KvReport;
}

namespace lowkey::worker {

struct RequestReport {
  static constexpr size_t kMaxNotes = 16;

  // Prompt tokens that were not computed, by where they were found at the first admission.
  int device_tokens = 0;
  int host_tokens = 0;
  int disk_tokens = 0;
  int recomputed_tokens = 0;
  int preemptions = 0;
  int lowest_levels = 0;  // fewest that any token was computed with; 0: all
  int coarse_tokens = 0;  // of the answer
  std::string decision;   // the first one; empty: nothing was missing
  PrefixForecast forecast;
  double restore_seconds = 0;
  double queue_seconds = 0;
  std::vector<std::string> notes;

  int store_tokens() const { return host_tokens + disk_tokens; }
  int cached_tokens() const { return device_tokens + store_tokens(); }
  // Behind a gap; `source` as in RestoreAnswer: 0 on the device, 1 and 2 fetched for this request.
  void found(char source, int tokens);
  void note(std::string line);  // the oldest kMaxNotes stay
  void decided(const PrefixForecast& decided);
  void to_wire(int prompt_tokens, int num_levels, wire::KvReport* out) const;
};

}  // namespace lowkey::worker
