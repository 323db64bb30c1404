#include "worker/engine/request_report.h"

#include <algorithm>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {

void RequestReport::found(char source, int tokens) {
  (source == '\1' ? host_tokens : source == '\2' ? disk_tokens : device_tokens) += tokens;
}

void RequestReport::note(std::string line) {
  if (notes.size() < kMaxNotes) notes.push_back(std::move(line));
}

void RequestReport::decided(const PrefixForecast& decided) {
  if (!decision.empty()) return;
  decision = to_string(decided.decision);
  forecast = decided;
}

void RequestReport::to_wire(int prompt_tokens, int num_levels, wire::KvReport* out) const {
  out->set_prompt_tokens(prompt_tokens);
  out->set_device_tokens(device_tokens);
  out->set_host_tokens(host_tokens);
  out->set_disk_tokens(disk_tokens);
  out->set_computed_tokens(prompt_tokens - cached_tokens());
  out->set_recomputed_tokens(recomputed_tokens);
  out->set_preemptions(preemptions);
  out->set_levels(num_levels);
  out->set_lowest_levels_read(lowest_levels == 0 ? num_levels : lowest_levels);
  out->set_coarse_tokens(coarse_tokens);
  out->set_decision(decision.empty() ? "none" : decision);
  out->set_predicted_restore_seconds(forecast.restore_seconds());
  out->set_predicted_compute_seconds(forecast.compute_seconds);
  out->set_restore_seconds(restore_seconds);
  out->set_queue_seconds(queue_seconds);
  for (const std::string& line : notes) out->add_notes(line);
}

}  // namespace lowkey::worker
