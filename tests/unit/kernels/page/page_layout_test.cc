#include "kernels/page/page_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "kernels/page/page_header.h"

namespace lowkey::kernels {
namespace {

PageSpec q8_spec() {
  return PageSpec::embedded("q8", 8, 4);
}

struct LayoutCase {
  PageSpec spec;
  CacheShape shape;
};
void PrintTo(const LayoutCase& of, std::ostream* out) {
  *out << of.spec.recipe << "_" << of.shape.num_banks << "_" << of.shape.num_kv_heads << "_"
       << of.shape.head_dim << "_" << to_string(of.shape.dtype);
}

class PageLayoutBytes : public testing::TestWithParam<LayoutCase> {};

struct Piece {
  uint64_t begin, end;
};

// Sorts, checks that nothing overlaps, and returns the bytes between the pieces and behind the last one.
uint64_t padding(std::vector<Piece> pieces, uint64_t total) {
  std::sort(pieces.begin(), pieces.end(), [](Piece a, Piece b) { return a.begin < b.begin; });
  uint64_t at = 0, gaps = 0;
  for (const Piece& piece : pieces) {
    EXPECT_GE(piece.begin, at) << "overlap";
    EXPECT_LT(piece.begin - at, 64u) << "a gap is alignment, less than a cache line";
    gaps += piece.begin - at;
    at = piece.end;
  }
  EXPECT_LE(at, total);
  return gaps + total - at;
}

TEST_P(PageLayoutBytes, EveryByteOfTheLevelSlabIsAPlaneAScalarOrPadding) {
  const PageLayout layout = PageLayout::make(GetParam().spec, GetParam().shape).value();
  std::vector<Piece> pieces;
  uint64_t used = 0;
  for (const VectorLayout& v : layout.vectors) {
    EXPECT_EQ(v.scalars_offset % 64, 0u);
    if (v.num_scalars > 0) {
      pieces.push_back({v.scalars_offset, v.scalars_offset + 2ull * v.num_scalars * layout.page_tokens});
    }
    int features = 0;
    for (int i = 0; i < v.num_planes; ++i) {
      const Plane& plane = layout.planes[v.first_plane + i];
      EXPECT_EQ(plane.feature, features);
      EXPECT_LE(plane.features, kGroupFeatures);
      EXPECT_EQ(plane.bytes * 8, plane.features * layout.page_tokens * plane.bits);
      features += plane.features;
      pieces.push_back({plane.offset, plane.offset + plane.bytes});
    }
    EXPECT_EQ(features, layout.head_dim);
    EXPECT_EQ(layout.planes[v.first_plane].offset % 64, 0u);
  }
  for (const Piece& piece : pieces) used += piece.end - piece.begin;
  EXPECT_EQ(layout.slab_bytes[0] % 64, 0u);
  EXPECT_EQ(used + padding(pieces, layout.slab_bytes[0]), layout.slab_bytes[0]);
  EXPECT_EQ(std::count_if(layout.slab_bytes.begin() + layout.num_slabs(), layout.slab_bytes.end(),
                          [](uint32_t bytes) { return bytes != 0; }),
            0);
}

TEST_P(PageLayoutBytes, TailAndSinkHoldEveryVectorOnce) {
  const PageLayout layout = PageLayout::make(GetParam().spec, GetParam().shape).value();
  const uint64_t row = layout.head_dim * dtype_bytes(layout.dtype);
  std::vector<Piece> tail, sink;
  for (const RowsLayout& r : layout.rows) {
    tail.push_back({r.tail_offset, r.tail_offset + layout.page_tokens * row});
    sink.push_back({r.sink_offset, r.sink_offset + layout.sink_tokens * row});
  }
  padding(tail, layout.tail_bytes);
  EXPECT_EQ(layout.tail_bytes % 64, 0u);
  if (layout.sink_tokens == 0) {
    EXPECT_EQ(layout.slab_bytes[layout.sink_slab()], 0u);
    return;
  }
  padding(sink, layout.slab_bytes[layout.sink_slab()]);
  EXPECT_EQ(layout.slab_bytes[layout.sink_slab()] % 64, 0u);
}

TEST_P(PageLayoutBytes, ForecastCountsSlabsHeadersSinkAndTail) {
  const PageLayout layout = PageLayout::make(GetParam().spec, GetParam().shape).value();
  const uint64_t page = layout.slab_bytes[0] + kPageHeaderBytes;
  const uint64_t sink = layout.sink_tokens > 0 ? layout.slab_bytes[layout.sink_slab()] : 0;
  const uint64_t t = layout.page_tokens;
  EXPECT_EQ(layout.bytes_for_tokens(0), 0u);
  EXPECT_EQ(layout.bytes_for_tokens(1), layout.tail_bytes);
  EXPECT_EQ(layout.bytes_for_tokens(t - 1), layout.tail_bytes);
  EXPECT_EQ(layout.bytes_for_tokens(t), page + sink + layout.tail_bytes);
  EXPECT_EQ(layout.bytes_for_tokens(10 * t + 1), 10 * page + sink + layout.tail_bytes);
  EXPECT_DOUBLE_EQ(layout.bytes_per_token() * t, page);
}

TEST_P(PageLayoutBytes, HeadsAreAdjacentBankAfterBankKeysBeforeValues) {
  const PageLayout layout = PageLayout::make(GetParam().spec, GetParam().shape).value();
  uint64_t last = 0;
  for (int bank = 0; bank < layout.num_banks; ++bank) {
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int head = 0; head < layout.num_kv_heads; ++head) {
        const VectorLayout& v = layout.vector(bank, side, head);
        EXPECT_EQ(v.bank, bank);
        EXPECT_EQ(v.head, head);
        EXPECT_EQ(v.side, side);
        EXPECT_TRUE(v.scalars_offset >= last) << "bank " << bank << " head " << head;
        last = v.scalars_offset + 1;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, PageLayoutBytes,
                         testing::Values(LayoutCase{{}, {30, 3, 64, DType::kBf16}},
                                         LayoutCase{{}, {5, 4, 8, DType::kF32}},
                                         LayoutCase{q8_spec(), {30, 3, 64, DType::kBf16}},
                                         LayoutCase{q8_spec(), {5, 4, 8, DType::kF32}},
                                         LayoutCase{q8_spec(), {2, 1, 20, DType::kBf16}},
                                         LayoutCase{q8_spec(), {32, 8, 128, DType::kBf16}},
                                         LayoutCase{{.recipe = "long", .page_tokens = 48, .sink_tokens = 1},
                                                    {3, 2, 4, DType::kF16}}),
                         testing::PrintToStringParamName());

TEST(PageLayout, Q8BytesOfThe135MShape) {
  const PageLayout layout = PageLayout::make(q8_spec(), {30, 3, 64, DType::kBf16}).value();
  // Per vector: 32 bf16 norms and 32 x 64 codes; 30 banks, K and V, 3 heads; sink 4 x 64 bf16.
  EXPECT_EQ(layout.slab_bytes[0], 30u * 2 * 3 * (64 + 2048));
  EXPECT_EQ(layout.slab_bytes[1], 30u * 2 * 3 * 512);
  EXPECT_EQ(layout.bf16_bytes_for_tokens(1000), 1000u * 30 * 2 * 3 * 128);
  EXPECT_NEAR(layout.bf16_bytes_for_tokens(1 << 20) / static_cast<double>(layout.bytes_for_tokens(1 << 20)),
              1.939, 0.001);
}

TEST(PageLayout, FingerprintSeesEveryDecidingFieldAndNotTheName) {
  const PageSpec spec = q8_spec();
  const CacheShape shape{4, 2, 16, DType::kBf16};
  const PageLayout base = PageLayout::make(spec, shape).value();
  PageSpec renamed = spec;
  renamed.recipe = "other";
  EXPECT_EQ(PageLayout::make(renamed, shape).value().fingerprint(), base.fingerprint());

  const std::vector<std::function<void(PageLayout&)>> changes = {
      [](PageLayout& l) { l.version++; },
      [](PageLayout& l) { l.page_class++; },
      [](PageLayout& l) { l.page_tokens += 4; },
      [](PageLayout& l) { l.sink_tokens--; },
      [](PageLayout& l) { l.num_levels++; },
      [](PageLayout& l) { l.num_banks++; },
      [](PageLayout& l) { l.num_kv_heads++; },
      [](PageLayout& l) { l.head_dim += 4; },
      [](PageLayout& l) { l.dtype = DType::kF32; },
      [](PageLayout& l) { l.join++; },
      [](PageLayout& l) { l.slab_bytes[0] += 64; },
      [](PageLayout& l) { l.slab_bytes[3] += 64; },
      [](PageLayout& l) { l.tail_bytes += 64; },
      [](PageLayout& l) { l.vectors[1].side = Side::kValue; },
      [](PageLayout& l) { l.vectors[1].quantizer = Quantizer::kFull; },
      [](PageLayout& l) { l.vectors[1].bank++; },
      [](PageLayout& l) { l.vectors[1].head++; },
      [](PageLayout& l) { l.vectors[1].dim++; },
      [](PageLayout& l) { l.vectors[1].num_planes++; },
      [](PageLayout& l) { l.vectors[1].first_plane++; },
      [](PageLayout& l) { l.vectors[1].scalars_offset++; },
      [](PageLayout& l) { l.vectors[1].num_scalars++; },
      [](PageLayout& l) { l.vectors[1].log_masses_offset = 0; },
      [](PageLayout& l) { l.vectors[1].positions_offset = 0; },
      [](PageLayout& l) { l.vectors[1].from_key = true; },
      [](PageLayout& l) { l.vectors[1].axis = ScaleAxis::kToken; },
      [](PageLayout& l) { l.vectors[1].num_heads++; },
      [](PageLayout& l) { l.vectors[1].input_dim++; },
      [](PageLayout& l) { l.vectors[1].scale_span++; },
      [](PageLayout& l) { l.vectors[1].scales_offset++; },
      [](PageLayout& l) { l.vectors[1].norm_edge += 1; },
      [](PageLayout& l) { l.vectors[1].encode = 0; },
      [](PageLayout& l) { l.vectors[1].decode = 0; },
      [](PageLayout& l) { l.vectors[1].mean = 0; },
      [](PageLayout& l) { l.vectors[1].scale = 0; },
      [](PageLayout& l) { l.numbers.push_back(1.0f); },
      [](PageLayout& l) { l.rows[1].tail_offset++; },
      [](PageLayout& l) { l.rows[1].sink_offset++; },
      [](PageLayout& l) { l.planes[2].offset++; },
      [](PageLayout& l) { l.planes[2].bytes++; },
      [](PageLayout& l) { l.planes[2].feature++; },
      [](PageLayout& l) { l.planes[2].features++; },
      [](PageLayout& l) { l.planes[2].bits++; },
      [](PageLayout& l) { l.planes[2].level++; },
  };
  std::set<std::string> seen = {base.fingerprint().hex()};
  for (size_t i = 0; i < changes.size(); ++i) {
    PageLayout changed = base;
    changes[i](changed);
    EXPECT_TRUE(seen.insert(changed.fingerprint().hex()).second) << "change " << i;
  }
}

TEST(PageLayout, RefusesImpossibleSpecsNamingTheField) {
  const CacheShape shape{4, 2, 16, DType::kBf16};
  auto expect_param = [](const PageSpec& spec, const CacheShape& s, const std::string& param) {
    const auto result = PageLayout::make(spec, s);
    ASSERT_FALSE(result.ok()) << param;
    EXPECT_EQ(result.error().param, param) << result.error().message;
    EXPECT_EQ(result.error().code, Code::kUsage);
    EXPECT_NE(result.error().message.find("found"), std::string::npos) << result.error().message;
  };
  auto with = [](auto change) {
    PageSpec spec = q8_spec();
    change(spec);
    return spec;
  };
  expect_param({}, {4, 2, 18, DType::kBf16}, "head_dim");
  expect_param({}, {4, 2, 0, DType::kBf16}, "head_dim");
  expect_param({}, {4, 2, kMaxGroups * kGroupFeatures + 4, DType::kBf16}, "head_dim");
  expect_param({}, {0, 2, 16, DType::kBf16}, "num_banks");
  expect_param({}, {4, 0, 16, DType::kBf16}, "num_kv_heads");
  expect_param({.page_tokens = 30}, shape, "page_tokens");
  expect_param({.page_tokens = 0}, shape, "page_tokens");
  expect_param({.page_tokens = 1 << 20}, shape, "page_tokens");
  expect_param({.sink_tokens = -1}, shape, "sink");
  expect_param({.sink_tokens = 33}, shape, "sink");
  expect_param(with([](PageSpec& s) { s.key.bits[0] = {9}; }), shape, "width");
  expect_param(with([](PageSpec& s) { s.num_levels = 4; }), shape, "levels");
  expect_param(with([](PageSpec& s) { s.num_levels = 2; }), shape, "levels");  // the second holds nothing
  expect_param(with([](PageSpec& s) { s.key.bits[0] = {4, 4}; }), shape, "width");
  expect_param(with([](PageSpec& s) { s.join = 3; }), shape, "join");
  expect_param(with([](PageSpec& s) { s.join = 2; }), {4, 2, 1024, DType::kBf16}, "join");
  expect_param(with([](PageSpec& s) { s.key.bits = {{8}}; }), {4, 2, 32, DType::kBf16}, "keep");
  expect_param(with([](PageSpec& s) { s.key.scale.assign(16, 0.0f); }), shape, "scale");
  expect_param(with([](PageSpec& s) { s.key.mean.assign(15, 0.0f); }), shape, "mean");
  expect_param(with([](PageSpec& s) { s.key.mean.assign(16, NAN); }), shape, "mean");
  expect_param(with([](PageSpec& s) { s.key.encode.assign(256, 0.0f); }), shape, "basis");
  expect_param(with([](PageSpec& s) { s.key.norm_edge = 0; }), shape, "edge");
  const auto affine = [&](auto change) {
    return with([&](PageSpec& s) {
      s.key = {
          .quantizer = Quantizer::kAffine, .bits = {{4}, {4}}, .axis = ScaleAxis::kToken, .scale_span = 32};
      change(s);
    });
  };
  const CacheShape wider{4, 2, 32, DType::kBf16};
  EXPECT_TRUE(PageLayout::make(affine([](PageSpec&) {}), wider).ok());
  expect_param(affine([](PageSpec& s) { s.key.axis = ScaleAxis::kNone; }), wider, "axis");
  expect_param(affine([](PageSpec& s) { s.key.scale_span = 0; }), wider, "group");
  expect_param(affine([](PageSpec& s) { s.key.axis = ScaleAxis::kChannel, s.key.scale_span = 33; }), wider,
               "group");
  expect_param(affine([](PageSpec& s) { s.key.bits[1] = {2}; }), wider, "group");
  expect_param(affine([](PageSpec& s) { s.key.bits[0] = {2, 2}, s.num_levels = 2; }), wider, "levels");
  const auto huge = PageLayout::make({.page_tokens = 1024}, {65535, 65535, 1024, DType::kF32});
  EXPECT_FALSE(huge.ok());
}

TEST(PageHeader, ChecksumSeesEveryByteButItself) {
  PageHeader header;
  header.identity = {1, 2};
  const uint64_t base = header.compute_checksum();
  header.header_checksum = base;
  EXPECT_EQ(header.compute_checksum(), base);
  const size_t own = offsetof(PageHeader, header_checksum);
  for (size_t i = 0; i < sizeof(PageHeader); ++i) {
    PageHeader changed = header;
    reinterpret_cast<uint8_t*>(&changed)[i] ^= 1;
    if (i >= own && i < own + 8) {
      EXPECT_EQ(changed.compute_checksum(), base);
    } else {
      EXPECT_NE(changed.compute_checksum(), base) << "byte " << i;
    }
  }
}

}  // namespace
}  // namespace lowkey::kernels
