#include "kvstore/calibrate/plane_allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace lowkey::kvstore {
namespace {

using kernels::PageLayout;
using kernels::PageSpec;

struct Upgrade {
  size_t vector = 0, group = 0, to = 0;  // `to`: index into kWidths
  double gain_per_bit = 0;
};

class Allocation {
 public:
  Allocation(const LossTable& losses, const PageSpec& frame, const kernels::CacheShape& shape, double ratio)
      : losses_(losses), frame_(frame), shape_(shape), ratio_(ratio) {}

  // Every group takes the width that is best when a bit costs `price`.
  std::vector<std::vector<size_t>> at_price(double price) const {
    std::vector<std::vector<size_t>> widths;
    for (const auto& vector : losses_) {
      auto& out = widths.emplace_back();
      for (const GroupLoss& loss : vector) {
        size_t best = 0;
        for (size_t w = 1; w < kWidths.size(); ++w)
          if (loss[w] + price * kWidths[w] < loss[best] + price * kWidths[best]) best = w;
        out.push_back(best);
      }
    }
    return widths;
  }

  Budget budget(const std::vector<std::vector<size_t>>& widths) const {
    Budget budget;
    for (const auto& vector : widths) {
      auto& bits = budget.bits.emplace_back();
      for (size_t width : vector) bits.push_back({static_cast<uint8_t>(kWidths[width])});
    }
    return budget;
  }

  Result<bool> fits(const std::vector<std::vector<size_t>>& widths) const {
    LOWKEY_ASSIGN(layout, PageLayout::make(spec_of_bits(budget(widths), frame_), shape_));
    return static_cast<double>(layout.bytes_for_tokens(kBudgetTokens)) * ratio_ <=
           static_cast<double>(layout.bf16_bytes_for_tokens(kBudgetTokens));
  }

  // All single steps up, the best first.
  std::vector<Upgrade> upgrades(const std::vector<std::vector<size_t>>& widths) const {
    std::vector<Upgrade> steps;
    for (size_t v = 0; v < widths.size(); ++v)
      for (size_t g = 0; g < widths[v].size(); ++g)
        for (size_t to = widths[v][g] + 1; to < kWidths.size(); ++to) {
          const GroupLoss& loss = losses_[v][g];
          const double gain = loss[widths[v][g]] - loss[to];
          if (gain > 0) steps.push_back({v, g, to, gain / (kWidths[to] - kWidths[widths[v][g]])});
        }
    std::ranges::stable_sort(steps, std::greater(), &Upgrade::gain_per_bit);
    return steps;
  }

 private:
  const LossTable& losses_;
  const PageSpec& frame_;
  const kernels::CacheShape& shape_;
  const double ratio_;
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
  spec.vectors.clear();
  for (const auto& bits : budget.bits) {
    kernels::VectorSpec& vector = spec.vectors.emplace_back(frame.key);
    vector.bits = bits;
  }
  return spec;
}

Result<Budget> allocate_planes(const LossTable& losses, double ratio, const PageSpec& frame,
                               const kernels::CacheShape& shape) {
  const Allocation allocation(losses, frame, shape, ratio);
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
  Budget budget = allocation.budget(widths);
  budget.name = fmt::format("{:g}x", ratio);
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
