// Prefixes that come back from the stores: what was decided about them, what has landed, and who runs on.
#include "base/log.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/engine.h"

namespace lowkey::worker {

using monitoring::Metric;

void Engine::on_landed(const RestoreCommands::Landed& landed) {
  const PageFetch& fetch = landed.fetch;
  Sequence* sequence = scheduler_.find(fetch.sequence_id);
  int lost = 0;
  bool asked = true;  // up to the first page that could not be had
  for (size_t i = 0; i < fetch.pages.size(); ++i) {
    const Hash128& identity = fetch.pages[i].identity;
    if (landed.sources[i] != 0) {
      spills_.mark_stored(identity);
      pool_.set_stored(identity, true);
    } else if (std::exchange(asked, fetch.gaps) && spills_.forget_stored(identity) && fetch.from == 0) {
      // Whoever computes it stores it again.
      pool_.set_stored(identity, false);
      lost += memory_.layout().page_tokens;
    }
  }
  if (lost > 0) metrics_.add(Metric::kRecomputedTokens, lost, {{"cause", "restore_miss"}});
  if (lost > 0 && sequence != nullptr) sequence->report.recomputed_tokens += lost;
}

void Engine::run_on(const PrefixRestores::Ready& ready) {
  Sequence& sequence = *scheduler_.find(ready.sequence_id);
  RequestReport& report = sequence.report;
  if (ready.late) {
    spdlog::warn("request {}: the store did not answer in {:.1f} s; its prefix is computed",
                 sequence.request_id, ready.seconds);
    report.note(fmt::format("the store did not answer in {:.1f} s", ready.seconds));
  }
  if (!ready.reason.empty()) report.note("not all was restored: " + ready.reason);
  if (sequence.admissions == 1) {
    const int restored = std::clamp(sequence.prompt_tokens - report.device_tokens, 0, ready.restored_tokens);
    report.disk_tokens = std::min(restored, ready.disk_tokens);
    report.host_tokens = restored - report.disk_tokens;
    report.restore_seconds = ready.seconds;
  }
  if (ready.restored_tokens > 0) metrics_.observe(Metric::kFirstLevelSeconds, ready.seconds);
  const double computing = ready.forecast.compute_seconds;
  if (computing > 0 && ready.seconds > computing)
    metrics_.add(Metric::kCostRegret, ready.seconds - computing, {{"decision", "restore"}});
  scheduler_.restored(sequence);
}

}  // namespace lowkey::worker
