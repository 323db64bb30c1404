// Replicas whose model answers by what it reads in its cache, and what is asked of them.
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "tests/unit/worker/engine/cache_reading_model.h"
#include "tests/unit/worker/engine/engine_replica.h"

namespace lowkey::worker {

inline EngineReplicaOptions reading_replica(int ranks = 1) {
  EngineReplicaOptions options;
  options.ranks = ranks;
  options.spec.page_tokens = 16;
  options.model = [](int rank, int n) { return std::make_unique<CacheReadingModel>(rank, n); };
  return options;
}

// Whose steps are smaller than many a prompt; it refuses nobody.
inline EngineReplicaOptions small(int ranks = 1) {
  EngineReplicaOptions options = reading_replica(ranks);
  options.engine.scheduler.step_tokens = 64;
  options.engine.scheduler.max_batch = 16;
  options.engine.max_waiting = 100000;
  return options;
}

inline std::vector<int32_t> random_prompt(std::mt19937& random, int length,
                                          int distinct = CacheReadingModel::kVocab) {
  std::vector<int32_t> prompt(length);
  for (int32_t& token : prompt) token = random() % distinct;
  return prompt;
}

// `emitted`: what its client has of the answer already.
inline wire::Submit submit_of(uint64_t id, const std::vector<int32_t>& prompt,
                              const wire::SamplingParams& sampling,
                              const std::vector<int32_t>& emitted = {}) {
  wire::Submit submit;
  submit.set_request_id(id);
  submit.mutable_prompt()->Add(prompt.begin(), prompt.end());
  submit.mutable_emitted()->Add(emitted.begin(), emitted.end());
  *submit.mutable_sampling() = sampling;
  return submit;
}

}  // namespace lowkey::worker
