#include "kernels/cpu/row_draw.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/exp_sums.h"
#include "kernels/cpu/scratch.h"

namespace lowkey::kernels {
namespace {

constexpr size_t kBlock = 512;           // logits whose weights are summed together
constexpr size_t kFirstSorted = 64;      // of a nucleus; each further piece has four times as many
constexpr size_t kManyCandidates = 512;  // of a nucleus: more are counted before they are sorted
constexpr size_t kBins = 1024;           // of logits, for that
constexpr size_t kSpareBest = 256;       // candidates beyond top_k before the worse ones go

}  // namespace

struct RowDraw::Distribution {
  std::span<const float> logits;
  simd::ExpWeights weights;

  // As the plain version has it, to the bit.
  double weight(float logit) const {
    const double weight = std::exp((logit - weights.maximum) / weights.temperature);
    return weight < weights.least ? 0 : weight;
  }
};

DrawnToken RowDraw::draw(const Tensor& logits, int parts, int vocab, const TokenDraw& draw) {
  const int rows = logits.rows / parts;
  const auto row = [&](int part) {
    return logits.as<float>() + (static_cast<size_t>(part) * rows + draw.row) * logits.cols;
  };
  if (vocab <= logits.cols) return this->draw({row(0), static_cast<size_t>(vocab)}, draw);
  whole_.clear();
  for (int first = 0, part = 0; first < vocab; first += logits.cols, ++part)
    whole_.insert(whole_.end(), row(part), row(part) + std::min(logits.cols, vocab - first));
  return this->draw(whole_, draw);
}

DrawnToken RowDraw::draw(std::span<const float> logits, const TokenDraw& draw) {
  DrawnToken drawn;
  const auto [maximum, has_nan] = simd::row_maximum(logits.data(), logits.size());
  if (logits.empty() || has_nan || !std::isfinite(maximum)) return drawn;
  const Distribution distribution{logits, {maximum, draw.temperature, draw.min_p}};
  const float below = std::nextafter(maximum, -std::numeric_limits<float>::infinity());
  if (draw.temperature == 0) {
    drawn.token = static_cast<int32_t>(simd::find_above(logits.data(), 0, logits.size(), below));
  } else if (draw.top_k > 0 && static_cast<size_t>(draw.top_k) < logits.size()) {
    drawn.token = from_best(distribution, draw);
  } else if (draw.top_p < 1) {
    drawn.token = from_nucleus(distribution, draw);
  } else {
    drawn.token = from_all(distribution, draw.uniform);
  }
  if (draw.logprob == 0) return drawn;
  const double sum = simd::sum_of_weights({.maximum = maximum}, logits.data(), logits.size());
  drawn.logprob = static_cast<float>(logits[drawn.token] - (maximum + std::log(sum)));
  return drawn;
}

// The block at which the running sum passes `uniform` of the whole, and the token in it.
int32_t RowDraw::from_all(const Distribution& distribution, double uniform) {
  const std::span logits = distribution.logits;
  const size_t blocks = (logits.size() + kBlock - 1) / kBlock;
  const auto block_at = [&](size_t i) {
    return logits.subspan(i * kBlock, std::min(kBlock, logits.size() - i * kBlock));
  };
  grow(sums_, blocks);
  double mass = 0;
  size_t last_block = 0;  // that holds any of it
  for (size_t i = 0; i < blocks; ++i) {
    mass += sums_[i] = simd::sum_of_weights(distribution.weights, block_at(i).data(), block_at(i).size());
    if (sums_[i] > 0) last_block = i;
  }
  const double target = uniform * mass;
  double sum = 0;
  int32_t last = 0;
  for (size_t i = 0; i <= last_block; ++i) {
    if (sums_[i] == 0) continue;
    if (sum + sums_[i] <= target && i < last_block) {
      sum += sums_[i];
      continue;
    }
    std::array<double, kBlock> weights;
    const std::span block = block_at(i);
    simd::weights_of_row(distribution.weights, block.data(), block.size(), weights.data());
    for (size_t j = 0; j < block.size(); ++j) {
      if (weights[j] == 0) continue;
      sum += weights[j];
      last = static_cast<int32_t>(i * kBlock + j);
      if (sum > target) return last;
    }
  }
  return last;
}

int32_t RowDraw::from_best(const Distribution& distribution, const TokenDraw& draw) {
  keep_best(distribution.logits, static_cast<size_t>(draw.top_k));
  size_t count = candidates_.size();
  std::sort(candidates_.begin(), candidates_.end());
  weights_.clear();
  double mass = 0;
  for (const Candidate& candidate : candidates_)
    mass += weights_.emplace_back(distribution.weight(candidate.logit));
  if (draw.top_p < 1) {
    const double wanted = draw.top_p * mass;
    double sum = 0;
    for (size_t i = 0; i < count; ++i) {
      sum += weights_[i];
      if (sum >= wanted) count = i + 1;
    }
  }
  return pick(count, draw.uniform);
}

// Those above the worst of the best so far come in; from time to time the worse half goes.
void RowDraw::keep_best(std::span<const float> logits, size_t count) {
  candidates_.clear();
  const size_t limit = count + std::max(count, kSpareBest);
  float bar = -std::numeric_limits<float>::infinity();
  bool full = false;  // then one that equals the bar comes after those that are there
  for (size_t id = 0; id < logits.size(); ++id) {
    if (full) id = simd::find_above(logits.data(), id, logits.size(), bar);
    if (id == logits.size()) break;
    candidates_.push_back({logits[id], static_cast<int32_t>(id)});
    if (candidates_.size() < limit) continue;
    const auto worst = candidates_.begin() + static_cast<ptrdiff_t>(count) - 1;
    std::nth_element(candidates_.begin(), worst, candidates_.end());
    bar = worst->logit;
    candidates_.resize(count);
    full = true;
  }
  if (candidates_.size() <= count) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(count),
                   candidates_.end());
  candidates_.resize(count);
}

