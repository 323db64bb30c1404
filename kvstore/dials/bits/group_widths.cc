#include "kvstore/dials/bits/group_widths.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>

namespace lowkey::kvstore {

namespace {

using kernels::kFullBits;
using kernels::Quantizer;

int total(const GroupBits& group) {
  return group[0] + group[1] + group[2];
}

// Cut points in units of `whole` bits or groups; each must be a whole number of them.
Result<std::vector<int>> whole_cuts(std::span<const double> levels, int whole, const char* unit) {
  std::vector<int> cuts;
  for (const double level : levels) {
    const double cut = level * whole;
    if (std::abs(cut - std::round(cut)) > 1e-6)
      return Error{Code::kUsage,
                   fmt::format("stream: levels: cuts fall between {}s: {} of {} {}s is {:.2f}", unit, level,
                               whole, unit, cut),
                   "recipe"};
    cuts.push_back(static_cast<int>(std::lround(cut)));
  }
  return cuts;
}

// Embedded codes: every group has its high bits in the first level.
Result<std::vector<GroupBits>> cut_between_bits(const std::vector<int>& widths, int width,
                                                std::span<const double> levels) {
  LOWKEY_ASSIGN(cuts, whole_cuts(levels, width, "bit"));
  std::vector<GroupBits> groups(widths.size(), GroupBits{});
  for (size_t g = 0; g < widths.size(); ++g)
    for (size_t level = 0; level < cuts.size() && widths[g] > 0; ++level)
      groups[g][level] = static_cast<uint8_t>(cuts[level] - (level == 0 ? 0 : cuts[level - 1]));
  return groups;
}

// Affine and full codes: the first groups are in the first level.
Result<std::vector<GroupBits>> cut_between_groups(const std::vector<int>& widths,
                                                  std::span<const double> levels) {
  LOWKEY_ASSIGN(cuts, whole_cuts(levels, static_cast<int>(widths.size()), "group"));
  std::vector<GroupBits> groups(widths.size(), GroupBits{});
  for (int g = 0, level = 0; g < std::ssize(widths); ++g) {
    while (g >= cuts[level]) ++level;
    groups[g][level] = static_cast<uint8_t>(widths[g]);
  }
  return groups;
}

}  // namespace

Result<std::vector<GroupBits>> make_group_widths(const FeatureDial& features, const BitDial& dial,
                                                 int num_groups, std::span<const double> levels,
                                                 const std::vector<GroupBits>* budget) {
  std::vector<GroupBits> groups;
  if (dial.width == kWidthAuto) {
    LOWKEY_CHECK(budget != nullptr, "width: auto without a budget");
    groups = *budget;
    if (levels.size() == 1)
      for (GroupBits& group : groups) group = {static_cast<uint8_t>(total(group))};
  } else {
    const int width = dial.quantizer == Quantizer::kFull ? kFullBits : dial.width;
    const int kept = static_cast<int>(std::ceil(features.keep * num_groups - 1e-9));
    std::vector<int> widths(num_groups, 0);
    for (int g = 0; g < num_groups; ++g) {
      const bool keep = features.per_head ? total((*budget)[g]) > 0 : g < kept;
      widths[g] = keep ? width : 0;
    }
    auto cut = dial.quantizer == Quantizer::kEmbedded ? cut_between_bits(widths, width, levels)
                                                      : cut_between_groups(widths, levels);
    if (!cut.ok()) return cut.error();
    groups = *std::move(cut);
  }
  while (groups.size() > 1 && total(groups.back()) == 0) groups.pop_back();
  return groups;
}

}  // namespace lowkey::kvstore
