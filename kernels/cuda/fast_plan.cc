#include "kernels/cuda/fast_plan.h"

#include <algorithm>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels::cuda {
namespace {

uint32_t round_up(uint32_t bytes, uint32_t to) {
  return (bytes + to - 1) / to * to;
}

std::optional<CodeForm> form_of(const VectorLayout& vector, const Plane& plane) {
  if (vector.quantizer == Quantizer::kFull) return CodeForm::kFull;
  switch (plane.bits) {
    case 2:
      return CodeForm::kCrumbs;
    case 4:
      return CodeForm::kNibbles;
    case 8:
      return CodeForm::kBytes;
    default:
      return std::nullopt;
  }
}

// The bytes of each slab from the vector's first plane (norms before that in slab 0) to its last; `at` grows.
bool plan_side(const PageLayout& layout, const VectorLayout& vector, int levels, uint32_t& at,
               FastSide& side) {
  const bool coded = vector.quantizer == Quantizer::kEmbedded;
  if (!(coded || (vector.quantizer == Quantizer::kFull && layout.dtype == DType::kBf16))) return false;
  if (vector.num_heads != 1 || vector.dim > kMaxFastGroups * kGroupFeatures ||
      vector.dim % kGroupFeatures != 0 || vector.dim == 0 || vector.num_scalars > 1)
    return false;
  side.dim = vector.dim;
  side.num_groups = static_cast<uint8_t>(vector.dim / kGroupFeatures);
  side.has_norm = coded && vector.num_scalars == 1;
  const Plane* planes = layout.planes.data() + vector.first_plane;
  uint32_t begin[kMaxLevels], end[kMaxLevels] = {};
  std::fill(begin, begin + kMaxLevels, ~0u);
  for (int i = 0; i < vector.num_planes; ++i) {
    if (planes[i].level >= levels) continue;
    begin[planes[i].level] = std::min(begin[planes[i].level], planes[i].offset);
    end[planes[i].level] = std::max(end[planes[i].level], planes[i].offset + planes[i].bytes);
  }
  if (side.has_norm) {
    const uint32_t norms_end = vector.scalars_offset + 2 * layout.page_tokens;
    begin[0] = std::min(begin[0], vector.scalars_offset);
    end[0] = std::max(end[0], norms_end);
  }
  uint32_t target[kMaxLevels] = {};
  for (int level = 0; level < levels; ++level) {
    if (end[level] == 0) continue;
    begin[level] = begin[level] / 16 * 16;
    target[level] = at;
    side.chunks[level] = {begin[level], round_up(end[level] - begin[level], 16), at,
                          static_cast<uint32_t>(level)};
    at += round_up(side.chunks[level].bytes, 128);
  }
  if (side.has_norm) side.norms = target[0] + vector.scalars_offset - begin[0];
  for (int i = 0; i < vector.num_planes; ++i) {
    if (planes[i].level >= levels) continue;
    const int group = planes[i].feature / kGroupFeatures;
    const auto form = form_of(vector, planes[i]);
    if (!form || side.forms[group] != CodeForm::kNone) return false;
    side.forms[group] = *form;
    side.groups[group] = target[planes[i].level] + planes[i].offset - begin[planes[i].level];
  }
  return true;
}

std::optional<FastKind> kind_of(const FastPlan& plan) {
  FastKind kind = FastKind::kNone;
  for (const FastSide* side : {&plan.key, &plan.value}) {
    for (int g = 0; g < side->num_groups; ++g) {
      FastKind one = FastKind::kMixed;
      if (side->forms[g] == CodeForm::kNone) continue;
      if (side->forms[g] == CodeForm::kCrumbs) one = FastKind::kCrumbs;
      if (side->forms[g] == CodeForm::kNibbles) one = FastKind::kNibbles;
      if (side->forms[g] == CodeForm::kFull) one = FastKind::kFull;
      if (kind != FastKind::kNone && kind != one) {
        // K full beside coded V, or the other way round, has no kernel.
        if (kind == FastKind::kFull || one == FastKind::kFull) return std::nullopt;
        one = FastKind::kMixed;
      }
      kind = one;
    }
  }
  return kind;
}

}  // namespace

std::optional<FastPlan> make_fast_plan(const PageLayout& layout, const VectorLayout& key,
                                       const VectorLayout& value, int levels) {
  FastPlan plan;
  uint32_t bytes = 0;
  if (layout.page_tokens % 32 != 0 || !plan_side(layout, key, levels, bytes, plan.key) ||
      !plan_side(layout, value, levels, bytes, plan.value))
    return std::nullopt;
  plan.stage_bytes = bytes;
  for (const FastSide* side : {&plan.key, &plan.value})
    for (const StagedChunk& chunk : side->chunks) plan.copied_bytes += chunk.bytes;
  const auto kind = kind_of(plan);
  if (!kind) return std::nullopt;
  plan.kind = *kind;
  return plan;
}

}  // namespace lowkey::kernels::cuda
