// Integer attention on encoded pages: against float64 sums over the decoded features, each width's integer
// error against what its quantizer loses, and bit against bit across row counts, cuts and instruction sets.
#include "kernels/cpu/code_pages.h"

#include <cmath>
#include <limits>

#include "kernels/page/page_codec.h"
#include "tests/unit/kernels/support.h"

namespace lowkey::kernels {
namespace {

using test::normal_values;
using Widths = std::vector<std::array<uint8_t, kMaxLevels>>;

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Pages of one stored K and one stored V, filled with rows of unit normal values times `spread`^-group.
class EncodedCase {
 public:
  struct Options {
    Widths key, value;
    int dim = 64;
    int page_tokens = 32;
    int num_levels = 1;
    int pages = 1;
    bool norm = true;
    bool scales = false;
    float tilt = 1;  // of features: each group's scale over the one before
    uint32_t seed = 1;
  };

  explicit EncodedCase(const Options& o) : options(o) {
    PageSpec spec{.page_tokens = o.page_tokens, .num_levels = o.num_levels};
    for (VectorSpec* side : {&spec.key, &spec.value}) {
      side->quantizer = Quantizer::kEmbedded;
      side->bits = side == &spec.key ? o.key : o.value;
      side->norm = o.norm;
      if (o.scales) {
        for (int f = 0; f < std::min<int>(o.dim, 16 * side->bits.size()); ++f)
          side->scale.push_back(0.5f + 0.01f * static_cast<float>(f));
      }
    }
    if (spec.key.bits.size() * kGroupFeatures < static_cast<size_t>(o.dim)) add_basis(spec.key);
    if (spec.value.bits.size() * kGroupFeatures < static_cast<size_t>(o.dim)) add_basis(spec.value);
    layout = PageLayout::make(spec, {1, 1, o.dim, DType::kF32}).value();
    for (int page = 0; page < o.pages; ++page) {
      for (int slab = 0; slab < kMaxSlabs; ++slab) {
        // Bytes that no plane owns must not matter.
        memory.emplace_back(slab < o.num_levels ? layout.slab_bytes[slab] : 0, std::byte{0x5a});
      }
    }
    for (auto& slab : memory) slabs.push_back(slab.empty() ? nullptr : slab.data());
    for (int page = 0; page < o.pages; ++page) {
      for (Side side : {Side::kKey, Side::kValue}) encode(page, side);
    }
  }

  const VectorLayout& vector(Side side) const { return layout.vector(0, side, 0); }
  std::byte* const* page_slabs(int page) const {
    return slabs.data() + static_cast<size_t>(page) * kMaxSlabs;
  }

  // [pages * page_tokens][dim], as encoded at `levels` and as they were.
  std::vector<float> decoded(Side side, int levels) const {
    const size_t page_floats = static_cast<size_t>(options.page_tokens) * vector(side).dim;
    std::vector<float> all(options.pages * page_floats);
    for (int page = 0; page < options.pages; ++page) {
      decode_features(layout, vector(side), {page_slabs(page)}, levels, all.data() + page * page_floats);
    }
    return all;
  }

  float scale(int f) const { return options.scales ? 0.5f + 0.01f * static_cast<float>(f) : 1.0f; }

  Options options;
  PageLayout layout;
  std::vector<float> rows[2];  // of each side

 private:
  // The first features as they are: what keeps fewer than it is given needs a basis.
  void add_basis(VectorSpec& side) const {
    const size_t kept = side.bits.size() * kGroupFeatures;
    side.encode.assign(kept * options.dim, 0.0f);
    for (size_t f = 0; f < kept; ++f) side.encode[f * options.dim + f] = 1;
    side.decode = side.encode;
  }

