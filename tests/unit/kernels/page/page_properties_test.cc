// Properties of every part of the page format: bounds of the errors, prefixes, bytes.
#include <algorithm>

#include "kernels/page/affine_quantizer.h"
#include "kernels/page/embedded_quantizer.h"
#include "tests/unit/kernels/page/page_test_support.h"

namespace lowkey::kernels {
namespace {

using test::HeadRows;
using test::NamedSpec;
using test::Rows;
using test::Slabs;

PageLayout make(const NamedSpec& named) {
  auto layout = PageLayout::make(named.spec, named.shape);
  EXPECT_TRUE(layout.ok()) << named.name << ": " << layout.error().message;
  return std::move(layout).value();
}

int bits_at(const PageLayout& layout, const VectorLayout& vector, int feature) {
  int bits = 0;
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = layout.planes[vector.first_plane + i];
    if (feature >= plane.feature && feature < plane.feature + plane.features) bits += plane.bits;
  }
  return bits;
}

// Every vector of a page of every kind of rows, encoded and decoded again.
template <class Check>  // (rows, kind, slabs, vector, decoded [page_tokens][dim])
void for_each_decoded(const PageLayout& layout, Check&& check) {
  for (Rows kind : test::kAllRows) {
    const HeadRows rows(layout, kind);
    Slabs slabs(layout);
    encode_page(layout, rows, slabs.view());
    for (const VectorLayout& v : layout.vectors) {
      std::vector<float> decoded(static_cast<size_t>(layout.page_tokens) * v.dim);
      decode_vector(layout, v, slabs.view(), 1, decoded.data());
      check(rows, kind, slabs, v, decoded);
    }
  }
}

class EveryDtype : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(DTypes, EveryDtype, testing::Values(DType::kF32, DType::kBf16, DType::kF16),
                         [](const auto& info) { return std::string(to_string(info.param)); });

// Half of the cell that u's code names, found by walking the cell's edges.
float embedded_bound(float u, int bits) {
  const EmbeddedTables& t = embedded_tables();
  const int code = embedded_code(u) >> (8 - bits);
  const auto edge = [&](int index) {  // of 2^bits cells
    const int steps = index << (8 - bits), hi = std::min(steps / 16, 15);
    return t.edge[hi] + t.step[hi] * static_cast<float>(steps - 16 * hi);
  };
  const float value = embedded_value(static_cast<uint8_t>(code), bits);
  return std::max(value - edge(code), edge(code + 1) - value) + 2e-6f;
}

TEST_P(EveryDtype, EmbeddedErrorIsWithinTheCell) {
  for (const NamedSpec& named : test::all_specs(GetParam())) {
    if (named.name.rfind("embedded", 0) != 0) continue;
    const PageLayout layout = make(named);
    for_each_decoded(layout, [&](const HeadRows& rows, Rows kind, Slabs& slabs, const VectorLayout& v,
                                 const std::vector<float>& decoded) {
      for (int t = 0; t < layout.page_tokens; ++t) {
        const float norm = slabs.norm(v, t);
        for (int f = 0; f < v.dim; ++f) {
          const float x = rows.value(layout, v, t, f), error = decoded[t * v.dim + f] - x;
          const float u = norm > 0 ? x / norm : 0;
          ASSERT_LE(std::fabs(u), kEmbeddedEdge) << "nothing is clipped";
          const float bound = norm > 0 ? norm * embedded_bound(u, bits_at(layout, v, f)) : 0;
          ASSERT_LE(std::fabs(error), bound + 1e-44f)
              << named.name << " rows " << static_cast<int>(kind) << " of " << x;
        }
      }
    });
  }
}

// Half a step, and what rounding minimum and step to f16 adds: 2^-11 of each, times the code for the step,
// and 2^-25 where f16 is denormal.
TEST_P(EveryDtype, AffineErrorIsWithinHalfAStep) {
  for (const NamedSpec& named : test::all_specs(GetParam())) {
    if (named.name.rfind("affine", 0) != 0 || named.spec.num_levels > 1) continue;
    const PageLayout layout = make(named);
    for_each_decoded(layout, [&](const HeadRows& rows, Rows kind, Slabs&, const VectorLayout& v,
                                 const std::vector<float>& decoded) {
      const bool channel = v.axis == ScaleAxis::kChannel;
      for (int t = 0; t < layout.page_tokens; ++t) {
        for (int f = 0; f < v.dim; ++f) {
          float low = INFINITY, high = -INFINITY;
          for (int i = 0; i < (channel ? layout.page_tokens : v.dim); ++i) {
            if (i / v.scale_span != (channel ? t : f) / v.scale_span) continue;
            const float x = rows.value(layout, v, channel ? i : t, channel ? f : i);
            low = std::min(low, x), high = std::max(high, x);
          }
          const float most = static_cast<float>((1 << bits_at(layout, v, f)) - 1),
                      x = rows.value(layout, v, t, f);
          const float bound =
              (high - low) / most / 2 + (std::fabs(low) + high - low) * 0x1.1p-11f + most * 0x1p-24f;
          ASSERT_LE(std::fabs(decoded[t * v.dim + f] - x), bound)
              << named.name << " rows " << static_cast<int>(kind) << " of " << x << " in " << low << " "
              << high;
        }
      }
    });
  }
}

TEST_P(EveryDtype, FullPlanesAreBitExact) {
  for (const NamedSpec& named : test::all_specs(GetParam())) {
    if (named.name != "full" && named.name != "full_ragged") continue;
    const PageLayout layout = make(named);
    for_each_decoded(layout, [&](const HeadRows& rows, Rows, Slabs&, const VectorLayout& v,
                                 const std::vector<float>& decoded) {
      for (size_t i = 0; i < decoded.size(); ++i) ASSERT_EQ(decoded[i], rows.values[v.head][i]);
    });
  }
}

// At full rank and width a basis costs what rounding costs; at lower rank, what is orthogonal to it.
TEST_P(EveryDtype, FullPlanesWithABasisAreTheProjection) {
  const DType dtype = GetParam();
  const double rounding = dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 5e-4 : 4e-3;
  for (int join : {1, 2}) {
    for (int rank : {64 * join, 48, 16}) {
      PageSpec spec{.recipe = "basis", .join = join};
      spec.key.bits.assign(rank / 16, {kFullBits, 0, 0});
      test::add_basis(spec.key, rank, 64 * join, 5);
      spec.value = spec.key;
      const PageLayout layout = PageLayout::make(spec, {2, 2, 64, dtype}).value();
      const HeadRows rows(layout, Rows::kNormal);
      Slabs slabs(layout);
      encode_page(layout, rows, slabs.view());
      for (const VectorLayout& v : layout.vectors) {
        std::vector<float> decoded(static_cast<size_t>(layout.page_tokens) * v.input_dim);
        decode_vector(layout, v, slabs.view(), 1, decoded.data());
        for (int t = 0; t < layout.page_tokens; ++t) {
          std::vector<double> expected(spec.key.mean.begin(), spec.key.mean.end());
          for (int j = 0; j < rank; ++j) {
            const float* basis = spec.key.encode.data() + static_cast<size_t>(j) * v.input_dim;
            double y = 0;
            for (int i = 0; i < v.input_dim; ++i)
              y += double{basis[i]} * (rows.value(layout, v, t, i) - double{spec.key.mean[i]});
            for (int i = 0; i < v.input_dim; ++i) expected[i] += y * basis[i];
          }
          double length = 0, from_projection = 0, from_row = 0;
          for (int i = 0; i < v.input_dim; ++i) {
            const double x = decoded[t * v.input_dim + i];
            length += expected[i] * expected[i];
            from_projection += (x - expected[i]) * (x - expected[i]);
            from_row += std::pow(x - rows.value(layout, v, t, i), 2);
          }
          ASSERT_LE(std::sqrt(from_projection), rounding * std::sqrt(length)) << "rank " << rank;
          if (rank == v.input_dim) {
            ASSERT_LE(std::sqrt(from_row), rounding * std::sqrt(length));
          }
        }
      }
    }
  }
}

// The same spec with its first levels only.
PageSpec truncated(const PageSpec& spec, int levels) {
  PageSpec cut = spec;
  cut.num_levels = levels;
  for (VectorSpec* vector : {&cut.key, &cut.value}) {
    for (auto& bits : vector->bits) std::fill(bits.begin() + levels, bits.end(), uint8_t{0});
  }
  return cut;
}

TEST_P(EveryDtype, ThePrefixOfAPageIsThePageOfItsPrefix) {
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    PageSpec spec{.recipe = "random", .num_levels = 3};
    for (VectorSpec* vector : {&spec.key, &spec.value}) {
      vector->quantizer = Quantizer::kEmbedded;
      for (int group = 0; group < 4; ++group) {
        auto& bits = vector->bits.emplace_back();
        for (uint8_t& b : bits) b = random() % 4;
        if (group == 0) bits = {2, 2, 4};  // no level is empty
      }
      test::add_basis(*vector, 64, 64, round);
      vector->norm = round % 3 != 0;
    }
    const CacheShape shape{1, 2, 64, GetParam()};
    const PageLayout whole = PageLayout::make(spec, shape).value();
    const HeadRows rows(whole, Rows::kNormal);
    Slabs slabs(whole);
    encode_page(whole, rows, slabs.view());
    for (int levels : {1, 2}) {
      const PageLayout cut = PageLayout::make(truncated(spec, levels), shape).value();
      Slabs cut_slabs(cut);
      encode_page(cut, rows, cut_slabs.view());
      for (int level = 0; level < levels; ++level)
        ASSERT_EQ(cut_slabs.memory[level], slabs.memory[level]) << "level " << level << " of " << levels;
      for (size_t i = 0; i < whole.vectors.size(); ++i) {
        std::vector<float> from_whole(32 * 64), from_cut(32 * 64);
        decode_vector(whole, whole.vectors[i], slabs.view(), levels, from_whole.data());
        decode_vector(cut, cut.vectors[i], cut_slabs.view(), levels, from_cut.data());
        ASSERT_EQ(from_whole, from_cut);
      }
    }
  }
}

