#include "worker/engine/cost_model.h"

#include <algorithm>
#include <limits>

namespace lowkey::worker {

namespace {

// A sample keeps this share of what was measured before: about the last ten count.
constexpr double kKeep = 0.9;
// Whoever waits for a store that does not answer waits for nothing: the last two or three count.
constexpr double kKeepLost = 0.5;
// Fewer rows make no better use of a step.
constexpr int kLeastPrefill = 32;
// Steps and copies are many and small: about the last fifty count.
constexpr double kKeepSteps = 0.98;

double average(double before, double sample, double keep) {
  return before == 0 ? sample : keep * before + (1 - keep) * sample;
}

}  // namespace

const char* to_string(PrefixForecast::Decision decision) {
  switch (decision) {
    case PrefixForecast::Decision::kRestore:
      return "restore";
    case PrefixForecast::Decision::kProgressive:
      return "progressive";
    case PrefixForecast::Decision::kRecompute:
      return "recompute";
  }
  return "";
}

void CostModel::Quotient::add(double more, double took, double keep) {
  amount = amount * keep + more;
  seconds = seconds * keep + took;
}

void CostModel::Line::add(double bytes, double seconds) {
  for (double* sum : {&n, &x, &y, &xx, &xy}) *sum *= kKeep;
  n += 1;
  x += bytes;
  y += seconds;
  xx += bytes * bytes;
  xy += bytes * seconds;
}

double CostModel::Line::latency() const {
  const double spread = n * xx - x * x;
  // Transfers of one size tell nothing about what an empty one would take.
  if (n == 0 || spread <= 1e-3 * n * xx) return 0;
  const double slope = std::max(0.0, (n * xy - x * y) / spread);
  return std::clamp((y - slope * x) / n, 0.0, y / n);
}

double CostModel::Line::rate() const {
  if (n == 0 || y <= 0) return 0;
  // What is left of the time goes to the bytes; latency alone never explains all of it.
  return x / std::max(y - n * latency(), 0.05 * y);
}

void CostModel::on_step(int prefill_tokens, int decode_tokens, double seconds) {
  if (seconds <= 0 || prefill_tokens + decode_tokens <= 0) return;
  step_ = average(step_, seconds, kKeepSteps);
  last_step_ = seconds;
  if (prefill_tokens == 0) {
    decode_step_ = average(decode_step_, seconds, kKeepSteps);
    return;
  }
  // Decodes in the same step take their part; half of it at most, as they share the weights' reads.
  const double decodes = decode_tokens > 0 ? std::min(decode_step_, seconds / 2) : 0;
  prefill_.add(prefill_tokens, seconds - decodes, kKeepSteps);
}

void CostModel::on_restore(uint64_t bytes, double seconds) {
  if (bytes == 0 || seconds <= 0) return;
  restore_.add(static_cast<double>(bytes), seconds);
  lost_ *= kKeepLost;
}

void CostModel::on_failed_restore(double seconds) {
  lost_ = kKeepLost * lost_ + (1 - kKeepLost) * std::max(seconds, 0.0);
}

void CostModel::on_spill(uint64_t bytes, double seconds) {
  if (bytes > 0 && seconds > 0) spill_.add(static_cast<double>(bytes), seconds, kKeepSteps);
}

MeasuredRates CostModel::rates() const {
  return {.prefill_tokens_per_second = prefill_.rate(),
          .decode_step_seconds = decode_step_,
          .step_seconds = step_,
          .last_step_seconds = last_step_,
          .restore_bytes_per_second = restore_.rate(),
          .restore_latency_seconds = latency(),
          .spill_bytes_per_second = spill_.rate()};
}

int CostModel::prefill_beside_decodes() const {
  const double rate = prefill_.rate();
  if (rate == 0) return std::numeric_limits<int>::max();
  const double tokens = (std::max(kSharedSeconds, kSharedSteps * decode_step_) - decode_step_) * rate;
  const int most = static_cast<int>(std::min(tokens, 1e6));
  return std::max(most / kLeastPrefill, 1) * kLeastPrefill;
}

PrefixForecast CostModel::forecast(const PrefixQuestion& question) const {
  using Decision = PrefixForecast::Decision;
  const MeasuredRates now = rates();
  const bool stepwise = question.first_bytes < question.all_bytes;
  PrefixForecast forecast;
  double queue = 0;
  if (now.prefill_tokens_per_second > 0) {
    queue = static_cast<double>(question.queued_tokens) / now.prefill_tokens_per_second;
    forecast.compute_seconds = queue + static_cast<double>(question.tokens) / now.prefill_tokens_per_second;
  }
  if (now.restore_bytes_per_second == 0) {
    forecast.stepwise = stepwise;
    forecast.decision = stepwise ? Decision::kProgressive : Decision::kRestore;
    if (lost_ == 0) return forecast;
    forecast.first_seconds = forecast.all_seconds = std::max(queue, lost_);  // at least
    if (forecast.compute_seconds > 0 && forecast.compute_seconds < forecast.all_seconds)
      forecast.decision = Decision::kRecompute;
    return forecast;
  }
  const auto takes = [&](uint64_t bytes) {
    return now.restore_latency_seconds +
           static_cast<double>(bytes + question.queued_bytes) / now.restore_bytes_per_second;
  };
  const double first = takes(question.first_bytes), all = takes(question.all_bytes);
  // While it waits for its pages the queue before it goes on.
  forecast.first_seconds = std::max(queue, first);
  forecast.all_seconds = std::max(queue, all);
  forecast.stepwise = stepwise && all - first > now.step_seconds;
  forecast.decision = forecast.stepwise ? Decision::kProgressive : Decision::kRestore;
  if (forecast.compute_seconds > 0 && forecast.compute_seconds < forecast.restore_seconds()) {
    forecast.decision = Decision::kRecompute;
  }
  return forecast;
}

uint64_t CostModel::bytes_within(double seconds, uint64_t queued_bytes) const {
  const double bytes = (seconds - latency()) * restore_.rate() - static_cast<double>(queued_bytes);
  return bytes > 0 ? static_cast<uint64_t>(bytes) : 0;
}

PrefixForecast CostModel::decide(const PrefixQuestion& question) {
  using Decision = PrefixForecast::Decision;
  PrefixForecast decided = forecast(question);
  if (decided.decision != Decision::kRecompute) {
    computed_in_a_row_ = 0;
  } else if (++computed_in_a_row_ >= kProbeEvery) {
    computed_in_a_row_ = 0;
    decided.decision = decided.stepwise ? Decision::kProgressive : Decision::kRestore;
  }
  return decided;
}

}  // namespace lowkey::worker
