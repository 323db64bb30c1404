#include "kvstore/calibrate/plane_allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace lowkey::kvstore {
namespace {

using kernels::PageLayout;
using kernels::PageSpec;

using Widths = std::vector<std::vector<size_t>>;  // [vector][group], indices into kWidths

struct Upgrade {
  size_t vector = 0, group = 0, to = 0;  // `to`: index into kWidths
  double gain_per_bit = 0;
};

// One level adds at most so many bits to a group that has some: 2 + 2, 2 + 2 + 4 and 4 + 4 have fast kernels,
// 2 + 6 has none. And 2 more never go past 4.
bool may_become(size_t from, size_t to) {
  return to >= from && (kWidths[from] == 0 || kWidths[to] <= 2 * kWidths[from]);
}

// What one level may be, above `floor`.
class Allocation {
 public:
  Allocation(const LossTable& losses, const PageSpec& frame, const kernels::CacheShape& shape, double ratio,
             const Widths& floor)
      : losses_(losses), frame_(frame), shape_(shape), ratio_(ratio), floor_(floor) {}

  // Every group takes the width that is best when a bit costs `price`.
  Widths at_price(double price) const {
    Widths widths = floor_;
    for (size_t v = 0; v < widths.size(); ++v)
      for (size_t g = 0; g < widths[v].size(); ++g) {
        const GroupLoss& loss = losses_[v][g];
        size_t& best = widths[v][g];
        for (size_t w = best + 1; w < kWidths.size(); ++w)
          if (may_become(floor_[v][g], w) &&
              loss[w] + price * kWidths[w] < loss[best] + price * kWidths[best])
            best = w;
      }
    return widths;
  }

  Result<bool> fits(const Widths& widths) const {
    Budget budget;
    for (const auto& vector : widths) {
      auto& bits = budget.bits.emplace_back();
      for (size_t width : vector) bits.push_back({static_cast<uint8_t>(kWidths[width])});
    }
    LOWKEY_ASSIGN(layout, PageLayout::make(spec_of_bits(budget, frame_), shape_));
    return static_cast<double>(layout.bytes_for_tokens(kBudgetTokens)) * ratio_ <=
           static_cast<double>(layout.bf16_bytes_for_tokens(kBudgetTokens));
  }

  // All single steps up, the best first.
  std::vector<Upgrade> upgrades(const Widths& widths) const {
    std::vector<Upgrade> steps;
    for (size_t v = 0; v < widths.size(); ++v)
      for (size_t g = 0; g < widths[v].size(); ++g)
        for (size_t to = widths[v][g] + 1; to < kWidths.size(); ++to) {
          const GroupLoss& loss = losses_[v][g];
          const double gain = loss[widths[v][g]] - loss[to];
          if (gain > 0 && may_become(floor_[v][g], to))
            steps.push_back({v, g, to, gain / (kWidths[to] - kWidths[widths[v][g]])});
        }
    std::ranges::stable_sort(steps, std::greater(), &Upgrade::gain_per_bit);
    return steps;
  }

 private:
  const LossTable& losses_;
  const PageSpec& frame_;
  const kernels::CacheShape& shape_;
  const double ratio_;
  const Widths& floor_;
};

// Prices from above any loss per bit down to nothing: 60 halvings of the exponent's range.
constexpr double kHighestPrice = 1e3, kLowestPrice = 1e-15;
constexpr int kPriceSteps = 60;

double most_loss(const LossTable& losses) {
  double most = 0;
  for (const auto& vector : losses)
    for (const GroupLoss& loss : vector) most = std::max(most, *std::ranges::max_element(loss));
  return most;
}

}  // namespace

kernels::PageSpec spec_of_bits(const Budget& budget, const PageSpec& frame) {
  PageSpec spec = frame;
  spec.num_levels = budget.levels;
  spec.vectors.clear();
  for (const auto& bits : budget.bits) {
    kernels::VectorSpec& vector = spec.vectors.emplace_back(frame.key);
    vector.bits = bits;
  }
  return spec;
}

