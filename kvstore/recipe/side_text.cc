#include "kvstore/recipe/side_text.h"

#include <spdlog/fmt/fmt.h>

namespace lowkey::kvstore {

using kernels::Quantizer;
using kernels::ScaleAxis;

namespace {

Error refused(std::string what) {
  return Error{Code::kBadInput, std::move(what), {}};
}

}  // namespace

Result<SideDials> make_side(const SideText& own, const SideText& both, bool per_head) {
  const auto pick = [&](auto SideText::*field) { return own.*field ? own.*field : both.*field; };
  const auto basis = pick(&SideText::basis);
  const auto quantizer = pick(&SideText::quantizer);
  const auto axis = pick(&SideText::axis);
  const auto group = pick(&SideText::group);
  const auto online = pick(&SideText::online_scale);
  SideDials side;
  side.basis = basis.value_or(BasisKind::kIdentity);
  side.keep = pick(&SideText::keep).value_or(1.0);
  side.per_head = per_head;
  const int width = pick(&SideText::width).value_or(quantizer ? 0 : kFullWidth);
  if (width == kFullWidth) {
    if (quantizer || axis || group || online)
      return refused("bits: nothing is quantized at width: full: leave out quantizer, axis, group and scale");
    return side;
  }
  if (quantizer && !pick(&SideText::width)) return refused("bits: width: expected one, found none");
  side.width = width;
  side.quantizer = quantizer.value_or(Quantizer::kEmbedded);
  if (side.quantizer == Quantizer::kEmbedded) {
    if (axis == ScaleAxis::kChannel)
      return refused("bits: axis: embedded codes have one norm per token; scales per channel are affine");
    if (group.value_or(kernels::kGroupFeatures) != kernels::kGroupFeatures)
      return refused(fmt::format("bits: group: embedded codes have groups of {} features, found {}",
                                 kernels::kGroupFeatures, *group));
    if (online.value_or(false))
      return refused(
          "bits: scale: online: embedded cells are static: the profile's scale times the row's norm");
    return side;
  }
  if (!axis || !group)
    return refused("bits: affine codes need an axis and a group: what shares one minimum and step");
  if (online.has_value() && !*online)
    return refused("bits: scale: profile: affine codes carry the minimum and step of every block");
  side.axis = *axis;
  side.scale_span = *group;
  return side;
}

}  // namespace lowkey::kvstore
