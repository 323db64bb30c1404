// Hot pages to spilled ones and back: against the plain codec, and all the way through a store.
#include "kvstore/service/page_transcoder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/page/dtype.h"
#include "kernels/page/page_codec.h"
#include "tests/support/random_profile.h"
#include "tests/unit/kvstore/service/store_cluster.h"
#include "transport/loopback/loopback_network.h"

namespace lowkey::kvstore {
namespace {

using kernels::DType;
using kernels::PageLayout;
using kernels::Side;
using kernels::VectorLayout;

ModelShape model(DType dtype) {
  return {.name = "m",
          .num_layers = 2,
          .num_kv_heads = 4,
          .head_dim = 64,
          .dtype = dtype,
          .fingerprint = hash128(std::string("m"))};
}

PageLayout layout(const std::string& yaml, DType dtype) {
  const auto recipe = parse_recipe("name: x\n" + yaml + "hot: {sink: 3}\n", "r.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.error().message;
  const Profile profile = testing::random_profile(model(dtype), recipe->join, 7, "trained",
                                                  static_cast<int>(recipe->levels.size()));
  auto cache = resolve(*recipe, recipe->needs_profile() ? &profile : nullptr, model(dtype), 0, 1);
  EXPECT_TRUE(cache.ok()) << cache.error().message;
  return std::move(cache->pages);
}

constexpr const char* kExact = "bits: {width: full}\n";
constexpr const char* kQ8 = "bits: {width: 8}\n";
constexpr const char* kBudget = "features: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n";
constexpr const char* kJoined =
    "heads: {join: 2}\nfeatures: {basis: trained}\nbits: {width: auto}\nbudget: 4x\nstream: {levels: 2}\n";
constexpr const char* kAffine =
    "bits: {quantizer: affine, width: 4, group: 16, key: {axis: channel}, value: {axis: token}}\n";

// The memory of one page; all of it 0xa5 at first.
struct Page {
  explicit Page(const PageLayout& layout) {
    for (size_t i = 0; i < slabs.size(); ++i) {
      memory[i].assign(layout.slab_bytes[i], std::byte{0xa5});
      slabs[i] = memory[i];
      pointers[i] = memory[i].data();
    }
  }
  PageTranscoder::ConstSlabs read() const {
    PageTranscoder::ConstSlabs result;
    std::ranges::copy(slabs, result.begin());
    return result;
  }
  std::array<std::vector<std::byte>, kernels::kMaxSlabs> memory;
  PageTranscoder::Slabs slabs;
  std::array<std::byte*, kernels::kMaxSlabs> pointers{};
};

// K and V of all heads: [bank][side][head][token][feature] of the dtype.
std::vector<std::byte> random_rows(const PageLayout& layout, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const size_t count =
      size_t(layout.num_banks) * 2 * layout.num_kv_heads * layout.page_tokens * layout.head_dim;
  std::vector<std::byte> rows(count * dtype_bytes(layout.dtype));
  for (size_t i = 0; i < count; ++i) store_element(rows.data(), layout.dtype, i, normal(random));
  return rows;
}

std::vector<const std::byte*> rows_of(const PageLayout& layout, const VectorLayout& vector,
                                      const std::vector<std::byte>& rows) {
  std::vector<const std::byte*> heads;
  const size_t head_bytes = size_t(layout.page_tokens) * layout.head_dim * dtype_bytes(layout.dtype);
  for (int h = 0; h < vector.num_heads; ++h) {
    const size_t index =
        (size_t(vector.bank) * 2 + (vector.side == Side::kValue)) * layout.num_kv_heads + vector.head + h;
    heads.push_back(rows.data() + index * head_bytes);
  }
  return heads;
}

void encode(const PageLayout& layout, const std::vector<std::byte>& rows, Page& page) {
  for (auto& slab : page.memory) std::fill(slab.begin(), slab.end(), std::byte{0});
  for (const VectorLayout& vector : layout.vectors)
    encode_vector(layout, vector, rows_of(layout, vector, rows), {page.pointers.data()});
  for (size_t i = 0; i < page.memory[layout.sink_slab()].size(); ++i)
    page.memory[layout.sink_slab()][i] = static_cast<std::byte>(i * 31);
}

// What a page says of every row, as encode() wants it.
std::vector<std::byte> decode(const PageLayout& layout, Page& page, std::vector<std::byte> like) {
  std::vector<float> rows;
  for (const VectorLayout& vector : layout.vectors) {
    rows.resize(size_t(layout.page_tokens) * vector.input_dim);
    decode_vector(layout, vector, {page.pointers.data()}, layout.num_levels, rows.data());
    const auto heads = rows_of(layout, vector, like);
    for (int h = 0; h < vector.num_heads; ++h) {
      auto* to = const_cast<std::byte*>(heads[h]);
      for (int t = 0; t < layout.page_tokens; ++t)
        for (int f = 0; f < layout.head_dim; ++f)
          store_element(to, layout.dtype, size_t(t) * layout.head_dim + f,
                        rows[size_t(t) * vector.input_dim + h * layout.head_dim + f]);
    }
  }
  return like;
}

// A recipe, and its name.
struct Hot {
  const char* name;
  const char* yaml;
  DType dtype;
};
void PrintTo(const Hot& hot, std::ostream* out) {
  *out << hot.name << "_" << kernels::to_string(hot.dtype);
}
class Transcoding : public ::testing::TestWithParam<Hot> {};

// Exact rows are coded as the spill recipe codes them, to the bit; back come the values of those codes.
TEST_P(Transcoding, IsTheSpillRecipesOwnCodingAndItsValues) {
  const auto [name, yaml, dtype] = GetParam();
  const PageLayout hot = layout(kExact, dtype), spilled = layout(yaml, dtype);
  PageTranscoder transcoder(hot, spilled);
  EXPECT_EQ(transcoder.lossy(), yaml != kExact);
  for (uint32_t seed : {1, 2}) {  // the second through used scratch
    const auto rows = random_rows(hot, seed);
    Page source(hot), target(spilled), expected(spilled), back(hot);
    encode(hot, rows, source);
    encode(spilled, rows, expected);
    expected.memory[spilled.sink_slab()] = source.memory[hot.sink_slab()];
    transcoder.spill(source.read(), target.slabs);
    EXPECT_EQ(target.memory, expected.memory);

    transcoder.restore(target.read(), back.slabs);
    EXPECT_EQ(back.memory[hot.sink_slab()], source.memory[hot.sink_slab()]);
    const auto wanted = decode(spilled, target, rows), found = decode(hot, back, rows);
    const size_t count = rows.size() / dtype_bytes(dtype);
    const double tolerance = dtype == DType::kF32 ? 2e-6 : 1.0 / 256;  // sums in another order, then rounded
    for (size_t i = 0; i < count; ++i) {
      const float w = load_element(wanted.data(), dtype, i), f = load_element(found.data(), dtype, i);
      ASSERT_NEAR(f, w, tolerance * std::max(1.0f, std::abs(w))) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, Transcoding,
                         ::testing::Values(Hot{"exact", kExact, DType::kBf16}, Hot{"q8", kQ8, DType::kBf16},
                                           Hot{"q8", kQ8, DType::kF32}, Hot{"budget", kBudget, DType::kBf16},
                                           Hot{"budget", kBudget, DType::kF32},
                                           Hot{"joined", kJoined, DType::kBf16},
                                           Hot{"affine", kAffine, DType::kF32}),
                         ::testing::PrintToStringParamName());

TEST(PageTranscoder, FromCodesToFewerCodes) {
  const PageLayout hot = layout(kJoined, DType::kF32), spilled = layout(kAffine, DType::kF32);
  PageTranscoder transcoder(hot, spilled);
  const auto rows = random_rows(hot, 1);
  Page source(hot), target(spilled), expected(spilled), back(hot);
  encode(hot, rows, source);
  transcoder.spill(source.read(), target.slabs);
  const auto hot_rows = decode(hot, source, rows);
  const auto found = decode(spilled, target, rows);
  double error = 0, energy = 0;
  for (size_t i = 0; i < rows.size() / 4; ++i) {
    const double x = load_element(hot_rows.data(), DType::kF32, i);
    error += std::pow(load_element(found.data(), DType::kF32, i) - x, 2);
    energy += x * x;
  }
  EXPECT_LT(error, 0.01 * energy) << "4 bits";
  // Only one level of the hot page is wanted.
  PageTranscoder::Slabs some;
  some[1] = back.slabs[1];
  transcoder.restore(target.read(), some);
  EXPECT_EQ(back.memory[0], std::vector(hot.slab_bytes[0], std::byte{0xa5}));
  Page whole(hot);
  transcoder.restore(target.read(), whole.slabs);
  EXPECT_EQ(back.memory[1], whole.memory[1]);
}

TEST(PageTranscoder, FormsThatCannotBeToldInEachOthersAreRefused) {
  const PageLayout hot = layout(kExact, DType::kBf16);
  PageLayout other = hot;
  EXPECT_TRUE(PageTranscoder::check(hot, other).ok());
  other.sink_tokens = 5;
  EXPECT_EQ(PageTranscoder::check(hot, other).error().message,
            "stream: spill: recipe: sink tokens: expected 3, found 5");
  EXPECT_NE(PageTranscoder::check(hot, layout(kExact, DType::kF32)).error().message.find("dtype"),
            std::string::npos);
}

// Through a store: what is kept and moved is the spill layout's, what comes back is its values, and says so.
TEST(PageTranscoder, PagesOfAStoreAreSpilledOnes) {
  const PageLayout hot = layout(kExact, DType::kBf16), spilled = layout(kBudget, DType::kBf16);
  const auto network = transport::LoopbackNetwork::create();
  const MakePlanes planes = [network](auto& io, auto options,
                                      auto handlers) -> decltype(MakePlanes()(io, options, handlers)) {
    LOWKEY_ASSIGN(transport, network->make_transport(io, std::move(options), std::move(handlers)));
    return std::pair(std::move(transport.control), std::move(transport.data));
  };
  PageOrigin origin = test_origin();
  origin.num_levels = 1;
  StoreProcess store(planes, 9, {.host_bytes = 16 << 20});
  WorkerProcess worker(planes, 1, origin, {.transcoder = std::make_shared<PageTranscoder>(hot, spilled)});
  worker.connect(store.control->address());

  PageTranscoder twin(hot, spilled);
  std::vector<Page> pages, back, expected;
  std::vector<PageWrite> writes;
  std::vector<PageRead> reads;
  for (uint32_t i = 0; i < 3; ++i) {
    pages.emplace_back(hot), back.emplace_back(hot), expected.emplace_back(hot);
    encode(hot, random_rows(hot, i), pages[i]);
  }
  uint64_t stored = 0;
  for (uint32_t i = 0; i < 3; ++i) {
    const bool sink = i == 0;
    kernels::PageHeader header{.levels_present = 1, .has_sink = sink};
    header.identity = hash128(std::to_string(i));
    header.model_fingerprint = origin.model_fingerprint;
    header.layout_fingerprint = origin.layout_fingerprint;
    header.rank = origin.rank;
    header.num_ranks = origin.num_ranks;
    PageWrite write{.header = header, .slabs = pages[i].read(), .checksummed = false};
    PageRead read{.identity = header.identity, .slabs = back[i].slabs};
    Page small(spilled);
    if (!sink) write.slabs[hot.sink_slab()] = read.slabs[hot.sink_slab()] = {};
    twin.spill(pages[i].read(), small.slabs);
    twin.restore(small.read(), expected[i].slabs);
    stored += spilled.slab_bytes[0] + (sink ? spilled.slab_bytes[spilled.sink_slab()] : 0);
    writes.push_back(std::move(write));
    reads.push_back(read);
  }
  const SpillOutcome outcome = worker.spill(std::move(writes));
  EXPECT_EQ(outcome.stored, 3u) << outcome.reason;
  EXPECT_EQ(store.ledger().requested, stored);
  EXPECT_LT(stored, 3 * size_t{hot.slab_bytes[0]} / 2);
  const Restored restored = worker.restore(std::move(reads));
  EXPECT_EQ(restored.pages, 3u) << restored.reason;
  EXPECT_TRUE(restored.lossy);
  EXPECT_EQ(restored.bytes, stored);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(back[i].memory[0], expected[i].memory[0]) << i;
  EXPECT_EQ(back[0].memory[hot.sink_slab()], pages[0].memory[hot.sink_slab()]);

  PageWrite short_one{.slabs = {}, .checksummed = false};
  EXPECT_EQ(worker.spill({short_one}).failed, 1u) << "without its levels it cannot be recoded";
}

}  // namespace
}  // namespace lowkey::kvstore
