#include "monitoring/catalog.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <set>
#include <string>

namespace lowkey::monitoring {
namespace {

TEST(Catalog, NamesAreUniqueAndInBaseUnits) {
  std::set<std::string_view> names;
  const std::regex shape("lowkey_[a-z0-9]+(_[a-z0-9]+)*");
  const std::regex scaled(
      ".*_(milliseconds|ms|us|microseconds|kb|kib|mb|mib|gb|percent|minutes|hours|bits)(_.*)?");
  for (const auto& metric : catalog()) {
    std::string name(metric.name);
    EXPECT_TRUE(names.insert(metric.name).second) << name;
    EXPECT_TRUE(std::regex_match(name, shape)) << name;
    EXPECT_FALSE(std::regex_match(name, scaled)) << name << " is not in a base unit";
    EXPECT_EQ(name.ends_with("_total"), metric.type == MetricType::kCounter) << name;
    for (auto suffix : {"_count", "_sum", "_bucket"}) EXPECT_FALSE(name.ends_with(suffix)) << name;
    EXPECT_FALSE(metric.help.empty()) << name;
    EXPECT_FALSE(metric.help.ends_with('.')) << name;
  }
}

TEST(Catalog, OnlyHistogramsHaveBucketsAndTheyAscend) {
  for (const auto& metric : catalog()) {
    EXPECT_EQ(metric.buckets.empty(), metric.type != MetricType::kHistogram) << metric.name;
    EXPECT_TRUE(std::ranges::is_sorted(metric.buckets, std::less_equal<>{})) << metric.name;
  }
}

TEST(Catalog, LabelsAreBounded) {
  // Bounded by the size of the cluster, the routes of the API or the settings of the process: never by
  // requests.
  const std::set<std::string_view> open{"endpoint",  "status",  "peer_role", "peer_rank",
                                        "transport", "version", "model",     "recipe",
                                        "dtype",     "device",  "expected"};
  const std::regex shape("[a-z]+(_[a-z]+)*");
  for (const auto& metric : catalog()) {
    for (const auto& label : label_specs(metric)) {
      EXPECT_TRUE(std::regex_match(std::string(label.name), shape)) << metric.name << " " << label.name;
      EXPECT_NE(label.name, "role");
      EXPECT_NE(label.name, "rank");
      EXPECT_NE(label.name, "le");
      if (label.values.empty()) {
        EXPECT_TRUE(open.contains(label.name)) << metric.name << " " << label.name;
      }
      for (auto value : label.values) {
        const bool count = value.size() == 1 && value[0] >= '1' && value[0] <= '9';  // of levels
        EXPECT_TRUE(count || std::regex_match(std::string(value), shape)) << value;
      }
    }
  }
}

TEST(Catalog, LabelSpecsAreReadFromText) {
  auto labels = label_specs(spec(Metric::kTransferBytes));
  ASSERT_EQ(labels.size(), 2u);
  EXPECT_EQ(labels[0].name, "direction");
  EXPECT_EQ(labels[0].values, (std::vector<std::string_view>{"put", "get"}));
  EXPECT_EQ(labels[1].name, "transport");
  EXPECT_TRUE(labels[1].values.empty());
  EXPECT_TRUE(label_specs(spec(Metric::kReady)).empty());
}

}  // namespace
}  // namespace lowkey::monitoring