  void encode(int page, Side side) {
    auto values = normal_values(static_cast<size_t>(options.page_tokens) * options.dim,
                                options.seed * 1000 + page * 2 + (side == Side::kValue));
    for (size_t i = 0; i < values.size(); ++i) {
      const int f = static_cast<int>(i) % options.dim;
      values[i] *= scale(f) * std::pow(options.tilt, static_cast<float>(f / kGroupFeatures));
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    encode_vector(layout, vector(side), {&bytes, 1}, {page_slabs(page)});
    auto& all = rows[side == Side::kValue];
    all.insert(all.end(), values.begin(), values.end());
  }

  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> slabs;
};

struct Result {
  std::vector<float> maximum, sum, acc;
  bool operator==(const Result&) const = default;
};

// Attends rows [first, first + rows) of `queries` [..][dim], row r at slot begin + r / group.
struct Rows {
  int first = 0, rows = 1, begin = 1 << 24, group = 1, first_token = 0;
};

Result attend(const EncodedCase& pages, int levels, const std::vector<float>& queries, const Rows& which) {
  const EncodedHead head{&pages.layout, &pages.vector(Side::kKey), &pages.vector(Side::kValue)};
  const int dim = pages.options.dim, stored = head.key->dim, page_tokens = pages.options.page_tokens;
  // Static scales go into the query; features that are not stored are not read.
  std::vector<float> mapped(static_cast<size_t>(which.rows) * stored);
  for (int r = 0; r < which.rows; ++r) {
    for (int f = 0; f < stored; ++f) {
      mapped[static_cast<size_t>(r) * stored + f] =
          queries[static_cast<size_t>(which.first + r) * dim + f] * pages.scale(f);
    }
  }
  Result result{std::vector<float>(which.rows, kNothing), std::vector<float>(which.rows),
                std::vector<float>(static_cast<size_t>(which.rows) * dim)};
  CodePages code_pages;
  EXPECT_TRUE(code_pages.can_read(head, levels));
  code_pages.prepare(head, levels, {mapped.data(), stored, which.rows});
  const int last_slot = which.begin + (which.rows - 1) / which.group;
  const int visible = std::min(pages.options.pages, last_slot / page_tokens);
  for (int first = 0; first < visible; first += kMaxRunPages) {
    PageRun run{.slabs = pages.page_slabs(first),
                .num_pages = std::min(kMaxRunPages, visible - first),
                .pages_after = std::max(0, visible - first - kMaxRunPages),
                .masked_tokens = first == 0 ? which.first_token : 0};
    for (int p = 0; p < run.num_pages; ++p)
      run.first_query[p] = std::max(0, ((first + p + 1) * page_tokens - which.begin) * which.group);
    code_pages.see(run, {result.maximum.data(), result.sum.data(), result.acc.data(), dim});
  }
  for (size_t i = 0; i < result.acc.size(); ++i) result.acc[i] *= pages.scale(static_cast<int>(i) % dim);
  return result;
}

// The same from the formula: float64 sums over `keys` and `values` [tokens][stored dim].
std::vector<double> expected_row(const EncodedCase& pages, const std::vector<float>& keys, int key_dim,
                                 const std::vector<float>& values, int value_dim, const float* query,
                                 int first, int tokens) {
  std::vector<double> scores(tokens), out(pages.options.dim);
  double largest = -INFINITY, sum = 0;
  for (int t = first; t < tokens; ++t) {
    for (int f = 0; f < key_dim; ++f)
      scores[t] += double{query[f]} * keys[static_cast<size_t>(t) * key_dim + f];
    largest = std::max(largest, scores[t]);
  }
  for (int t = first; t < tokens; ++t) {
    const double weight = std::exp(scores[t] - largest);
    sum += weight;
    for (int f = 0; f < value_dim; ++f) out[f] += weight * values[static_cast<size_t>(t) * value_dim + f];
  }
  for (double& x : out) x /= sum;
  return out;
}

double decibel(double signal, double error) {
  return 10 * std::log10(signal / error);
}

struct WidthCase {
  std::string name;
  std::array<uint8_t, kMaxLevels> bits;
  int num_levels;
};

const WidthCase kWidthCases[] = {
    {"w2", {2, 0, 0}, 1},   {"w4", {4, 0, 0}, 1},     {"w8", {8, 0, 0}, 1},     {"w2_2", {2, 2, 0}, 2},
    {"w4_4", {4, 4, 0}, 2}, {"w2_2_4", {2, 2, 4}, 3}, {"w4_2_2", {4, 2, 2}, 3},
};

class CodeWidth : public testing::TestWithParam<WidthCase> {
 protected:
  // All groups in the case's width; a layout level that another group has alone keeps levels non-empty.
  EncodedCase::Options options() const {
    EncodedCase::Options o;
    o.key = o.value = Widths(4, GetParam().bits);
    o.num_levels = GetParam().num_levels;
    o.scales = true;
    return o;
  }
};

// A score is read off as the maximum of a run that sees one token only.
TEST_P(CodeWidth, ScoreErrorsAreFarBelowTheQuantizers) {
  double signal = 0, quantizer = 0, integers = 0;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    auto o = options();
    o.seed = seed;
    const EncodedCase pages(o);
    const auto query = normal_values(o.dim, seed + 5000);
    const auto keys = pages.decoded(Side::kKey, o.num_levels);
    const int t = o.page_tokens - 1;
    double exact = 0, decoded = 0;
    for (int f = 0; f < o.dim; ++f) {
      exact += double{query[f]} * pages.rows[0][static_cast<size_t>(t) * o.dim + f];
      decoded += double{query[f]} * keys[static_cast<size_t>(t) * o.dim + f];
    }
    const float found = attend(pages, o.num_levels, query, {.first_token = t}).maximum[0];
    signal += exact * exact;
    quantizer += (exact - decoded) * (exact - decoded);
    integers += (decoded - found) * (decoded - found);
  }
  std::printf("%s keys: quantizer %.1f dB, integers %.1f dB\n", GetParam().name.c_str(),
              decibel(signal, quantizer), decibel(signal, integers));
  EXPECT_GT(decibel(quantizer, integers), 12);
}

TEST_P(CodeWidth, ValueErrorsAreFarBelowTheQuantizers) {
  double signal = 0, quantizer = 0, integers = 0;
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    auto o = options();
    o.seed = seed;
    o.key = Widths(4, {8, 0, 0});  // scores far better than what is measured
    if (o.num_levels > 1) o.value.resize(4, GetParam().bits);
    const EncodedCase pages(o);
    const auto query = normal_values(o.dim, seed + 5000, 0.2f);
    const auto keys = pages.decoded(Side::kKey, o.num_levels),
               values = pages.decoded(Side::kValue, o.num_levels);
    const auto exact = expected_row(pages, keys, o.dim, pages.rows[1], o.dim, query.data(), 0, o.page_tokens);
    const auto decoded = expected_row(pages, keys, o.dim, values, o.dim, query.data(), 0, o.page_tokens);
    const Result found = attend(pages, o.num_levels, query, {});
    for (int f = 0; f < o.dim; ++f) {
      const double out = found.acc[f] / found.sum[0];
      signal += exact[f] * exact[f];
      quantizer += (exact[f] - decoded[f]) * (exact[f] - decoded[f]);
      integers += (decoded[f] - out) * (decoded[f] - out);
    }
  }
  std::printf("%s values: quantizer %.1f dB, integers %.1f dB\n", GetParam().name.c_str(),
              decibel(signal, quantizer), decibel(signal, integers));
  EXPECT_GT(decibel(quantizer, integers), 12);
}

INSTANTIATE_TEST_SUITE_P(Widths, CodeWidth, testing::ValuesIn(kWidthCases),
                         [](const auto& info) { return info.param.name; });

struct MixCase {
  std::string name;
  EncodedCase::Options options;
  int levels;  // read
};

std::vector<MixCase> mixes() {
  const std::array<uint8_t, kMaxLevels> w0{}, w2{2}, w4{4}, w8{8}, s22{2, 2}, s44{4, 4}, s224{2, 2, 4},
      s422{4, 2, 2}, later2{0, 2}, later4{0, 4};
  std::vector<MixCase> all;
  const auto add = [&](std::string name, Widths key, Widths value, int dim, int levels, int read, int tokens,
                       bool norm) {
    EncodedCase::Options o;
    o.key = std::move(key), o.value = std::move(value);
    o.dim = dim, o.num_levels = levels, o.page_tokens = tokens, o.norm = norm;
    o.pages = 11, o.scales = true, o.tilt = 0.6f;
    all.push_back({std::move(name), o, read});
  };
  add("w8420", {w8, w4, w2, w0}, {w4, w2, w2, w0}, 64, 1, 1, 32, true);
  add("w8888", {w8, w8, w8, w8}, {w8, w8, w8, w8}, 64, 1, 1, 32, true);
  add("zero_first", {w0, w4, w0, w2}, {w0, w0, w2, w8}, 64, 1, 1, 32, true);
  add("nothing_in_values", {w4}, {w0}, 64, 1, 1, 32, true);
  add("split_level_1_of_2", {s44, s22, later2, w0}, {s44, s22, later4, w2}, 64, 2, 1, 32, true);
  add("split_level_2_of_2", {s44, s22, later2, w0}, {s44, s22, later4, w2}, 64, 2, 2, 32, true);
  add("split_level_1_of_3", {s224, s422, s22, later2}, {s422, s224, s22, w4}, 64, 3, 1, 32, true);
  add("split_level_2_of_3", {s224, {4, 4}, s22, later2}, {{4, 4}, s224, s22, w4}, 64, 3, 2, 32, true);
  add("split_level_3_of_3", {s224, s422, s22, later2}, {s422, s224, s22, w4}, 64, 3, 3, 32, true);
  add("ragged_20", {w8, w4}, {w4, w8}, 20, 1, 1, 32, true);
  add("ragged_28_split", {s422, s224}, {s224, s422}, 28, 3, 3, 16, true);
  add("ragged_44_crumbs", {s22, w2, w2}, {w2, w2, s22}, 44, 2, 2, 48, true);
  add("ragged_44_bytes", {w8, w8, w8}, {w8, w8, w8}, 44, 1, 1, 16, false);
  add("no_norm", {w8, w4, w2, w2}, {w4, w4, w2, w2}, 64, 1, 1, 64, false);
  add("long_pages", {w8, w4, w2, w2}, {w8, w4, w2, w2}, 64, 1, 1, 256, true);
  add("d128", Widths(8, w4), Widths(8, w2), 128, 1, 1, 32, true);
  return all;
}

class CodeMix : public testing::TestWithParam<MixCase> {
 protected:
  EncodedCase pages{GetParam().options};
  int levels = GetParam().levels;
  int tokens = GetParam().options.pages * GetParam().options.page_tokens;
};

// Tolerance: of a score 2^-8 of the largest narrow query feature for each of them (and as much for the
// rounded table), of a value 1/510 of the page's largest weight and of the value each.
TEST_P(CodeMix, EqualsTheFormula) {
  const int dim = pages.options.dim;
  const auto keys = pages.decoded(Side::kKey, levels), values = pages.decoded(Side::kValue, levels);
  const int key_dim = pages.vector(Side::kKey).dim, value_dim = pages.vector(Side::kValue).dim;
  for (int first_token : {0, 3, pages.options.page_tokens}) {
    const auto query = normal_values(dim, 77 + first_token, 0.3f);
    const Result found = attend(pages, levels, query, {.first_token = first_token});
    const auto expected =
        expected_row(pages, keys, key_dim, values, value_dim, query.data(), first_token, tokens);
    double largest = 0, signal = 0, error = 0;
    for (float v : values) largest = std::max(largest, std::fabs(double{v}));
    for (int f = 0; f < dim; ++f) {
      const double out = found.acc[f] / found.sum[0];
      signal += expected[f] * expected[f];
      error += (out - expected[f]) * (out - expected[f]);
      ASSERT_NEAR(out, expected[f], 0.015 * largest) << "feature " << f;
    }
    if (signal > 0) {
      EXPECT_GT(decibel(signal, error), 24);
    }
  }
}

// Rows that end in different pages, all at once, one by one, and in uneven pieces.
TEST_P(CodeMix, RowsDoNotDependOnEachOther) {
  const int dim = pages.options.dim, group = 3, page_tokens = pages.options.page_tokens;
  const int begin = 3 * page_tokens - 7, rows = 4 * page_tokens * group;
  const auto queries = normal_values(static_cast<size_t>(rows) * dim, 5, 0.4f);
  const Result all = attend(pages, levels, queries, {0, rows, begin, group, 2});
  const auto expect_part = [&](int first_slot, int slots) {
    const int first = first_slot * group;
    const Result part = attend(pages, levels, queries, {first, slots * group, begin + first_slot, group, 2});
    for (int r = 0; r < slots * group; ++r) {
      ASSERT_EQ(part.maximum[r], all.maximum[first + r]) << "row " << first + r;
      ASSERT_EQ(part.sum[r], all.sum[first + r]) << "row " << first + r;
      for (int f = 0; f < dim; ++f) {
        ASSERT_EQ(part.acc[static_cast<size_t>(r) * dim + f],
                  all.acc[static_cast<size_t>(first + r) * dim + f])
            << "row " << first + r << " feature " << f;
      }
    }
  };
  for (int slot = 0; slot < rows / group; slot += 5) expect_part(slot, 1);
  for (int slots : {2, 5, 40}) expect_part(1, slots);
}

INSTANTIATE_TEST_SUITE_P(Mixes, CodeMix, testing::ValuesIn(mixes()),
                         [](const auto& info) { return info.param.name; });

// Without norms and with one kind of width no float operation can contract: equal to the bit.
TEST(CodeAttention, ScoresAreEqualOnAllInstructionSets) {
  for (const WidthCase& width : kWidthCases) {
    EncodedCase::Options o;
    o.key = o.value = Widths(4, width.bits);
    o.num_levels = width.num_levels;
    o.norm = false;
    const EncodedCase pages(o);
    const auto query = normal_values(o.dim, 9);
    const Rows last{.first_token = o.page_tokens - 1};
    const Result best = attend(pages, o.num_levels, query, last);
    for (const auto& c : test::simd_backends()) {
      const test::SimdTarget only(c.simd_target);
      const Result here = attend(pages, o.num_levels, query, last);
      EXPECT_EQ(here.maximum, best.maximum) << c.name << " " << width.name;
      test::expect_close(here.acc, best.acc, 1e-6, 1e-6, c.name + " " + width.name);
    }
  }
}

TEST(CodeAttention, SelectionIsAPropertyOfTheLayout) {
  const auto plan = [](VectorSpec vector, int levels, int read) {
    PageSpec spec{.num_levels = levels, .key = vector, .value = vector};
    const PageLayout layout = PageLayout::make(spec, {1, 1, 64, DType::kBf16}).value();
    CodePages pages;
    return pages.can_read({&layout, &layout.vector(0, Side::kKey, 0), &layout.vector(0, Side::kValue, 0)},
                          read);
  };
  VectorSpec embedded{.quantizer = Quantizer::kEmbedded};
  embedded.bits = Widths(4, {2, 2, 4});
  EXPECT_TRUE(plan(embedded, 3, 3));
  embedded.bits = Widths(4, {3, 0, 0});
  EXPECT_FALSE(plan(embedded, 1, 1));
  embedded.bits = Widths(4, {2, 4, 0});
  EXPECT_TRUE(plan(embedded, 2, 1));
  EXPECT_FALSE(plan(embedded, 2, 2)) << "6 bits";
  EXPECT_FALSE(plan(VectorSpec{}, 1, 1)) << "full";
  VectorSpec affine{.quantizer = Quantizer::kAffine, .axis = ScaleAxis::kToken, .scale_span = 16};
  affine.bits = Widths(4, {4, 0, 0});
  EXPECT_FALSE(plan(affine, 1, 1));
}

}  // namespace
}  // namespace lowkey::kernels
