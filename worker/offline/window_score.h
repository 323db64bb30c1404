// How far the answers of a cache are from those of the exact cache, over the scored positions of many
// windows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lowkey::worker {

// log softmax of a row of logits, f32.
void log_softmax(std::span<const float> logits, std::span<float> log_probs);

// What the exact cache says of the scored positions of one window: each recipe is then one forward pass.
class ExactAnswers {
 public:
  explicit ExactAnswers(int vocab_size) : vocab_size_(vocab_size) {}

  void clear() { log_probs_.clear(), best_.clear(); }
  void add(std::span<const float> logits);  // of the next position
  int positions() const { return static_cast<int>(best_.size()); }
  std::span<const float> log_probs(int index) const {
    return std::span(log_probs_).subspan(static_cast<size_t>(index) * vocab_size_, vocab_size_);
  }
  int best(int index) const { return best_[index]; }

 private:
  const int vocab_size_;
  std::vector<float> log_probs_;  // [positions][vocab_size]
  std::vector<int> best_;
};

// Sums over positions; f64, in the order of the calls.
class QualityScore {
 public:
  // One more position: the logits of a recipe's cache, what the exact cache said there, and the token that
  // the text goes on with.
  void add(std::span<const float> logits, const ExactAnswers& exact, int index, int32_t next_token);

  int64_t positions() const { return positions_; }
  double kl() const { return kl_ / positions_; }                // nats, KL(exact || recipe), mean
  double top1() const { return double(agreed_) / positions_; }  // share of equal most likely tokens
  double perplexity() const;
  double exact_perplexity() const;

 private:
  int64_t positions_ = 0, agreed_ = 0;
  double kl_ = 0, loss_ = 0, exact_loss_ = 0;
  std::vector<float> log_probs_;
};

}  // namespace lowkey::worker
