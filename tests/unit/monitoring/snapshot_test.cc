#include "monitoring/snapshot.h"

#include <gtest/gtest.h>

#include <random>

namespace lowkey::monitoring {
namespace {

Snapshot example() {
  Snapshot snapshot{{{"role", "worker"}, {"rank", "7"}}, {}};
  snapshot.families.push_back({Metric::kStepSeconds, {{{}, 1.25, std::vector<uint64_t>(15, 3)}}});
  snapshot.families.push_back({Metric::kKvBytes, {{{"device", "used"}, 17, {}}, {{"host", "frée"}, 18, {}}}});
  snapshot.families.push_back({Metric::kCpuSeconds, {{{}, 0.5, {}}}});
  return snapshot;
}

TEST(Snapshot, RoundTrips) {
  auto decoded = decode(encode(example()));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(encode(*decoded), encode(example()));
  EXPECT_EQ(decoded->constant_labels, example().constant_labels);
  ASSERT_EQ(decoded->families.size(), 3u);
  EXPECT_EQ(decoded->families[1].series[1].label_values, (std::vector<std::string>{"host", "frée"}));
  EXPECT_EQ(decoded->families[1].series[1].value, 18);
  EXPECT_EQ(decoded->families[0].series[0].buckets.back(), 3u);
}

TEST(Snapshot, EveryTruncationIsRefused) {
  auto bytes = encode(example());
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(decode(std::string_view(bytes).substr(0, size)).ok()) << size;
  EXPECT_FALSE(decode(bytes + "x").ok());
}

TEST(Snapshot, WhatCannotBeRenderedIsRefused) {
  auto refused = [](auto change) {
    auto snapshot = example();
    change(snapshot);
    return !decode(encode(snapshot)).ok();
  };
  EXPECT_TRUE(refused([](Snapshot& s) { std::swap(s.families[0], s.families[1]); }));
  EXPECT_TRUE(refused([](Snapshot& s) { s.families[0].metric = static_cast<Metric>(catalog().size()); }));
  EXPECT_TRUE(refused([](Snapshot& s) { s.families[0].series[0].buckets[2] = 4; }));
  EXPECT_TRUE(refused([](Snapshot& s) { s.families[1].series[0].label_values[0] = "\xc3\x28"; }));
  EXPECT_TRUE(refused([](Snapshot& s) { s.families[1].series[0].label_values[0] = std::string(300, 'x'); }));
  EXPECT_TRUE(refused([](Snapshot& s) { s.constant_labels["tier"] = "x"; }));
  EXPECT_TRUE(refused([](Snapshot& s) { s.constant_labels["a b"] = "x"; }));
  EXPECT_TRUE(refused([](Snapshot& s) { s.constant_labels["le"] = "1"; }));
}

TEST(Snapshot, AnyBytesAreSafe) {
  std::mt19937 random(1);
  const auto bytes = encode(example());
  for (int i = 0; i < 20000; ++i) {
    auto damaged = bytes;
    for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips)
      damaged[random() % damaged.size()] = static_cast<char>(random());
    auto decoded = decode(damaged);
    if (decoded.ok()) {
      std::vector<std::string> blobs{damaged};
      (void)render_page(blobs);
    }
  }
}

TEST(LabelText, KeepsUtf8AndReplacesTheRest) {
  EXPECT_EQ(label_text("grüße 東京 🙂"), "grüße 東京 🙂");
  EXPECT_EQ(label_text("a\xc0\xaf"), "a??");          // overlong
  EXPECT_EQ(label_text("\xed\xa0\x80"), "???");       // surrogate
  EXPECT_EQ(label_text("\xf5\x80\x80\x80"), "????");  // above U+10FFFF
  EXPECT_EQ(label_text("ab\xe6\x9d"), "ab??");        // cut off
  EXPECT_EQ(label_text(std::string(1000, 'x')).size(), 256u);
  EXPECT_FALSE(is_label_text("\xff"));
}

}  // namespace
}  // namespace lowkey::monitoring
