// When a replica would answer a prompt's first token: the work that is queued there, then fetching what
// stores have of the prefix or computing it, whichever is quicker, then computing the rest. Pure.
#pragma once

#include <cstdint>

#include "coordinator/membership/replica.h"
#include "coordinator/routing/candidate.h"

namespace lowkey::coordinator {

struct PromptFacts {
  uint64_t tokens = 0;           // of the prompt, and of the answer that the client has already
  PrefixRun prefix;              // there
  bool first_level_only = true;  // enough to start with
  uint64_t queued_tokens = 0;    // of requests sent there since its last report
  uint32_t step_tokens = 512;    // computed in one step at most
};

// `typical_prefill`: tokens per second of the replicas together, > 0. It stands for a replica that has not
// measured any, and for those whose own is within a factor of two: what equal replicas happened to measure
// differs, and one that once looked slow would never be asked again. A restore rate that was not measured
// counts as ten times the prefill rate: stores are tried before they are doubted.
Candidate predict(const Replica& replica, const PromptFacts& prompt, double typical_prefill);

}  // namespace lowkey::coordinator