struct Piece {
  uint64_t begin, end;
};

// What the layout says that the codec writes into each slab.
std::vector<std::vector<Piece>> written_pieces(const PageLayout& layout) {
  std::vector<std::vector<Piece>> pieces(kMaxSlabs);
  for (const VectorLayout& v : layout.vectors) {
    const uint64_t tokens = layout.page_tokens;
    pieces[0].push_back({v.scalars_offset, v.scalars_offset + 2 * v.num_scalars * tokens});
    if (v.quantizer == Quantizer::kAffine) {
      const bool channel = v.axis == ScaleAxis::kChannel;
      const uint64_t extent = channel ? tokens : v.dim, blocks = (extent + v.scale_span - 1) / v.scale_span;
      pieces[0].push_back({v.scales_offset, v.scales_offset + blocks * (channel ? v.dim : tokens) * 4});
    }
    for (int i = 0; i < v.num_planes; ++i) {
      const Plane& plane = layout.planes[v.first_plane + i];
      pieces[plane.level].push_back({plane.offset, plane.offset + plane.bytes});
    }
  }
  for (auto& slab : pieces) {
    std::erase_if(slab, [](Piece p) { return p.begin == p.end; });
    std::sort(slab.begin(), slab.end(), [](Piece a, Piece b) { return a.begin < b.begin; });
  }
  return pieces;
}

