#include "monitoring/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <variant>
#include <vector>

#include "monitoring/snapshot.h"

namespace lowkey::monitoring {
namespace {

template <class T>
using FamilyOf = std::unique_ptr<prometheus::Family<T>>;

// One metric of this process: its family, and the series without labels, which needs no lookup.
struct Slot {
  const MetricSpec* metric = nullptr;
  std::vector<LabelSpec> labels;
  prometheus::Histogram::BucketBoundaries buckets;
  std::variant<FamilyOf<prometheus::Counter>, FamilyOf<prometheus::Gauge>, FamilyOf<prometheus::Histogram>>
      family;
  std::once_flag plain_made;
  void* plain = nullptr;
  std::atomic<size_t> series = 0;

  template <class T>
  prometheus::Family<T>& of() const {
    return *std::get<FamilyOf<T>>(family);
  }
};

template <class T>
T& make_series(Slot& slot, const Labels& labels) {
  if constexpr (std::is_same_v<T, prometheus::Histogram>)
    return slot.of<T>().Add(labels, slot.buckets);
  else
    return slot.of<T>().Add(labels);
}

// Labels as the catalog allows them: listed values or `other`, clean UTF-8.
Labels listed_labels(const Slot& slot, const Labels& labels) {
  LOWKEY_CHECK(labels.size() == slot.labels.size(), "{}: {} labels, catalog has '{}'", slot.metric->name,
               labels.size(), slot.metric->labels);
  Labels result;
  for (const auto& label : slot.labels) {
    auto found = labels.find(std::string(label.name));
    LOWKEY_CHECK(found != labels.end(), "{}: no label {}", slot.metric->name, label.name);
    bool listed =
        label.values.empty() || std::ranges::find(label.values, found->second) != label.values.end();
    result[found->first] = listed ? label_text(found->second) : "other";
  }
  return result;
}

// The same, within the bound of series.
template <class T>
Labels allowed_labels(Slot& slot, const Labels& labels) {
  Labels result = listed_labels(slot, labels);
  if (slot.of<T>().Has(result)) return result;
  if (slot.series.fetch_add(1) < Metrics::kMaxSeries) return result;
  --slot.series;
  for (auto& [name, value] : result) value = "other";
  return result;
}

template <class T>
T& series_of(Slot& slot, const Labels& labels) {
  if (!slot.labels.empty() || !labels.empty()) return make_series<T>(slot, allowed_labels<T>(slot, labels));
  std::call_once(slot.plain_made, [&] { slot.plain = &make_series<T>(slot, {}); });
  return *static_cast<T*>(slot.plain);
}

Series to_series(const Slot& slot, const prometheus::ClientMetric& from) {
  Series series;
  for (const auto& label : slot.labels) {
    auto found =
        std::ranges::find(from.label, label.name, [](const auto& l) { return std::string_view(l.name); });
    series.label_values.push_back(found->value);
  }
  switch (slot.metric->type) {
    case MetricType::kCounter:
      series.value = from.counter.value;
      break;
    case MetricType::kGauge:
      series.value = from.gauge.value;
      break;
    case MetricType::kHistogram:
      series.value = from.histogram.sample_sum;
      for (const auto& bucket : from.histogram.bucket) series.buckets.push_back(bucket.cumulative_count);
      break;
  }
  return series;
}

}  // namespace

struct Metrics::Impl {
  Labels constant_labels;
  std::vector<Slot> slots{catalog().size()};

  template <class T>
  T& series(Metric metric, MetricType type, const Labels& labels) {
    auto& slot = slots[static_cast<size_t>(metric)];
    LOWKEY_CHECK(slot.metric->type == type, "{} is of another type", slot.metric->name);
    return series_of<T>(slot, labels);
  }

