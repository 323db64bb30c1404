// Which layouts the fast kernels read; the others go through the plain one.
#include "kernels/cuda/fast_plan.h"

#include "tests/unit/kernels/cpu/attention_support.h"

namespace lowkey::kernels::cuda {
namespace {

using test::GroupBits;

FastKind kind_of(const PageSpec& spec, DType dtype = DType::kBf16, int levels = 1, int dim = 128) {
  const auto layout = PageLayout::make(spec, {1, 2, dim, dtype}).value();
  const auto plan =
      make_fast_plan(layout, layout.vector(0, Side::kKey, 0), layout.vector(0, Side::kValue, 0), levels);
  return plan ? plan->kind : FastKind::kNone;
}

TEST(FastPlan, ReadsSinglePlanesOfTheCommonWidths) {
  EXPECT_EQ(kind_of(PageSpec::embedded("q2", 2, 0)), FastKind::kCrumbs);
  EXPECT_EQ(kind_of(PageSpec::embedded("q4", 4, 4)), FastKind::kNibbles);
  EXPECT_EQ(kind_of(PageSpec::embedded("q8", 8, 4)), FastKind::kMixed);
  EXPECT_EQ(kind_of(PageSpec{}), FastKind::kFull);
  EXPECT_EQ(kind_of(PageSpec{}, DType::kF32), FastKind::kNone);
  EXPECT_EQ(kind_of(PageSpec::embedded("q3", 3, 0)), FastKind::kNone);
  EXPECT_EQ(kind_of(PageSpec::embedded("q4", 4, 0), DType::kBf16, 1, 256), FastKind::kNone);
  PageSpec odd = PageSpec::embedded("q4", 4, 0);
  odd.page_tokens = 48;
  EXPECT_EQ(kind_of(odd), FastKind::kNone);
}

TEST(FastPlan, LevelsBetweenGroupsAreReadLevelsInsideThemAreNot) {
  PageSpec spec{.num_levels = 2};
  spec.key = test::based(128, {{4}, {4}, {0, 2}}, 1);
  spec.value = test::based(128, {{4}, {0, 4}}, 2);
  EXPECT_EQ(kind_of(spec, DType::kBf16, 1), FastKind::kNibbles);
  EXPECT_EQ(kind_of(spec, DType::kBf16, 2), FastKind::kMixed);
  spec.value = test::based(128, {{4}, {2, 2}}, 2);
  EXPECT_EQ(kind_of(spec, DType::kBf16, 1), FastKind::kMixed);
  EXPECT_EQ(kind_of(spec, DType::kBf16, 2), FastKind::kNone);
}

// What is staged lies in the slabs that hold it, one piece per vector and level, and every group in a piece.
TEST(FastPlan, StagesEveryGroupOnce) {
  PageSpec spec{.page_tokens = 64, .num_levels = 2};
  spec.key = test::based(128, {{8}, {4}, {0, 4}, {0, 2}}, 1);
  spec.value = test::based(128, {{4}, {0, 2}}, 2);
  const auto layout = PageLayout::make(spec, {3, 2, 128, DType::kBf16}).value();
  const VectorLayout &key = layout.vector(2, Side::kKey, 1), &value = layout.vector(2, Side::kValue, 1);
  const auto plan = make_fast_plan(layout, key, value, 2).value();
  uint32_t staged = 0;
  for (const FastSide* side : {&plan.key, &plan.value}) {
    for (const StagedChunk& chunk : side->chunks) {
      if (chunk.bytes == 0) continue;
      EXPECT_EQ(chunk.bytes % 16, 0u);
      EXPECT_EQ(chunk.offset % 16, 0u);
      EXPECT_EQ(chunk.target % 128, 0u);
      EXPECT_GE(chunk.target, staged);
      staged = chunk.target + chunk.bytes;
      EXPECT_LE(chunk.offset + chunk.bytes, layout.slab_bytes[chunk.slab]);
    }
    const VectorLayout& vector = side == &plan.key ? key : value;
    for (int i = 0; i < vector.num_planes; ++i) {
      const Plane& plane = layout.planes[vector.first_plane + i];
      const StagedChunk& chunk = side->chunks[plane.level];
      EXPECT_EQ(side->groups[plane.feature / kGroupFeatures], chunk.target + plane.offset - chunk.offset);
    }
  }
  EXPECT_LE(staged, plan.stage_bytes);
}

}  // namespace
}  // namespace lowkey::kernels::cuda
