// Queries rounded for integer products, and the tables of what codes become.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/code_attention.h"
#include "kernels/cpu/scratch.h"
#include "kernels/page/embedded_quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/code_queries.cc"
#define HWY_WANT_AVX3_DL 1
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/code_expand-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

// One row: see CodeQueries. Rounded wide features add up to no more than keeps their sums below 2^31.
void round_query(const CodeSide& side, const float* features, uint32_t* words, int32_t& bias, float& narrow,
                 float& wide) {
  constexpr float kWideBudget = std::numeric_limits<int32_t>::max() / kMaxWideValue - 1024;
  const DF d;
  VF narrow_most = hn::Zero(d), wide_most = narrow_most;
  HWY_ALIGN float wide_sums[kGroupFeatures] = {};  // the order of sums is the same for all vector lengths
  for (const CodeGroup& group : side.groups) {
    for (int f = 0; f < group.features; f += static_cast<int>(hn::Lanes(d))) {
      const VF magnitude = hn::Abs(load_first(d, features + group.feature + f, group.features - f));
      if (is_wide(group.form)) {
        wide_most = hn::Max(wide_most, magnitude);
        float* sum = wide_sums + f % kGroupFeatures;
        hn::Store(hn::Add(hn::Load(d, sum), magnitude), d, sum);
      } else {
        narrow_most = hn::Max(narrow_most, magnitude);
      }
    }
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, narrow_most));
  const float largest_wide = hn::GetLane(hn::MaxOfLanes(d, wide_most));
  float sum_wide = 0;
  for (const float sum : wide_sums) sum_wide += sum;
  const float step = largest / 127, wide_step = std::max(largest_wide / 32767, sum_wide / kWideBudget);
  const float inverse = step > 1e-30f ? 1 / step : 0, wide_inverse = wide_step > 1e-30f ? 1 / wide_step : 0;
  narrow = step / kNarrowUnit;
  wide = wide_step / kWideUnit;
  const CodeTables& tables = kCodeTables;
  VI sums = hn::Zero(DI());
  for (const CodeGroup& group : side.groups) {
    uint32_t* out = words + group.query_word;
    for (int f = 0; f < group.features; f += kGroupFeatures) {
      HWY_ALIGN float rest[kGroupFeatures] = {};
      const float* x = features + group.feature + f;
      if (group.features - f < kGroupFeatures) {
        std::copy_n(x, group.features - f, rest);
        x = rest;
      }
      if (is_wide(group.form)) {
        const bool bytes = group.form == CodeForm::kBytes;
        const Rounded16 rounded(x, hn::Set(DF(), wide_inverse));
        store_words(rounded.values, bytes ? tables.byte_order : tables.nibble_pair_order, out);
        out += 8;
      } else {
        const bool nibbles = group.form == CodeForm::kNibbles;
        const Rounded16 rounded(x, hn::Set(DF(), inverse));
        for (const VI& values : rounded.values) sums = hn::Add(sums, values);
        store_bytes<int8_t>(rounded.values, nibbles ? tables.nibble_order : tables.crumb_order, out);
        out += 4;
      }
    }
  }
  bias = -128 * hn::GetLane(hn::SumOfLanes(DI(), sums));
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(round_query);

namespace {

CodeTables make_code_tables() {
  const EmbeddedTables& values = embedded_tables();
  CodeTables tables;
  const auto narrow = [](float value) { return static_cast<int>(std::lrint(value * kNarrowUnit)); };
  for (int i = 0; i < 64; ++i) {
    const int nibble = narrow(values.value4[i & 15]);
    tables.key_nibbles[i] = static_cast<uint8_t>(nibble + 128);
    tables.value_nibbles[i] = static_cast<uint8_t>(nibble);
    for (int part = 0; part < 3; ++part) {
      const int crumb = narrow(values.value2[(i >> 2 * part) & 3]);
      tables.key_crumbs[64 * part + i] = static_cast<uint8_t>(crumb + 128);
      tables.value_crumbs[64 * part + i] = static_cast<uint8_t>(crumb);
    }
  }
  for (int i = 0; i < 32; ++i) {
    // The rounded step errs least in the middle of the cell: 7.5 steps from its ends.
    const float step = values.step[i & 15], middle = values.base[i & 15] + 7.5f * step;
    tables.step[i] = static_cast<int16_t>(std::lrint(step * kWideUnit));
    tables.base[i] = static_cast<int16_t>(std::lrint(middle * kWideUnit - 7.5f * tables.step[i]));
  }
  const auto bytes = [](CodeForm form, uint8_t* order) {
    std::copy_n(element_order(form).data(), 16, order);
  };
  const auto words = [](CodeForm form, uint8_t* order) {
    for (int i = 0; i < 16; ++i) order[i] = static_cast<uint8_t>(2 * element_order(form)[i / 2] + i % 2);
  };
  bytes(CodeForm::kNibbles, tables.nibble_order);
  bytes(CodeForm::kCrumbs, tables.crumb_order);
  words(CodeForm::kBytes, tables.byte_order);
  words(CodeForm::kNibblePair, tables.nibble_pair_order);
  return tables;
}

}  // namespace

const CodeTables kCodeTables = make_code_tables();

void round_queries(const CodePlan& plan, const FeatureQueries& queries, CodeQueries& rounded) {
  const size_t rows = queries.count;
  rounded.rows = queries.count;
  rounded.soft_cap = queries.soft_cap;
  rounded.offsets = queries.offsets;
  rounded.stride = plan.key.query_words;
  grow(rounded.words, rows * rounded.stride);
  grow(rounded.bias, rows);
  grow(rounded.narrow, rows);
  grow(rounded.wide, rows);
  for (size_t row = 0; row < rows; ++row) {
    HWY_DYNAMIC_DISPATCH(round_query)
    (plan.key, queries.rows + row * queries.stride, rounded.words.data() + row * rounded.stride,
     rounded.bias[row], rounded.narrow[row], rounded.wide[row]);
  }
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
