#include "worker/offline/window_score.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace lowkey::worker {
namespace {

int largest(std::span<const float> values) {
  return static_cast<int>(std::ranges::max_element(values) - values.begin());
}

}  // namespace

void log_softmax(std::span<const float> logits, std::span<float> log_probs) {
  const float largest_logit = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest_logit);
  const double log_sum = largest_logit + std::log(sum);
  for (size_t i = 0; i < logits.size(); ++i) log_probs[i] = static_cast<float>(logits[i] - log_sum);
}

void ExactAnswers::add(std::span<const float> logits) {
  LOWKEY_CHECK(static_cast<int>(logits.size()) == vocab_size_, "{} logits of {}", logits.size(), vocab_size_);
  log_probs_.resize(log_probs_.size() + vocab_size_);
  log_softmax(logits, std::span(log_probs_).last(vocab_size_));
  best_.push_back(largest(logits));
}

void QualityScore::add(std::span<const float> logits, const ExactAnswers& exact, int index,
                       int32_t next_token) {
  LOWKEY_CHECK(index < exact.positions(), "position {} of {}", index, exact.positions());
  const std::span<const float> p = exact.log_probs(index);
  log_probs_.resize(logits.size());
  log_softmax(logits, log_probs_);
  double divergence = 0;
  for (size_t i = 0; i < p.size(); ++i) divergence += std::exp(p[i]) * (p[i] - log_probs_[i]);
  kl_ += divergence;
  agreed_ += largest(logits) == exact.best(index);
  loss_ -= log_probs_[next_token];
  exact_loss_ -= p[next_token];
  ++positions_;
}

double QualityScore::perplexity() const {
  return std::exp(loss_ / positions_);
}

double QualityScore::exact_perplexity() const {
  return std::exp(exact_loss_ / positions_);
}

}  // namespace lowkey::worker