// Planes, scales and norms are disjoint, they and the alignment between them are the slab, and encoding
// writes all of them and nothing else: bytes that differ after encoding over two poisons were not written.
TEST_P(EveryDtype, EveryByteIsAccountedForAndWritten) {
  for (const NamedSpec& named : test::all_specs(GetParam())) {
    const PageLayout layout = make(named);
    const HeadRows rows(layout, Rows::kNormal);
    Slabs first(layout), second(layout, std::byte{0x5a});
    encode_page(layout, rows, first.view());
    encode_page(layout, rows, second.view());
    const auto pieces = written_pieces(layout);
    for (int slab = 0; slab < kMaxSlabs; ++slab) {
      uint64_t at = 0;
      const bool reserved = named.name == "nothing_of_values";  // has scalars that others write
      const auto expect_gap = [&](uint64_t begin, uint64_t end) {
        if (!reserved && slab < layout.num_levels) {
          ASSERT_LT(end - begin, 64u) << named.name << ": alignment is less than a cache line";
        }
        for (uint64_t i = begin; i < end; ++i)
          ASSERT_NE(first.memory[slab][i], second.memory[slab][i])
              << named.name << " slab " << slab << " byte " << i;
      };
      for (const Piece& piece : pieces[slab]) {
        ASSERT_GE(piece.begin, at) << named.name << ": overlap";
        expect_gap(at, piece.begin);
        for (at = piece.begin; at < piece.end; ++at)
          ASSERT_EQ(first.memory[slab][at], second.memory[slab][at])
              << named.name << " slab " << slab << " byte " << at;
      }
      expect_gap(at, layout.slab_bytes[slab]);
      EXPECT_EQ(layout.slab_bytes[slab] % 64, 0u);
    }
  }
}

