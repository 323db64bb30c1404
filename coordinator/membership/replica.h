// One replica as the coordinator knows it: who leads it, what it last reported, what it answers for us.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/deadline.h"
#include "base/hash128.h"
#include "transport/control_plane.h"

namespace lowkey::coordinator {

// What the identities of a replica's pages are made of.
struct CacheKey {
  Hash128 model_fingerprint;
  Hash128 layout_fingerprint;
  uint32_t page_tokens = 0;  // 0: not told; nothing is known of its pages then
  uint32_t num_levels = 0;
  uint32_t num_ranks = 1;  // each stores its own slice

  bool operator==(const CacheKey&) const = default;
};

// Measured by its leader; 0: not measured yet.
struct Rates {
  double prefill_tokens_per_second = 0;
  double decode_step_seconds = 0;
  double restore_bytes_per_second = 0;
  double restore_latency_seconds = 0;
  double page_bytes = 0;  // all levels
  double first_level_bytes = 0;
};

enum class ReplicaPhase { kNotReady, kReady, kDraining, kGone };
const char* to_string(ReplicaPhase phase);  // "not_ready", ...

struct Replica {
  int id = 0;
  transport::ConnectionPtr leader;  // null while it is gone
  bool ready = false;               // as the leader says: every rank answered within its deadline
  bool draining = false;            // it is leaving: ends what it answers, takes nothing new
  std::string reason;               // why it is not ready
  uint32_t running = 0;             // as last reported
  uint32_t waiting = 0;
  uint64_t max_sequence_tokens = 0;   // longest prompt + answer that can ever fit; 0: not told yet
  uint64_t queued_prompt_tokens = 0;  // of waiting and running sequences, not computed yet
  CacheKey cache;
  Rates rates;
  TimePoint reported_at{};  // when the last report arrived
  uint32_t in_flight = 0;   // requests of ours that it is answering

  std::map<int, std::string> lost_followers;  // replica rank -> reason; back when they reconnect

  bool can_serve() const { return phase() == ReplicaPhase::kReady; }
  ReplicaPhase phase() const {
    if (leader == nullptr) return ReplicaPhase::kGone;
    if (draining) return ReplicaPhase::kDraining;
    return ready && lost_followers.empty() ? ReplicaPhase::kReady : ReplicaPhase::kNotReady;
  }
};

}  // namespace lowkey::coordinator