  // Every combination of the listed label values; nothing for a label that lists none.
  void declare(Slot& slot, size_t label, Labels& labels) {
    if (label < slot.labels.size()) {
      for (auto value : slot.labels[label].values) {
        labels[std::string(slot.labels[label].name)] = value;
        declare(slot, label + 1, labels);
      }
    } else if (slot.metric->type == MetricType::kCounter) {
      series_of<prometheus::Counter>(slot, labels);
    } else if (slot.metric->type == MetricType::kHistogram) {
      series_of<prometheus::Histogram>(slot, labels);
    }
  }
};

Metrics::Metrics(Labels constant_labels) : impl_(std::make_unique<Impl>()) {
  LOWKEY_CHECK(constant_labels.contains("role") && constant_labels.contains("rank"),
               "role and rank are required");
  for (auto& [name, value] : constant_labels) impl_->constant_labels[name] = label_text(value);
  for (size_t i = 0; i < catalog().size(); ++i) {
    auto& slot = impl_->slots[i];
    slot.metric = &catalog()[i];
    slot.labels = label_specs(*slot.metric);
    slot.buckets.assign(slot.metric->buckets.begin(), slot.metric->buckets.end());
    for (const auto& label : slot.labels)
      LOWKEY_CHECK(!constant_labels.contains(std::string(label.name)), "{} labels itself with {}",
                   slot.metric->name, label.name);
    std::string name(slot.metric->name), help(slot.metric->help);
    switch (slot.metric->type) {
      case MetricType::kCounter:
        slot.family = std::make_unique<prometheus::Family<prometheus::Counter>>(name, help, Labels{});
        break;
      case MetricType::kGauge:
        slot.family = std::make_unique<prometheus::Family<prometheus::Gauge>>(name, help, Labels{});
        break;
      case MetricType::kHistogram:
        slot.family = std::make_unique<prometheus::Family<prometheus::Histogram>>(name, help, Labels{});
        break;
    }
  }
  declare(Feeder::kProcess);
  const auto& role = constant_labels["role"];
  if (role == "coordinator") declare(Feeder::kCoordinator);
  if (role == "worker") declare(Feeder::kRank);
  if (role == "store") declare(Feeder::kStore);
}

Metrics::~Metrics() = default;

void Metrics::declare(Feeder feeder) {
  for (auto& slot : impl_->slots) {
    Labels labels;
    if (slot.metric->feeder == feeder) impl_->declare(slot, 0, labels);
  }
}

void Metrics::add(Metric counter, double amount, const Labels& labels) {
  LOWKEY_CHECK(amount >= 0, "{} by {}", spec(counter).name, amount);
  impl_->series<prometheus::Counter>(counter, MetricType::kCounter, labels).Increment(amount);
}

void Metrics::set(Metric gauge, double value, const Labels& labels) {
  impl_->series<prometheus::Gauge>(gauge, MetricType::kGauge, labels).Set(value);
}

void Metrics::observe(Metric histogram, double value, const Labels& labels) {
  impl_->series<prometheus::Histogram>(histogram, MetricType::kHistogram, labels).Observe(value);
}

void Metrics::remove(Metric gauge, const Labels& labels) {
  auto& slot = impl_->slots[static_cast<size_t>(gauge)];
  LOWKEY_CHECK(slot.metric->type == MetricType::kGauge && !labels.empty(), "removing {}", slot.metric->name);
  const Labels listed = listed_labels(slot, labels);
  auto& family = slot.of<prometheus::Gauge>();
  if (!family.Has(listed)) return;
  family.Remove(&family.Add(listed));
  --slot.series;
}

std::string Metrics::serialize() const {
  Snapshot snapshot{impl_->constant_labels, {}};
  for (const auto& slot : impl_->slots) {
    auto collected = std::visit([](const auto& family) { return family->Collect(); }, slot.family);
    Family family{static_cast<Metric>(&slot - impl_->slots.data()), {}};
    for (const auto& from : collected)
      for (const auto& metric : from.metric) family.series.push_back(to_series(slot, metric));
    std::ranges::sort(family.series, {}, &Series::label_values);
    if (!family.series.empty()) snapshot.families.push_back(std::move(family));
  }
  return encode(snapshot);
}

}  // namespace lowkey::monitoring
