// Every metric, declared once: name, type, unit, help, labels, buckets. vLLM's vocabulary where it exists, with our
// prefix; base units; `_total` for counters only. tests check that dashboards and alerts name only these.
#pragma once

#include <span>
#include <string_view>

namespace lowkey::monitoring {

enum class MetricType { kCounter, kGauge, kHistogram };

// X(enumerator, name, type, labels, buckets, help). Labels: space-separated; `role` and `rank` are on every series.
#define LOWKEY_METRICS(X)                                                                                             \
  /* requests, as the coordinator sees them */                                                                        \
  X(kRequestSuccess, "lowkey_request_success_total", kCounter, "finished_reason", kNone,                              \
    "Requests answered, by finish reason")                                                                            \
  X(kHttpRequests, "lowkey_http_requests_total", kCounter, "endpoint status", kNone, "HTTP responses")                \
  X(kHttpConnections, "lowkey_http_connections", kGauge, "", kNone, "Open client connections")                        \
  X(kQueuedRequests, "lowkey_queued_requests", kGauge, "", kNone, "Requests held by the coordinator")                 \
  X(kQueueLimit, "lowkey_queue_limit_requests", kGauge, "", kNone, "Bound of the coordinator's queue")                \
  X(kRejectedRequests, "lowkey_rejected_requests_total", kCounter, "reason", kNone, "Requests refused with 429/503")  \
  X(kClientDisconnects, "lowkey_client_disconnects_total", kCounter, "", kNone, "Requests cancelled by disconnect")   \
  X(kTimeToFirstToken, "lowkey_time_to_first_token_seconds", kHistogram, "", kTtft, "Request received to first token") \
  X(kInterTokenLatency, "lowkey_inter_token_latency_seconds", kHistogram, "", kItl, "Time between tokens of a request") \
  X(kRequestLatency, "lowkey_e2e_request_latency_seconds", kHistogram, "", kLatency, "Request received to last token") \
  X(kQueueTime, "lowkey_request_queue_time_seconds", kHistogram, "", kTtft, "Waiting before the first step")          \
  X(kRequestPromptTokens, "lowkey_request_prompt_tokens", kHistogram, "", kTokens, "Prompt tokens of a request")      \
  X(kRequestGenerationTokens, "lowkey_request_generation_tokens", kHistogram, "", kTokens, "Answer tokens of a request") \
  X(kRankUp, "lowkey_rank_up", kGauge, "peer_role peer_rank", kNone, "1 while the rank answers heartbeats")           \
  X(kReady, "lowkey_ready", kGauge, "", kNone, "1 when a replica can serve")                                          \
  /* engine, as the leader sees it */                                                                                 \
  X(kRequestsRunning, "lowkey_num_requests_running", kGauge, "", kNone, "Sequences in the running batch")             \
  X(kRequestsWaiting, "lowkey_num_requests_waiting", kGauge, "", kNone, "Sequences waiting for admission")            \
  X(kPreemptions, "lowkey_num_preemptions_total", kCounter, "", kNone, "Sequences preempted for memory")              \
  X(kPromptTokens, "lowkey_prompt_tokens_total", kCounter, "source", kNone,                                           \
    "Prompt tokens by source: computed, device (prefix hit), store (restored)")                                       \
  X(kGenerationTokens, "lowkey_generation_tokens_total", kCounter, "", kNone, "Tokens sampled")                       \
  X(kRecomputedTokens, "lowkey_recomputed_tokens_total", kCounter, "cause", kNone, "Tokens computed again")           \
  X(kPrefixQueries, "lowkey_prefix_cache_queries_total", kCounter, "", kNone, "Prompt tokens looked up")              \
  X(kPrefixHits, "lowkey_prefix_cache_hits_total", kCounter, "tier", kNone, "Prompt tokens found, by tier")           \
  X(kStepSeconds, "lowkey_step_seconds", kHistogram, "", kItl, "Duration of engine steps")                            \
  X(kStepTokens, "lowkey_step_tokens", kHistogram, "", kTokens, "Tokens computed in a step")                          \
  X(kStepSequences, "lowkey_step_sequences", kHistogram, "", kTokens, "Sequences in a step")                          \
  X(kEngineQueueLimit, "lowkey_engine_queue_limit_requests", kGauge, "", kNone, "Bound of the engine's queue")        \
  /* cache, per rank */                                                                                               \
  X(kKvBytes, "lowkey_kv_bytes", kGauge, "tier state", kNone,                                                         \
    "KV cache bytes by tier (device, host) and state (capacity, used, evictable, free, in_flight)")                   \
  X(kKvPages, "lowkey_kv_pages", kGauge, "tier state", kNone, "KV cache pages by tier and state")                     \
  X(kKvBytesPerToken, "lowkey_kv_bytes_per_token", kGauge, "", kNone, "Marginal bytes per token on this rank")        \
  X(kKvCompressionRatio, "lowkey_kv_compression_ratio", kGauge, "", kNone, "bf16 bytes over bytes, at 8192 tokens")   \
  X(kKvUsage, "lowkey_kv_cache_usage_ratio", kGauge, "", kNone, "Used share of the device tier, 0 to 1")              \
  X(kWeightBytes, "lowkey_weight_bytes", kGauge, "", kNone, "Packed weights on this rank")                            \
  X(kSpillOutcomes, "lowkey_kv_spill_pages_total", kCounter, "outcome", kNone,                                        \
    "Spilled pages: stored, already_present, dropped_store_full, dropped_staging_full, failed")                       \
  X(kRestoreOutcomes, "lowkey_kv_restore_pages_total", kCounter, "outcome", kNone,                                    \
    "Pages asked of a store: restored, miss, corrupt, failed")                                                        \
  X(kRestoreSeconds, "lowkey_kv_restore_seconds", kHistogram, "", kTtft, "Lookup to last page landed")                \
  X(kStoreEvictions, "lowkey_store_evicted_pages_total", kCounter, "", kNone, "Pages dropped by the store (LRU)")     \
  X(kStoreLeases, "lowkey_store_leases", kGauge, "", kNone, "Pages leased to readers now")                            \
  X(kStoreExpired, "lowkey_store_expired_total", kCounter, "what", kNone, "Leases and reservations that ran out")     \
  /* transport, per rank */                                                                                           \
  X(kTransferBytes, "lowkey_transfer_bytes_total", kCounter, "direction transport", kNone, "One-sided transfers")     \
  X(kTransferSeconds, "lowkey_transfer_seconds_total", kCounter, "direction transport", kNone, "Time in transfers")   \
  X(kTransferFailures, "lowkey_transfer_failures_total", kCounter, "direction", kNone, "Transfers failed or timed out") \
  X(kControlMessages, "lowkey_control_messages_total", kCounter, "direction", kNone, "Control messages")              \
  X(kControlBytes, "lowkey_control_bytes_total", kCounter, "direction", kNone, "Control message bytes")               \
  X(kPeersDown, "lowkey_peer_losses_total", kCounter, "reason", kNone, "Peers lost: killed, silent, refused")         \
  X(kCollectiveSeconds, "lowkey_collective_seconds_total", kCounter, "", kNone, "Step time spent in collectives")     \
  /* process */                                                                                                       \
  X(kResidentBytes, "lowkey_process_memory_bytes", kGauge, "kind", kNone, "Memory of the process: anonymous, shared, file") \
  X(kCpuSeconds, "lowkey_process_cpu_seconds_total", kCounter, "", kNone, "CPU time of the process")                  \
  X(kStartSeconds, "lowkey_start_seconds", kGauge, "", kNone, "Process start to ready")                               \
  X(kInfo, "lowkey_info", kGauge, "version model recipe dtype", kNone, "1; what this process runs")

enum class Metric {
#define LOWKEY_METRIC_ENUM(id, ...) id,
  LOWKEY_METRICS(LOWKEY_METRIC_ENUM)
#undef LOWKEY_METRIC_ENUM
};

struct MetricSpec {
  std::string_view name;
  MetricType type;
  std::string_view labels;  // space-separated
  std::span<const double> buckets;
  std::string_view help;
};

const MetricSpec& spec(Metric metric);
std::span<const MetricSpec> catalog();

}  // namespace lowkey::monitoring
