#include "coordinator/routing/policy.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace lowkey::coordinator {
namespace {

// Predictions that differ by less say nothing: measured rates of equal replicas do.
constexpr double kNearlyRatio = 1.1;
constexpr double kNearlySeconds = 0.001;

// Whose turn it is first: the next one after `last`.
auto turn(const Candidate& candidate, int last) {
  return std::tuple(candidate.replica <= last, candidate.replica);
}
auto load(const Candidate& candidate) {
  return std::tuple(candidate.in_flight, candidate.load);
}

template <class Less>
Choice best(std::span<const Candidate> candidates, Less less) {
  const auto found = std::min_element(candidates.begin(), candidates.end(), less);
  Choice choice{.candidate = static_cast<size_t>(found - candidates.begin())};
  if (candidates.size() == 1) choice.reason = "only";
  return choice;
}

bool less_loaded_than_another(std::span<const Candidate> candidates, const Candidate& chosen) {
  return std::any_of(candidates.begin(), candidates.end(),
                     [&](const Candidate& other) { return load(chosen) < load(other); });
}

class RoundRobin final : public RoutingPolicy {
 public:
  const char* name() const override { return "round-robin"; }
  Choice choose(std::span<const Candidate> candidates, int last) const override {
    return best(candidates, [&](const auto& a, const auto& b) { return turn(a, last) < turn(b, last); });
  }
};

class LeastLoaded final : public RoutingPolicy {
 public:
  const char* name() const override { return "least-loaded"; }
  Choice choose(std::span<const Candidate> candidates, int last) const override {
    Choice choice = best(candidates, [&](const auto& a, const auto& b) {
      return std::tuple(load(a), turn(a, last)) < std::tuple(load(b), turn(b, last));
    });
    if (less_loaded_than_another(candidates, candidates[choice.candidate])) choice.reason = "load";
    return choice;
  }
};

class ByPrediction final : public RoutingPolicy {
 public:
  const char* name() const override { return "kv"; }
  Choice choose(std::span<const Candidate> candidates, int last) const override {
    double quickest = candidates.front().first_token();
    for (const auto& candidate : candidates) quickest = std::min(quickest, candidate.first_token());
    const double nearly = std::max(quickest * kNearlyRatio, quickest + kNearlySeconds);
    Choice choice = best(candidates, [&](const auto& a, const auto& b) {
      const bool a_slow = a.first_token() > nearly, b_slow = b.first_token() > nearly;
      return std::tuple(a_slow, load(a), a.compute_tokens, turn(a, last)) <
             std::tuple(b_slow, load(b), b.compute_tokens, turn(b, last));
    });
    const Candidate& chosen = candidates[choice.candidate];
    const auto any = [&](auto worse) { return std::any_of(candidates.begin(), candidates.end(), worse); };
    const auto own_work = [](const Candidate& candidate) { return candidate.restore + candidate.compute; };
    const auto pages = [](const Candidate& candidate) {
      return std::tuple(candidate.prefix.device + candidate.prefix.store, candidate.prefix.device);
    };
    // Another lost by what it would have to fetch or compute more, rather than by its queue.
    if (any([&](const Candidate& other) {
          const double more_work = own_work(other) - own_work(chosen);
          return pages(other) < pages(chosen) && more_work > 0 && more_work >= other.queue - chosen.queue;
        })) {
      choice.reason = "prefix";
    } else if (any([&](const Candidate& other) { return other.first_token() > nearly; }) ||
               less_loaded_than_another(candidates, chosen)) {
      choice.reason = "load";
    }
    return choice;
  }
};

}  // namespace

std::unique_ptr<RoutingPolicy> make_policy(const std::string& name) {
  if (name == "round-robin") return std::make_unique<RoundRobin>();
  if (name == "least-loaded") return std::make_unique<LeastLoaded>();
  LOWKEY_CHECK(name == "kv", "routing policy {}", name);
  return std::make_unique<ByPrediction>();
}

}  // namespace lowkey::coordinator