namespace {

Result<Widths> allocate_level(const LossTable& losses, double ratio, const PageSpec& frame,
                              const kernels::CacheShape& shape, const Widths& floor) {
  const Allocation allocation(losses, frame, shape, ratio, floor);
  const double scale = std::max(most_loss(losses), std::numeric_limits<double>::min());
  double high = kHighestPrice * scale, low = kLowestPrice * scale;
  LOWKEY_ASSIGN(possible, allocation.fits(allocation.at_price(high)));
  if (!possible)
    return Error{Code::kUsage,
                 fmt::format("budget {}x: {} tokens are larger without a single bit", ratio, kBudgetTokens)};
  for (int step = 0; step < kPriceSteps; ++step) {
    const double price = std::sqrt(low * high);
    LOWKEY_ASSIGN(fits, allocation.fits(allocation.at_price(price)));
    (fits ? high : low) = price;
  }
  auto widths = allocation.at_price(high);
  for (bool changed = true; changed;) {
    changed = false;
    for (const Upgrade& step : allocation.upgrades(widths)) {
      auto next = widths;
      next[step.vector][step.group] = step.to;
      LOWKEY_ASSIGN(fits, allocation.fits(next));
      if (!fits) continue;
      widths = std::move(next);
      changed = true;
      break;
    }
  }
  return widths;
}

}  // namespace

std::string budget_name(std::span<const double> ratios) {
  std::string name;
  for (const double ratio : ratios) name += fmt::format("{}{:g}x", name.empty() ? "" : "-", ratio);
  return name;
}

Result<Budget> allocate_planes(const LossTable& losses, std::span<const double> ratios, const PageSpec& frame,
                               const kernels::CacheShape& shape) {
  LOWKEY_CHECK(!ratios.empty() && ratios.size() <= size_t{kernels::kMaxLevels}, "{} levels", ratios.size());
  if (std::ranges::adjacent_find(ratios, std::less_equal()) != ratios.end())
    return Error{Code::kUsage, fmt::format("budget {}: expected ratios that descend, the first level first",
                                           budget_name(ratios))};
  Budget budget{.name = budget_name(ratios), .levels = static_cast<int>(ratios.size())};
  Widths before;
  for (const auto& vector : losses) {
    before.emplace_back(vector.size(), 0);
    budget.bits.emplace_back(vector.size(), GroupBits{});
  }
  for (size_t level = 0; level < ratios.size(); ++level) {
    LOWKEY_ASSIGN(widths, allocate_level(losses, ratios[level], frame, shape, before));
    for (size_t v = 0; v < widths.size(); ++v)
      for (size_t g = 0; g < widths[v].size(); ++g)
        budget.bits[v][g][level] = static_cast<uint8_t>(kWidths[widths[v][g]] - kWidths[before[v][g]]);
    before = std::move(widths);
  }
  return budget;
}

RankChoice allocate_ranks(const std::vector<std::vector<double>>& losses, const RankChoice& from,
                          double keep) {
  RankChoice ranks = from;
  int64_t total = 0, left = std::accumulate(ranks.groups.begin(), ranks.groups.end(), int64_t{0});
  for (const auto& vector : losses) total += static_cast<int64_t>(vector.size()) - 1;
  while (static_cast<double>(left) > keep * static_cast<double>(total) + 1e-9) {
    size_t cheapest = losses.size();
    double least = std::numeric_limits<double>::infinity();
    for (size_t v = 0; v < losses.size(); ++v) {
      const int n = ranks.groups[v];
      if (n == 0) continue;
      const double cost = losses[v][n - 1] - losses[v][n];
      if (cost < least) {
        least = cost;
        cheapest = v;
      }
    }
    LOWKEY_CHECK(cheapest < losses.size(), "no group left to take away");
    --ranks.groups[cheapest];
    --left;
  }
  return ranks;
}

Budget budget_of_ranks(const std::string& name, const RankChoice& ranks, int groups) {
  Budget budget{.name = name};
  for (int kept : ranks.groups) {
    auto& bits = budget.bits.emplace_back(groups, GroupBits{});
    for (int g = 0; g < kept; ++g) bits[g][0] = kernels::kFullBits;
  }
  return budget;
}

}  // namespace lowkey::kvstore