// Reserved scalars have bytes of their own.
TEST(PageProperties, ReservedScalarsAreInLevelZero) {
  PageSpec with = PageSpec::embedded("scalars", 8, 0), without = with;
  with.key.log_mass = with.key.position = true;
  const CacheShape shape{3, 2, 64, DType::kBf16};
  const PageLayout layout = PageLayout::make(with, shape).value();
  EXPECT_EQ(layout.slab_bytes[0],
            PageLayout::make(without, shape).value().slab_bytes[0] + 3 * 2 * 2 * 32 * 4);
  const VectorLayout& key = layout.vector(1, Side::kKey, 1);
  EXPECT_EQ(key.log_masses_offset, key.scalars_offset + 64);
  EXPECT_EQ(key.positions_offset, key.log_masses_offset + 128);
  EXPECT_EQ(layout.planes[key.first_plane].offset, key.positions_offset + 128);
  EXPECT_EQ(layout.vector(1, Side::kValue, 1).log_masses_offset, kNoOffset);
}

// Nothing that comes out of a model makes the codec crash or write elsewhere.
TEST_P(EveryDtype, NonFiniteAndHugeInputsStayInside) {
  const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e5f};
  for (const NamedSpec& named : test::all_specs(GetParam())) {
    const PageLayout layout = make(named);
    for (float x : bad) {
      for (int every : {1, 5}) {
        std::vector<std::vector<std::byte>> heads;
        std::vector<const std::byte*> pointers;
        for (int head = 0; head < layout.num_kv_heads; ++head) {
          auto values = test::make_rows(Rows::kNormal, layout.page_tokens, layout.head_dim);
          for (size_t i = 0; i < values.size(); i += every) values[i] = x;
          pointers.push_back(heads.emplace_back(test::to_dtype(values, layout.dtype)).data());
        }
        Slabs slabs(layout);
        for (const VectorLayout& v : layout.vectors) {
          encode_vector(layout, v, std::span<const std::byte* const>(pointers).subspan(v.head, v.num_heads),
                        slabs.view());
          std::vector<float> decoded(static_cast<size_t>(layout.page_tokens) * v.input_dim);
          decode_vector(layout, v, slabs.view(), layout.num_levels, decoded.data());
          if (v.quantizer != Quantizer::kAffine) continue;
          for (float y : decoded) ASSERT_TRUE(std::isfinite(y)) << named.name << " of " << x;
        }
        const auto pieces = written_pieces(layout);
        for (int slab = 0; slab < layout.num_levels; ++slab) {
          uint64_t at = 0;
          for (const Piece& piece : pieces[slab]) {
            for (; at < piece.begin; ++at) ASSERT_EQ(slabs.memory[slab][at], std::byte{0xa5});
            at = piece.end;
          }
        }
      }
    }
  }
}

