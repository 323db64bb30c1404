// What bringing a prefix back costs, and what computing it again would: measured rates, and the decision
// between them. Pure: no clock, no I/O; the caller measures.
//
// Every rate is a quotient of decaying sums, so that long steps and large transfers weigh as much as they
// last. A restore takes `latency + bytes / rate`, fitted by least squares over the same decaying window. A
// quantity that nothing has measured yet is 0, and nothing is computed again before both sides are known.
// Restores that brought nothing say nothing of the rate: what they took is expected to be lost again, on top
// of the latency, half as much with every restore that brings something.
// Rates that are no longer used go stale: after kProbeEvery decisions to compute, one restore is tried
// instead.
//
// Thread rule: one thread.
#pragma once

#include <cstdint>

namespace lowkey::worker {

struct MeasuredRates {
  double prefill_tokens_per_second = 0;
  double decode_step_seconds = 0;  // of steps that only decode
  double step_seconds = 0;         // of any step
  double last_step_seconds = 0;
  double restore_bytes_per_second = 0;
  double restore_latency_seconds = 0;
  double spill_bytes_per_second = 0;  // copied, encoded and checksummed
};

// A prefix behind the device hits. Bytes are those of one rank, the one that has most.
struct PrefixQuestion {
  uint64_t tokens = 0;         // to compute when nothing is restored
  uint64_t queued_tokens = 0;  // others', to be computed first
  uint64_t first_bytes = 0;    // without which the sequence cannot start
  uint64_t all_bytes = 0;      // >= first_bytes
  uint64_t queued_bytes = 0;   // others', on their way
};

struct PrefixForecast {
  enum class Decision : uint8_t {
    kRestore,      // everything, then start
    kProgressive,  // the first levels, start, then the others
    kRecompute
  };
  Decision decision = Decision::kRestore;
  // Until the first own token can be computed; 0: not known.
  double first_seconds = 0;
  double all_seconds = 0;
  double compute_seconds = 0;
  // Of the better way to restore.
  double restore_seconds() const { return stepwise ? first_seconds : all_seconds; }
  bool stepwise = false;  // the upper levels would come later
};

const char* to_string(PrefixForecast::Decision decision);  // as metrics and reports name it

class CostModel {
 public:
  static constexpr int kProbeEvery = 16;
  static constexpr double kSharedSeconds = 0.1, kSharedSteps = 3;

  void on_step(int prefill_tokens, int decode_tokens, double seconds);
  // Of the slowest rank; lookup to last byte in place. `bytes`: with those that went ahead of it.
  void on_restore(uint64_t bytes, double seconds);
  // One that has brought nothing in so long.
  void on_failed_restore(double seconds);
  void on_spill(uint64_t bytes, double seconds);

  MeasuredRates rates() const;
  // Prompt tokens that a step may compute while others decode: whoever decodes waits for all of them between
  // two tokens. So many that the step is expected to take kSharedSeconds, or kSharedSteps times as long as
  // one of decodes alone where that is longer: the weights are read for the decodes anyway. As many as there
  // are, as long as nothing was measured.
  int prefill_beside_decodes() const;
  PrefixForecast forecast(const PrefixQuestion& question) const;
  // That a restore beginning now brings in so many seconds; 0 where nothing was measured.
  uint64_t bytes_within(double seconds, uint64_t queued_bytes) const;
  // forecast(), with every kProbeEvery-th decision in a row to compute turned into a restore.
  PrefixForecast decide(const PrefixQuestion& question);

 private:
  double latency() const { return restore_.latency() + lost_; }

  // Sums that forget: each sample takes away a share of what was there before.
  struct Quotient {
    double amount = 0, seconds = 0;
    void add(double more, double took, double keep);
    double rate() const { return seconds > 0 ? amount / seconds : 0; }
  };
  struct Line {  // least squares of seconds over bytes
    double n = 0, x = 0, y = 0, xx = 0, xy = 0;
    void add(double bytes, double seconds);
    double latency() const;  // >= 0
    double rate() const;     // bytes per second; 0: nothing measured
  };

  Quotient prefill_, spill_;
  double decode_step_ = 0, step_ = 0, last_step_ = 0;
  Line restore_;
  double lost_ = 0;  // seconds that a restore is expected to take for nothing
  int computed_in_a_row_ = 0;
};

}  // namespace lowkey::worker
