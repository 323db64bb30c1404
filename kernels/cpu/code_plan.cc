#include "kernels/cpu/code_plan.h"

#include <optional>
#include <span>

#include "base/check.h"
#include "kernels/page/embedded_quantizer.h"

namespace lowkey::kernels {
namespace {

// One 4-bit plane's word has 8 elements: low halves of its bytes, then high halves.
constexpr ElementOrder kNibbleOrder = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
// One 2-bit plane's word has 16.
constexpr ElementOrder kCrumbOrder = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
// A word of bytes has 4: the even bytes, then the odd ones.
constexpr ElementOrder kByteOrder = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
// Two nibble words taken together: 16-bit halves with 4 elements each.
constexpr ElementOrder kNibblePairOrder = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};

std::optional<CodeForm> form_of(std::span<const Plane> planes) {
  int key = 0;
  for (const Plane& plane : planes) key = key * 10 + plane.bits;
  switch (key) {
    case 4:
      return CodeForm::kNibbles;
    case 2:
      return CodeForm::kCrumbs;
    case 22:
      return CodeForm::kCrumbPair;
    case 8:
      return CodeForm::kBytes;
    case 44:
      return CodeForm::kNibblePair;
    case 224:
      return CodeForm::kCrumbsNibble;
    case 422:
      return CodeForm::kNibbleCrumbs;
    default:
      return std::nullopt;
  }
}

// Planes of one group that the first `levels` levels hold.
std::optional<CodeGroup> make_group(std::span<const Plane> planes) {
  const auto form = form_of(planes);
  if (!form || planes.size() > kMaxLevels) return std::nullopt;
  CodeGroup group;
  group.form = *form;
  group.feature = planes[0].feature;
  group.features = planes[0].features;
  for (const Plane& plane : planes)
    group.planes[group.num_planes++] = {plane.offset, plane.bytes, plane.level};
  return group;
}

bool continues(const CodeGroup& group, const CodeGroup& next) {
  if (next.form != group.form || next.feature != group.feature + group.features) return false;
  const uint32_t count = group.features / kGroupFeatures;
  for (int i = 0; i < group.num_planes; ++i) {
    const CodeGroup::Source &first = group.planes[i], &here = next.planes[i];
    if (here.slab != first.slab || here.offset != first.offset + count * first.bytes) return false;
  }
  return true;
}

bool make_side(const PageLayout& layout, const VectorLayout& vector, int levels, CodeSide& side) {
  if (vector.quantizer != Quantizer::kEmbedded || vector.num_scalars > 1) return false;
  side.groups.clear();
  side.dim = vector.dim;
  side.narrow = side.wide = false;
  side.has_norm = vector.num_scalars == 1;
  side.norms_offset = vector.scalars_offset;
  side.query_words = 0;
  const std::span planes(layout.planes.data() + vector.first_plane, vector.num_planes);
  for (size_t begin = 0, end; begin < planes.size(); begin = end) {
    size_t present = begin;
    for (end = begin; end < planes.size() && planes[end].feature == planes[begin].feature; ++end)
      present += planes[end].level < levels;
    if (present == begin) continue;
    auto group = make_group(planes.subspan(begin, present - begin));
    if (!group) return false;
    group->query_word = static_cast<uint16_t>(side.query_words);
    const bool wide = is_wide(group->form);
    side.query_words += wide ? 8 : 4;
    (wide ? side.wide : side.narrow) = true;
    if (!side.groups.empty() && continues(side.groups.back(), *group)) {
      side.groups.back().features = static_cast<uint16_t>(side.groups.back().features + group->features);
    } else {
      side.groups.push_back(*group);
    }
  }
  return true;
}

}  // namespace

const ElementOrder& element_order(CodeForm form) {
  switch (form) {
    case CodeForm::kNibbles:
      return kNibbleOrder;
    case CodeForm::kCrumbs:
    case CodeForm::kCrumbPair:
      return kCrumbOrder;
    case CodeForm::kBytes:
      return kByteOrder;
    case CodeForm::kNibblePair:
    case CodeForm::kCrumbsNibble:
    case CodeForm::kNibbleCrumbs:
      return kNibblePairOrder;
  }
  LOWKEY_CHECK(false, "no form {}", static_cast<int>(form));
}

bool CodePlan::make(const PageLayout& layout, const VectorLayout& key_layout,
                    const VectorLayout& value_layout, int levels) {
  page_tokens = layout.page_tokens;
  if (page_tokens % 16 != 0) return false;  // weights are rounded, and codes expanded, by sixteen tokens
  return make_side(layout, key_layout, levels, key) && make_side(layout, value_layout, levels, value);
}

}  // namespace lowkey::kernels