// MiniKV (arXiv:2411.18077) on LLaMA-2-7B: 32 layers of 32 heads of 128, 2 bits, keys per channel and values
// per token in groups of 16, pairs of fp16: 4 bits per element in all, 0.335 GB for 2560 tokens.
TEST(PageProperties, MiniKvsBytes) {
  PageSpec spec{.recipe = "minikv"};
  const test::Widths widths(8, {2, 0, 0});
  spec.key = test::affine(widths, ScaleAxis::kChannel, 16);
  spec.value = test::affine(widths, ScaleAxis::kToken, 16);
  const PageLayout layout = PageLayout::make(spec, {32, 32, 128, DType::kF16}).value();
  EXPECT_EQ(uint64_t{layout.slab_bytes[0]} * (2560 / layout.page_tokens), 335'544'320u);
  EXPECT_EQ(layout.bytes_for_tokens(2560) - layout.tail_bytes, 335'544'320u + 80 * kPageHeaderBytes);
}

// The forecast is what pages of these tokens take: their slabs, the sink of page 0, headers, the tail.
TEST(PageProperties, ForecastOfEverySpecIsTheSumOfItsSlabs) {
  for (const NamedSpec& named : test::all_specs(DType::kBf16)) {
    const PageLayout layout = make(named);
    for (int tokens : {1, 31, 32, 33, 320, 1000}) {
      for (int levels = 1; levels <= layout.num_levels; ++levels) {
        uint64_t bytes = layout.tail_bytes;
        for (int page = 0; page < tokens / layout.page_tokens; ++page) {
          bytes += kPageHeaderBytes;
          for (int level = 0; level < levels; ++level) bytes += layout.slab_bytes[level];
          if (page == 0) bytes += layout.slab_bytes[layout.sink_slab()];
        }
        EXPECT_EQ(layout.bytes_for_tokens(tokens, levels), bytes) << named.name << " " << tokens;
      }
    }
  }
}

TEST(AffineQuantizer, PairsAndCodes) {
  const AffinePair pair = affine_pair(-1.0f, 2.0f, 2);
  EXPECT_EQ(f16_to_f32(pair.minimum), -1.0f);
  EXPECT_EQ(f16_to_f32(pair.step), 1.0f);
  EXPECT_EQ(affine_code(-9, -1, 1, 2), 0u);
  EXPECT_EQ(affine_code(0.4f, -1, 1, 2), 1u);
  EXPECT_EQ(affine_code(0.5f, -1, 1, 2), 2u);   // 1.5: a tie goes to the even code
  EXPECT_EQ(affine_code(-0.5f, -1, 1, 2), 0u);  // 0.5
  EXPECT_EQ(affine_code(9, -1, 1, 2), 3u);
  EXPECT_EQ(affine_code(NAN, -1, 1, 2), 0u);
  EXPECT_EQ(affine_code(INFINITY, -1, 1, 2), 3u);
  EXPECT_EQ(affine_code(3, 3, 0, 8), 0u);
  EXPECT_EQ(f16_to_f32(affine_pair(-1e9f, 1e9f, 1).minimum), -65504.0f);
  EXPECT_EQ(f16_to_f32(affine_pair(-1e9f, 1e9f, 1).step), 65504.0f);
  EXPECT_EQ(affine_pair(INFINITY, -INFINITY, 4).step, 0);
}

}  // namespace
}  // namespace lowkey::kernels
