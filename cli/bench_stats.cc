#include "cli/bench_stats.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

namespace lowkey::cli {
namespace {

constexpr double kFirstBound = 1e-6, kLastBound = 36000, kGrowth = 1.01;

size_t bucket_of(double seconds) {
  double clamped = std::clamp(seconds, kFirstBound, kLastBound);
  return static_cast<size_t>(std::log(clamped / kFirstBound) / std::log(kGrowth));
}

std::string row(const char* name, const DurationHistogram& h) {
  auto ms = [](double seconds) { return 1000 * seconds; };
  return fmt::format("{:<22}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}\n", name, ms(h.mean()),
                     ms(h.percentile(50)), ms(h.percentile(90)), ms(h.percentile(99)), ms(h.most()));
}

boost::json::object to_json(const DurationHistogram& h) {
  return {{"count", h.count()},      {"mean", h.mean()}, {"p50", h.percentile(50)}, {"p90", h.percentile(90)},
          {"p99", h.percentile(99)}, {"min", h.least()}, {"max", h.most()}};
}

}  // namespace

DurationHistogram::DurationHistogram() : buckets_(bucket_of(kLastBound) + 1) {}

void DurationHistogram::add(double seconds) {
  ++buckets_[bucket_of(seconds)];
  least_ = count_ ? std::min(least_, seconds) : seconds;
  most_ = std::max(most_, seconds);
  sum_ += seconds;
  ++count_;
}

double DurationHistogram::percentile(double percent) const {
  if (count_ == 0) return 0;
  auto rank = static_cast<uint64_t>(std::ceil(percent / 100 * static_cast<double>(count_)));
  rank = std::clamp<uint64_t>(rank, 1, count_);
  uint64_t seen = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen < rank) continue;
    double middle = kFirstBound * std::pow(kGrowth, static_cast<double>(i) + 0.5);
    return std::clamp(middle, least_, most_);
  }
  return most_;
}

void BenchStats::add(const RequestOutcome& outcome) {
  prompt_tokens += outcome.prompt_tokens;
  output_tokens += outcome.output_tokens;
  cached += outcome.cached;
  coarse += outcome.coarse;
  if (!outcome.error.empty()) {
    ++failed;
    ++errors[outcome.error];
    error_lines.emplace(outcome.error, outcome.detail);
    return;
  }
  ++answered;
  to_first_token.add(lowkey::seconds(outcome.to_first));
  whole_request.add(lowkey::seconds(outcome.to_last));
  for (auto gap : outcome.gaps) between_tokens.add(lowkey::seconds(gap));
}

double BenchStats::hit_rate() const {
  return prompt_tokens > 0 ? static_cast<double>(cached.all) / static_cast<double>(prompt_tokens) : 0;
}

std::string BenchStats::text() const {
  auto rate = [&](uint64_t n) { return seconds > 0 ? static_cast<double>(n) / seconds : 0; };
  std::string out =
      fmt::format("requests              {} answered, {} failed in {:.2f} s ({:.2f} requests/s)\n", answered,
                  failed, seconds, rate(answered));
  out += fmt::format("tokens                {} in ({:.1f}/s), {} out ({:.1f}/s)\n", prompt_tokens,
                     rate(prompt_tokens), output_tokens, rate(output_tokens));
  if (cached.all > 0) {
    out +=
        fmt::format("cached prompt tokens  {} ({:.1f} %): {} on the device, {} in host memory, {} on disk\n",
                    cached.all, 100 * hit_rate(), cached.device, cached.host, cached.disk);
  }
  if (coarse > 0) out += fmt::format("coarse answers        {}\n", coarse);
  out += fmt::format("{:<22}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "milliseconds", "mean", "p50", "p90", "p99",
                     "max");
  out += row("to first token", to_first_token) + row("between tokens", between_tokens) +
         row("whole request", whole_request);
  for (const auto& [kind, count] : errors) {
    out += fmt::format("error {:<16}{} times; the first: {}\n", kind, count, error_lines.at(kind));
  }
  return out;
}

std::string BenchStats::json(const BenchOptions& options) const {
  auto rate = [&](uint64_t n) { return seconds > 0 ? static_cast<double>(n) / seconds : 0; };
  auto lengths = [](const LengthDistribution& d) { return boost::json::array{d.least, d.most}; };
  boost::json::object kinds;
  for (const auto& [kind, count] : errors) kinds[kind] = count;
  boost::json::object load{{"endpoint", options.chat ? "chat" : "completions"},
                           {"model", options.model},
                           {"temperature", options.temperature}};
  if (const auto& trace = options.trace; !trace.file.empty()) {
    load["trace"] = {{"file", trace.file},
                     {"speed", trace.speed},
                     {"tokens", trace.tokens},
                     {"skip", trace.skip},
                     {"requests", trace.requests}};
  } else {
    load["prompt_tokens"] = lengths(options.prompt_tokens);
    load["output_tokens"] = lengths(options.output_tokens);
    load["seed"] = options.seed;
    if (options.rate > 0)
      load["rate"] = options.rate;
    else
      load["concurrency"] = options.concurrency;
  }
  boost::json::object report{
      {"load", std::move(load)},
      {"duration_seconds", seconds},
      {"requests_answered", answered},
      {"requests_failed", failed},
      {"requests_per_second", rate(answered)},
      {"prompt_tokens", prompt_tokens},
      {"output_tokens", output_tokens},
      {"prompt_tokens_per_second", rate(prompt_tokens)},
      {"output_tokens_per_second", rate(output_tokens)},
      {"cached_tokens", cached.all},
      {"cached_tokens_by_tier", {{"device", cached.device}, {"host", cached.host}, {"disk", cached.disk}}},
      {"hit_rate", hit_rate()},
      {"coarse_answers", coarse},
      {"to_first_token_seconds", to_json(to_first_token)},
      {"between_tokens_seconds", to_json(between_tokens)},
      {"whole_request_seconds", to_json(whole_request)},
      {"errors", std::move(kinds)}};
  return boost::json::serialize(report);
}

}  // namespace lowkey::cli