// Tokens below (1 - p) / n of the mass hold less than 1 - p together, so the nucleus lies among the others.
int32_t RowDraw::from_nucleus(const Distribution& distribution, const TokenDraw& draw) {
  const std::span logits = distribution.logits;
  const double total = simd::sum_of_weights(distribution.weights, logits.data(), logits.size());
  const double least = (1 - draw.top_p) * total / static_cast<double>(logits.size());
  // A little more than those: what is too much changes nothing.
  const double exact = distribution.weights.maximum + draw.temperature * std::log(least);
  const auto bar = static_cast<float>(exact - 1e-6 * (1 + std::fabs(exact)));
  candidates_.clear();
  for (size_t id = 0; (id = simd::find_above(logits.data(), id, logits.size(), bar)) < logits.size(); ++id)
    candidates_.push_back({logits[id], static_cast<int32_t>(id)});
  const double wanted = draw.top_p * total;
  if (candidates_.size() > kManyCandidates && std::isfinite(bar)) narrow(distribution, bar, wanted);
  return pick(sort_leading(distribution, wanted), draw.uniform);
}

// Keeps the candidates of the best bins that hold `wanted` mass for certain, each at the least that its bin
// allows. Where weights below min_p count as 0, those above are all in the bins up to the first of these.
void RowDraw::narrow(const Distribution& distribution, float bar, double wanted) {
  const double maximum = distribution.weights.maximum, width = (maximum - bar) / kBins;
  const auto bin_of = [&](float logit) {
    return std::min(kBins - 1, static_cast<size_t>((maximum - logit) / width));
  };
  std::array<uint32_t, kBins> counts{};
  for (const Candidate& candidate : candidates_) ++counts[bin_of(candidate.logit)];
  size_t last = 0;
  for (double mass = 0; last + 1 < kBins; ++last) {
    mass +=
        counts[last] * std::exp(-static_cast<double>(last + 1) * width / distribution.weights.temperature);
    if (mass > wanted * (1 + 1e-9)) break;
  }
  std::erase_if(candidates_, [&](const Candidate& candidate) { return bin_of(candidate.logit) > last; });
}

// Sorts candidates, best first, until they hold `wanted` mass; returns how many do, all where rounding leaves
// even those short.
size_t RowDraw::sort_leading(const Distribution& distribution, double wanted) {
  weights_.clear();
  double sum = 0;
  size_t piece = kFirstSorted;
  for (size_t first = 0; first < candidates_.size(); piece *= 4) {
    const size_t end = std::min(candidates_.size(), first + piece);
    const auto at = [&](size_t i) { return candidates_.begin() + static_cast<ptrdiff_t>(i); };
    if (end < candidates_.size()) std::nth_element(at(first), at(end), candidates_.end());
    std::sort(at(first), at(end));
    for (; first < end; ++first) {
      sum += weights_.emplace_back(distribution.weight(candidates_[first].logit));
      if (sum >= wanted) return first + 1;
    }
  }
  return candidates_.size();
}

// The first candidate at which the running sum passes `uniform` of the whole.
int32_t RowDraw::pick(size_t count, double uniform) const {
  double mass = 0;
  for (size_t i = 0; i < count; ++i) mass += weights_[i];
  const double target = uniform * mass;
  double sum = 0;
  int32_t last = candidates_.front().id;
  for (size_t i = 0; i < count; ++i) {
    if (weights_[i] == 0) continue;
    sum += weights_[i];
    last = candidates_[i].id;
    if (sum > target) break;
  }
  return last;
}

}  // namespace lowkey::kernels
