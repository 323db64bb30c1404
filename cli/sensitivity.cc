#include "cli/sensitivity.h"

#include <algorithm>

#include "cli/progress.h"

namespace lowkey::cli {

using kvstore::GroupBits;

Result<double> Sensitivity::with(std::vector<kernels::VectorSpec> vectors, int num_levels,
                                 int read_levels) const {
  kernels::PageSpec spec = frame_;
  spec.num_levels = num_levels;
  spec.vectors = std::move(vectors);
  LOWKEY_ASSIGN(layout, kernels::PageLayout::make(spec, shape_));
  return meter_.measure(layout, read_levels);
}

Result<kvstore::LossTable> Sensitivity::planes(
    std::span<const std::vector<std::array<double, kvstore::kWidths.size()>>> errors) const {
  const size_t count = profile_.vectors.size();
  const int groups = profile_.groups();
  Progress progress("losses of planes", static_cast<int64_t>(count) * groups);
  kvstore::LossTable table(count);
  for (size_t v = 0; v < count; ++v) {
    for (int g = 0; g < groups; ++g) {
      std::array<double, 2> measured{};
      for (int b = 0; b < 2; ++b) {
        std::vector<GroupBits> bits(groups, GroupBits{8});
        bits[g] = {static_cast<uint8_t>(kvstore::kWidths[b])};
        std::vector<kernels::VectorSpec> vectors(count);
        vectors[v] = embedded_spec(profile_, profile_.vectors[v], bits);
        LOWKEY_ASSIGN(loss, with(std::move(vectors)));
        measured[b] = loss;
      }
      table[v].push_back(kvstore::interpolate_loss(measured[0], measured[1], errors[v][g]));
      progress.advance(static_cast<int64_t>(v) * groups + g + 1);
    }
  }
  return table;
}

Result<std::vector<std::vector<double>>> Sensitivity::ranks(const kvstore::RankChoice& from) const {
  const size_t count = profile_.vectors.size();
  std::vector<kernels::VectorSpec> base;
  int64_t total = 0;
  for (size_t v = 0; v < count; ++v) {
    base.push_back(ranked_spec(profile_.vectors[v], from.groups[v]));
    total += from.groups[v];
  }
  Progress progress("losses of ranks", total);
  int64_t done = 0;
  LOWKEY_ASSIGN(whole, with(base));
  std::vector<std::vector<double>> table(count, std::vector<double>(profile_.groups() + 1, whole));
  for (size_t v = 0; v < count; ++v) {
    for (int n = 0; n < from.groups[v]; ++n) {
      std::vector<kernels::VectorSpec> vectors = base;
      vectors[v] = ranked_spec(profile_.vectors[v], n);
      LOWKEY_ASSIGN(loss, with(std::move(vectors)));
      table[v][n] = loss;
      progress.advance(++done);
    }
  }
  return table;
}

Result<double> Sensitivity::of_budget(const kvstore::Budget& budget, bool quantize, int levels) const {
  std::vector<kernels::VectorSpec> vectors;
  for (size_t v = 0; v < profile_.vectors.size(); ++v) {
    const auto& bits = budget.bits[v];
    const auto kept = std::ranges::count(bits, GroupBits{kernels::kFullBits});
    vectors.push_back(quantize ? embedded_spec(profile_, profile_.vectors[v], bits)
                               : ranked_spec(profile_.vectors[v], static_cast<int>(kept)));
  }
  return with(std::move(vectors), budget.levels, levels);
}

}  // namespace lowkey::cli
