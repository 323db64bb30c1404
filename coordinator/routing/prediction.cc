#include "coordinator/routing/prediction.h"

#include <algorithm>
#include <cmath>

namespace lowkey::coordinator {

namespace {

double prefill_rate(double own, double typical) {
  return own > 2 * typical || (own > 0 && own < typical / 2) ? own : typical;
}

}  // namespace

Candidate predict(const Replica& replica, const PromptFacts& prompt, double typical_prefill) {
  const Rates& rates = replica.rates;
  const double prefill = prefill_rate(rates.prefill_tokens_per_second, typical_prefill);
  Candidate candidate{.replica = replica.id,
                      .prefix = prompt.prefix,
                      .in_flight = replica.in_flight,
                      .load = replica.running + replica.waiting};
  const uint64_t device_tokens = uint64_t{prompt.prefix.device} * replica.cache.page_tokens;
  const uint64_t store_tokens = uint64_t{prompt.prefix.store} * replica.cache.page_tokens;
  candidate.compute_tokens = prompt.tokens - std::min(prompt.tokens, device_tokens + store_tokens);
  if (store_tokens > 0) {
    const double page_bytes =
        prompt.first_level_only && rates.first_level_bytes > 0 ? rates.first_level_bytes : rates.page_bytes;
    const double compute = static_cast<double>(store_tokens) / prefill;
    const double restore = rates.restore_bytes_per_second > 0
                               ? rates.restore_latency_seconds +
                                     prompt.prefix.store * page_bytes / rates.restore_bytes_per_second
                               : compute / 10;
    candidate.restores = restore < compute;
    if (candidate.restores) {
      candidate.restore = restore;
    } else {
      candidate.compute_tokens += store_tokens;
    }
  }
  candidate.compute = static_cast<double>(candidate.compute_tokens) / prefill;
  const auto queued = static_cast<double>(replica.queued_prompt_tokens + prompt.queued_tokens);
  candidate.queue = queued / prefill;
  // Answers that are being decoded take their share of every step until then.
  if (replica.running > 0) {
    const double tokens = queued + static_cast<double>(candidate.compute_tokens);
    candidate.queue += std::ceil(tokens / prompt.step_tokens) * rates.decode_step_seconds;
  }
  return candidate;
}

}  // namespace lowkey::coordinator
