// The metrics of one process: every series of the catalog that it feeds, with constant labels (role, rank).
// Thread-safe. Values travel to the coordinator as serialized families and are rendered there as one page.
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
  explicit Metrics(Labels constant_labels);
  ~Metrics();

  // `labels` must name exactly the labels the catalog declares for the metric (checked).
  void add(Metric counter, double amount = 1, const Labels& labels = {});
  void set(Metric gauge, double value, const Labels& labels = {});
  void observe(Metric histogram, double value, const Labels& labels = {});

  std::string serialize() const;  // for MetricsReply.families

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One Prometheus text page (format 0.0.4) from several processes' serialized families, merged by family.
Result<std::string> render_page(std::span<const std::string> serialized);

}  // namespace lowkey::monitoring
