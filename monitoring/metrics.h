// The metrics of one process: every series of the catalog that it feeds, with constant labels (role, rank).
// Thread-safe. Values travel to the coordinator as a serialized snapshot and are rendered there as one page.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "monitoring/catalog.h"

namespace lowkey::monitoring {

using Labels = std::map<std::string, std::string>;

class Metrics {
 public:
  // `constant_labels` must name role and rank; more are allowed, none that the catalog uses.
  explicit Metrics(Labels constant_labels);
  ~Metrics();

  // Starts the counters and histograms of `feeder` at zero for all label values the catalog lists, so that a
  // rate sees the first event. The constructor does it for kProcess and for the role; a leader calls it for
  // kLeader.
  void declare(Feeder feeder);

  // `labels` must name exactly the labels the catalog declares for the metric (checked). Amounts are not
  // negative. A value the catalog does not list, or one series too many (kMaxSeries), counts as `other`.
  void add(Metric counter, double amount = 1, const Labels& labels = {});
  void set(Metric gauge, double value, const Labels& labels = {});
  void observe(Metric histogram, double value, const Labels& labels = {});
  // The series of something that is gone for good; nothing where there is none. No other thread may set it
  // meanwhile. REQUIRES: labels.
  void remove(Metric gauge, const Labels& labels);

  std::string serialize() const;  // for MetricsReply.families

  static constexpr size_t kMaxSeries = 1024;  // per metric and process

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One Prometheus text page (format 0.0.4) from several processes' serialized snapshots, merged by family.
// Refuses bytes that are not a snapshot of this catalog, and two processes with the same constant labels.
Result<std::string> render_page(std::span<const std::string> serialized);

}  // namespace lowkey::monitoring
