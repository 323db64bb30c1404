#include "coordinator/membership/state_report.h"

#include <cmath>
#include <cstring>

#include "coordinator/membership/replica.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

Hash128 fingerprint(const std::string& bytes) {
  Hash128 hash;
  if (bytes.size() != sizeof(hash)) return hash;
  std::memcpy(&hash, bytes.data(), sizeof(hash));
  return hash;
}

double rate(double told) {
  return std::isfinite(told) && told > 0 ? told : 0;
}

}  // namespace

const char* to_string(ReplicaPhase phase) {
  switch (phase) {
    case ReplicaPhase::kNotReady:
      return "not_ready";
    case ReplicaPhase::kReady:
      return "ready";
    case ReplicaPhase::kDraining:
      return "draining";
    case ReplicaPhase::kGone:
      return "gone";
  }
  return "";
}

void take_report(const wire::ReplicaState& state, Replica& replica) {
  replica.ready = state.ready();
  replica.reason = state.not_ready_reason();
  replica.running = state.running();
  replica.waiting = state.waiting();
  replica.max_sequence_tokens = state.max_sequence_tokens();
  replica.queued_prompt_tokens = state.queued_prompt_tokens();
  const auto& cache = state.cache();
  replica.cache = {.model_fingerprint = fingerprint(cache.model_fingerprint()),
                   .layout_fingerprint = fingerprint(cache.layout_fingerprint()),
                   .page_tokens = cache.page_tokens(),
                   .num_levels = cache.num_levels(),
                   .num_ranks = cache.num_ranks()};
  const auto& rates = state.rates();
  replica.rates = {.prefill_tokens_per_second = rate(rates.prefill_tokens_per_second()),
                   .decode_step_seconds = rate(rates.decode_step_seconds()),
                   .restore_bytes_per_second = rate(rates.restore_bytes_per_second()),
                   .restore_latency_seconds = rate(rates.restore_latency_seconds()),
                   .page_bytes = rate(rates.page_bytes()),
                   .first_level_bytes = rate(rates.first_level_bytes())};
  replica.reported_at = Clock::now();
}

}  // namespace lowkey::coordinator
