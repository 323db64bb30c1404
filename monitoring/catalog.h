// Every metric, declared once: name, type, who feeds it, labels, buckets, help. vLLM's vocabulary where it
// exists, with our prefix; base units; `_total` for counters only. Tests check that dashboards and alerts
// name only these, and docs/metrics.md lists them.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace lowkey::monitoring {

enum class MetricType { kCounter, kGauge, kHistogram };

// Who feeds a metric. kLeader is the replica's rank 0, kRank is every worker rank, kCache is workers and
// stores.
enum class Feeder { kProcess, kCoordinator, kLeader, kRank, kStore, kCache };

// X(enumerator, name, type, feeder, labels, buckets, help). Labels are space-separated: `name=a|b` may take
// these values (anything else is counted as `other`), a bare `name` is bounded by the cluster (a peer, a
// route, a status). `role` and `rank` are on every series.
#define LOWKEY_METRICS(X)                                                                                    \
  /* requests, as the coordinator sees them */                                                               \
  X(kRequestSuccess, "lowkey_request_success_total", kCounter, kCoordinator,                                 \
    "finished_reason=stop|length|cancelled|error", kNone, "Requests answered, by finish reason")             \
  X(kHttpRequests, "lowkey_http_requests_total", kCounter, kCoordinator, "endpoint status", kNone,           \
    "HTTP responses")                                                                                        \
  X(kHttpConnections, "lowkey_http_connections", kGauge, kCoordinator, "", kNone, "Open client connections") \
  X(kQueuedRequests, "lowkey_queued_requests", kGauge, kCoordinator, "", kNone,                              \
    "Requests held by the coordinator")                                                                      \
  X(kQueueLimit, "lowkey_queue_limit_requests", kGauge, kCoordinator, "", kNone,                             \
    "Bound of the coordinator's queue")                                                                      \
  X(kRejectedRequests, "lowkey_rejected_requests_total", kCounter, kCoordinator,                             \
    "reason=queue_full|not_ready|draining|connections", kNone, "Requests refused with 429/503")              \
  X(kClientDisconnects, "lowkey_client_disconnects_total", kCounter, kCoordinator, "", kNone,                \
    "Requests cancelled by disconnect")                                                                      \
  X(kClientsCutOff, "lowkey_clients_cut_off_total", kCounter, kCoordinator,                                  \
    "reason=not_reading|slow_request", kNone, "Connections ended by us: client too slow")                    \
  X(kTimeToFirstToken, "lowkey_time_to_first_token_seconds", kHistogram, kCoordinator, "", kTtft,            \
    "Request received to first token")                                                                       \
  X(kInterTokenLatency, "lowkey_inter_token_latency_seconds", kHistogram, kCoordinator, "", kItl,            \
    "Time between tokens of a request")                                                                      \
  X(kRequestLatency, "lowkey_e2e_request_latency_seconds", kHistogram, kCoordinator, "", kLatency,           \
    "Request received to last token")                                                                        \
  X(kQueueTime, "lowkey_request_queue_time_seconds", kHistogram, kCoordinator, "", kTtft,                    \
    "Waiting before the first step")                                                                         \
  X(kRequestPromptTokens, "lowkey_request_prompt_tokens", kHistogram, kCoordinator, "", kTokens,             \
    "Prompt tokens of a request")                                                                            \
  X(kRequestGenerationTokens, "lowkey_request_generation_tokens", kHistogram, kCoordinator, "", kTokens,     \
    "Answer tokens of a request")                                                                            \
  X(kRankUp, "lowkey_rank_up", kGauge, kCoordinator, "peer_role peer_rank", kNone,                           \
    "1 while the rank answers heartbeats")                                                                   \
  X(kReady, "lowkey_ready", kGauge, kCoordinator, "", kNone, "1 when a replica can serve")                   \
  X(kReplicas, "lowkey_replicas", kGauge, kCoordinator, "state=ready|not_ready|draining|gone", kNone,        \
    "Replicas by state")                                                                                     \
  X(kMembershipEvents, "lowkey_membership_events_total", kCounter, kCoordinator,                             \
    "event=joined|left|lost|readopted|refused|timed_out", kNone, "Workers and stores that came and went")    \
  X(kRoutedRequests, "lowkey_routed_requests_total", kCounter, kCoordinator, "reason=prefix|load|turn|only", \
    kNone, "Requests by why their replica was chosen")                                                       \
  X(kRouterIndexPages, "lowkey_router_index_pages", kGauge, kCoordinator, "holder=device|store", kNone,      \
    "Pages in the routing index")                                                                            \
  X(kRouterResyncs, "lowkey_router_resyncs_total", kCounter, kCoordinator, "", kNone,                        \
    "Times that a sender's pages were asked for again")                                                      \
  X(kPredictedTtft, "lowkey_predicted_time_to_first_token_seconds", kHistogram, kCoordinator, "", kTtft,     \
    "Time to first token that routing predicted")                                                            \
  X(kContinuedRequests, "lowkey_continued_requests_total", kCounter, kCoordinator,                           \
    "outcome=continued|ended", kNone,                                                                        \
    "Started answers whose replica was lost: continued elsewhere, or ended with an error")                   \
  /* engine, as the leader sees it */                                                                        \
  X(kRequestsRunning, "lowkey_num_requests_running", kGauge, kLeader, "", kNone,                             \
    "Sequences in the running batch")                                                                        \
  X(kRequestsWaiting, "lowkey_num_requests_waiting", kGauge, kLeader, "", kNone,                             \
    "Sequences waiting for admission")                                                                       \
  X(kPreemptions, "lowkey_num_preemptions_total", kCounter, kLeader, "", kNone,                              \
    "Sequences preempted for memory")                                                                        \
  X(kPromptTokens, "lowkey_prompt_tokens_total", kCounter, kLeader, "source=computed|device|host|disk",      \
    kNone, "Prompt tokens by source: computed, device (prefix hit), host and disk (restored)")               \
  X(kGenerationTokens, "lowkey_generation_tokens_total", kCounter, kLeader, "", kNone, "Tokens sampled")     \
  X(kRecomputedTokens, "lowkey_recomputed_tokens_total", kCounter, kLeader,                                  \
    "cause=preemption|retry|restore_miss", kNone, "Tokens computed again")                                   \
  X(kPrefixQueries, "lowkey_prefix_cache_queries_total", kCounter, kLeader, "", kNone,                       \
    "Prompt tokens looked up")                                                                               \
  X(kPrefixHits, "lowkey_prefix_cache_hits_total", kCounter, kLeader, "tier=device|host|disk", kNone,        \
    "Prompt tokens found, by tier")                                                                          \
  X(kStepSeconds, "lowkey_step_seconds", kHistogram, kLeader, "", kItl, "Duration of engine steps")          \
  X(kStepTokens, "lowkey_step_tokens", kHistogram, kLeader, "", kTokens, "Tokens computed in a step")        \
  X(kStepSequences, "lowkey_step_sequences", kHistogram, kLeader, "", kTokens, "Sequences in a step")        \
  X(kEngineQueueLimit, "lowkey_engine_queue_limit_requests", kGauge, kLeader, "", kNone,                     \
    "Bound of the engine's queue")                                                                           \
  X(kGrammarMasks, "lowkey_grammar_masks_total", kCounter, kLeader, "source=cached|computed", kNone,         \
    "Sets of tokens that a JSON schema allows next: found, or computed")                                     \
  X(kGrammarMaskSeconds, "lowkey_grammar_mask_seconds", kHistogram, kLeader, "", kItl,                       \
    "Computing one of them, beside the step")                                                                \
  X(kGrammarWaitSeconds, "lowkey_grammar_wait_seconds", kHistogram, kLeader, "", kItl,                       \
    "Time that an answer waited for one")                                                                    \
  /* engine: prefixes that travel, pressure, cost model */                                                   \
  X(kRestoreDecisions, "lowkey_prefix_decisions_total", kCounter, kLeader,                                   \
    "decision=restore|progressive|recompute|wait", kNone,                                                    \
    "What was decided about prefixes that are not on the device")                                            \
  X(kCoarseTokens, "lowkey_coarse_tokens_total", kCounter, kLeader, "", kNone,                               \
    "Tokens computed while a page was read below all levels")                                                \
  X(kPagesRead, "lowkey_pages_read_total", kCounter, kLeader, "levels=1|2|3", kNone,                         \
    "Pages that steps read, by the number of levels read")                                                   \
  X(kFirstLevelSeconds, "lowkey_restore_first_level_seconds", kHistogram, kLeader, "", kTtft,                \
    "Admission to the first level of a restored prefix in place on every rank")                              \
  X(kLevelDrops, "lowkey_kv_level_drops_total", kCounter, kLeader, "pages=idle|in_use", kNone,               \
    "Top levels given up under pressure")                                                                    \
  X(kEvictedPages, "lowkey_kv_evicted_pages_total", kCounter, kLeader, "", kNone,                            \
    "Idle pages whose memory was needed")                                                                    \
  X(kRestoresInFlight, "lowkey_restores_in_flight", kGauge, kLeader, "", kNone,                              \
    "Restores that some rank still answers for")                                                             \
  X(kSpillQueuePages, "lowkey_spill_queue_pages", kGauge, kLeader, "", kNone,                                \
    "Published pages waiting to be spilled")                                                                 \
  X(kPrefillRate, "lowkey_cost_prefill_tokens_per_second", kGauge, kLeader, "", kNone,                       \
    "Prefill rate that the cost model uses")                                                                 \
  X(kRestoreRate, "lowkey_cost_restore_bytes_per_second", kGauge, kLeader, "", kNone,                        \
    "Restore rate that the cost model uses, of the slowest rank")                                            \
  X(kRestoreLatency, "lowkey_cost_restore_latency_seconds", kGauge, kLeader, "", kNone,                      \
    "What a restore takes besides its bytes, as the cost model uses it")                                     \
  X(kQueuedTokens, "lowkey_queued_prompt_tokens", kGauge, kLeader, "", kNone,                                \
    "Prompt tokens that admitted and waiting requests still have to compute")                                \
  X(kEncodeRate, "lowkey_cost_spill_bytes_per_second", kGauge, kLeader, "", kNone,                           \
    "Rate at which pages are copied, encoded and checksummed for a store")                                   \
  X(kCostRegret, "lowkey_cost_regret_seconds_total", kCounter, kLeader, "decision=restore|recompute", kNone, \
    "Time by which decisions took longer than the alternative was predicted to")                             \
  X(kPrefixEventsSent, "lowkey_prefix_events_total", kCounter, kCache, "kind=added|removed|reset", kNone,    \
    "Pages announced to the coordinator's index")                                                            \
  /* cache, per rank */                                                                                      \
  X(kKvBytes, "lowkey_kv_bytes", kGauge, kCache,                                                             \
    "tier=device|host|disk state=capacity|used|evictable|free|slack|in_flight", kNone,                       \
    "KV cache bytes by tier (device, host, disk) and state; the states but capacity add up to it")           \
  X(kKvPages, "lowkey_kv_pages", kGauge, kCache,                                                             \
    "tier=device|host|disk state=capacity|used|evictable|free|in_flight", kNone,                             \
    "KV cache pages by tier and state")                                                                      \
  X(kKvBytesPerToken, "lowkey_kv_bytes_per_token", kGauge, kRank, "", kNone,                                 \
    "Marginal bytes per token on this rank")                                                                 \
  X(kKvCompressionRatio, "lowkey_kv_compression_ratio", kGauge, kRank, "", kNone,                            \
    "bf16 bytes over bytes, at 8192 tokens")                                                                 \
  X(kKvUsage, "lowkey_kv_cache_usage_ratio", kGauge, kRank, "", kNone,                                       \
    "Used share of the device tier, 0 to 1")                                                                 \
  X(kWeightBytes, "lowkey_weight_bytes", kGauge, kRank, "", kNone, "Packed weights on this rank")            \
  X(kWeightError, "lowkey_weight_rounding_error_ratio", kGauge, kRank,                                       \
    "kind=qkv|o|gate_up|down|embedding|head", kNone,                                                         \
    "Relative RMS error of weights that were rounded to few bits when they were loaded")                     \
  X(kSpillOutcomes, "lowkey_kv_spill_pages_total", kCounter, kRank,                                          \
    "outcome=stored|already_present|dropped_store_full|dropped_staging_full|dropped_queue|evicted|failed",   \
    kNone,                                                                                                   \
    "Spilled pages: stored, already_present, dropped_store_full, dropped_staging_full, dropped_queue, "      \
    "evicted (before their turn), failed")                                                                   \
  X(kRestoreOutcomes, "lowkey_kv_restore_pages_total", kCounter, kRank,                                      \
    "outcome=restored|miss|corrupt|failed", kNone,                                                           \
    "Pages asked of a store: restored, miss, corrupt, failed")                                               \
  X(kRestoreSeconds, "lowkey_kv_restore_seconds", kHistogram, kRank, "", kTtft,                              \
    "Lookup to last page landed")                                                                            \
  X(kSpillBytesInFlight, "lowkey_spill_bytes_in_flight", kGauge, kRank, "", kNone,                           \
    "Bytes on their way to stores")                                                                          \
  X(kRestoreBytesInFlight, "lowkey_restore_bytes_in_flight", kGauge, kRank, "", kNone,                       \
    "Bytes on their way from stores")                                                                        \
  X(kStoreEvictions, "lowkey_store_evicted_pages_total", kCounter, kStore, "", kNone,                        \
    "Pages dropped by the store (LRU)")                                                                      \
  X(kStoreLeases, "lowkey_store_leases", kGauge, kStore, "", kNone, "Pages leased to readers now")           \
  X(kStoreExpired, "lowkey_store_expired_total", kCounter, kStore, "what=lease|reservation", kNone,          \
    "Leases and reservations that ran out")                                                                  \
  X(kStoreLevelDrops, "lowkey_store_level_drops_total", kCounter, kStore, "", kNone,                         \
    "Top levels that the store gave up before whole pages")                                                  \
  X(kEvictToReuse, "lowkey_store_evict_to_reuse_seconds", kHistogram, kStore, "", kLatency,                  \
    "How long after its eviction a page was wanted again")                                                   \
  X(kStorePoolBytes, "lowkey_store_pool_bytes", kGauge, kStore, "kind=requested|resident", kNone,            \
    "Memory of the store's pool: asked for, and really there")                                               \
  X(kDiskPages, "lowkey_disk_pages_total", kCounter, kStore,                                                 \
    "outcome=written|read|dropped_full|dropped_queue|torn|corrupt|failed", kNone,                            \
    "Pages written to and read from disk")                                                                   \
  X(kDiskBytes, "lowkey_disk_bytes_total", kCounter, kStore, "direction=read|write", kNone,                  \
    "Disk tier traffic")                                                                                     \
  X(kDiskSeconds, "lowkey_disk_seconds_total", kCounter, kStore, "direction=read|write", kNone,              \
    "Time in disk transfers")                                                                                \
  /* transport, per rank */                                                                                  \
  X(kTransferBytes, "lowkey_transfer_bytes_total", kCounter, kRank, "direction=put|get transport", kNone,    \
    "One-sided transfers")                                                                                   \
  X(kTransferSeconds, "lowkey_transfer_seconds_total", kCounter, kRank, "direction=put|get transport",       \
    kNone, "Time in transfers")                                                                              \
  X(kTransferFailures, "lowkey_transfer_failures_total", kCounter, kRank, "direction=put|get", kNone,        \
    "Transfers failed or timed out")                                                                         \
  X(kQuarantinedBytes, "lowkey_transfer_quarantined_bytes", kGauge, kProcess, "", kNone,                     \
    "Memory of transfers that were given up and that the network may still write to")                        \
  X(kTransportInfo, "lowkey_transport_info", kGauge, kProcess,                                               \
    "peer_role peer_rank transport device expected", kNone,                                                  \
    "1; what a pair of processes uses for one-sided transfers")                                              \
  X(kTransportMismatch, "lowkey_transport_mismatch", kGauge, kProcess, "peer_role peer_rank", kNone,         \
    "1 where a pair uses another transport than its hosts could")                                            \
  X(kTransportBandwidth, "lowkey_transport_bandwidth_bytes_per_second", kGauge, kProcess,                    \
    "peer_role peer_rank direction=put|get memory=host|device", kNone, "Measured at start")                  \
  X(kControlMessages, "lowkey_control_messages_total", kCounter, kProcess, "direction=sent|received", kNone, \
    "Control messages")                                                                                      \
  X(kControlBytes, "lowkey_control_bytes_total", kCounter, kProcess, "direction=sent|received", kNone,       \
    "Control message bytes")                                                                                 \
  X(kPeersDown, "lowkey_peer_losses_total", kCounter, kProcess, "reason=killed|silent|refused", kNone,       \
    "Peers lost: killed, silent, refused")                                                                   \
  X(kCollectiveSeconds, "lowkey_collective_seconds_total", kCounter, kRank, "", kNone,                       \
    "Step time spent in collectives through the host; NCCL's are on the GPU's queue and not told apart")     \
  X(kModelSteps, "lowkey_model_steps_total", kCounter, kRank, "launch=direct|captured|replayed", kNone,      \
    "Steps of the model: call by call, recorded as a graph, or a graph replayed")                            \
  X(kStepGraphs, "lowkey_step_graphs", kGauge, kRank, "", kNone,                                             \
    "Recorded decode steps that are kept for replay")                                                        \
  X(kStepGraphBytes, "lowkey_step_graph_bytes", kGauge, kRank, "", kNone,                                    \
    "Device memory of recorded decode steps")                                                                \
  /* process */                                                                                              \
  X(kResidentBytes, "lowkey_process_memory_bytes", kGauge, kProcess, "kind=anonymous|shared|file", kNone,    \
    "Resident memory; shared counts a store's pages in every process that touched them")                     \
  X(kCpuSeconds, "lowkey_process_cpu_seconds_total", kCounter, kProcess, "", kNone,                          \
    "CPU time of the process")                                                                               \
  X(kStartSeconds, "lowkey_start_seconds", kGauge, kProcess, "", kNone, "Process start to ready")            \
  X(kInfo, "lowkey_info", kGauge, kProcess, "version model recipe dtype device", kNone,                      \
    "1; what this process runs")

enum class Metric {
#define LOWKEY_METRIC_ENUM(id, ...) id,
  LOWKEY_METRICS(LOWKEY_METRIC_ENUM)
#undef LOWKEY_METRIC_ENUM
};

struct MetricSpec {
  std::string_view name;
  MetricType type;
  Feeder feeder;
  std::string_view labels;  // as above
  std::span<const double> buckets;
  std::string_view help;
};

struct LabelSpec {
  std::string_view name;
  std::vector<std::string_view> values;  // empty: bounded by the cluster, not by the catalog
};

const MetricSpec& spec(Metric metric);
std::span<const MetricSpec> catalog();  // in the order of Metric
std::vector<LabelSpec> label_specs(const MetricSpec& metric);

}  // namespace lowkey::monitoring
