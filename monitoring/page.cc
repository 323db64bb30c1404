// render_page(): snapshots of many processes -> one page in Prometheus' text format.
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <limits>
#include <set>

#include "monitoring/metrics.h"
#include "monitoring/snapshot.h"

namespace lowkey::monitoring {
namespace {

prometheus::MetricType to_prometheus(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return prometheus::MetricType::Counter;
    case MetricType::kGauge:
      return prometheus::MetricType::Gauge;
    case MetricType::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  LOWKEY_CHECK(false, "type {}", static_cast<int>(type));
}

prometheus::ClientMetric to_prometheus(const Series& series, const MetricSpec& metric,
                                       const std::vector<LabelSpec>& labels, const Labels& constant) {
  prometheus::ClientMetric result;
  for (const auto& [name, value] : constant) result.label.push_back({name, value});
  for (size_t i = 0; i < labels.size(); ++i)
    result.label.push_back({std::string(labels[i].name), series.label_values[i]});
  switch (metric.type) {
    case MetricType::kCounter:
      result.counter.value = series.value;
      break;
    case MetricType::kGauge:
      result.gauge.value = series.value;
      break;
    case MetricType::kHistogram:
      result.histogram.sample_sum = series.value;
      result.histogram.sample_count = series.buckets.back();
      for (size_t i = 0; i < series.buckets.size(); ++i) {
        double bound =
            i < metric.buckets.size() ? metric.buckets[i] : std::numeric_limits<double>::infinity();
        result.histogram.bucket.push_back({series.buckets[i], bound});
      }
      break;
  }
  return result;
}

}  // namespace

Result<std::string> render_page(std::span<const std::string> serialized) {
  std::vector<prometheus::MetricFamily> families(catalog().size());
  std::set<Labels> processes;
  for (const auto& bytes : serialized) {
    LOWKEY_ASSIGN(snapshot, decode(bytes));
    if (!processes.insert(snapshot.constant_labels).second)
      return Error{Code::kInvalidArgument, "two metrics snapshots of the same process", ""};
    for (const auto& family : snapshot.families) {
      const auto& metric = spec(family.metric);
      const auto labels = label_specs(metric);
      std::set<std::vector<std::string>> seen;
      for (const auto& series : family.series) {
        if (!seen.insert(series.label_values).second)
          return Error{Code::kInvalidArgument, fmt::format("{}: the same series twice", metric.name), ""};
        families[static_cast<size_t>(family.metric)].metric.push_back(
            to_prometheus(series, metric, labels, snapshot.constant_labels));
      }
    }
  }
  for (size_t i = 0; i < families.size(); ++i) {
    families[i].name = catalog()[i].name;
    families[i].help = catalog()[i].help;
    families[i].type = to_prometheus(catalog()[i].type);
  }
  std::erase_if(families, [](const auto& family) { return family.metric.empty(); });
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace lowkey::monitoring
