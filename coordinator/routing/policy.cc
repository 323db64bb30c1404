#include "coordinator/routing/policy.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace lowkey::coordinator {
namespace {

// Predictions that differ by less say nothing: measured rates of equal replicas do.
constexpr double kNearlyRatio = 1.15;
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
    double cheapest = candidates.front().cost();
    for (const auto& candidate : candidates) cheapest = std::min(cheapest, candidate.cost());
    const double nearly = std::max(cheapest * kNearlyRatio, cheapest + kNearlySeconds);
    uint64_t least = UINT64_MAX;  // to be computed
    for (const auto& candidate : candidates)
      if (candidate.cost() <= nearly) least = std::min(least, candidate.compute_tokens);
    const double little = kNearlyRatio * static_cast<double>(least);
    const auto key = [&](const Candidate& candidate) {
      return std::tuple(candidate.cost() > nearly, static_cast<double>(candidate.compute_tokens) > little,
                        load(candidate), candidate.compute_tokens, turn(candidate, last));
    };
    Choice choice = best(candidates, [&](const auto& a, const auto& b) { return key(a) < key(b); });
    const Candidate& chosen = candidates[choice.candidate];
    const auto any = [&](auto worse) { return std::any_of(candidates.begin(), candidates.end(), worse); };
    const auto pages = [](const Candidate& candidate) {
      return std::tuple(candidate.prefix.device + candidate.prefix.store, candidate.prefix.device);
    };
    // Another lost by what it would have to fetch or compute more, rather than by its queue.
    if (any([&](const Candidate& other) {
          const double more_work = other.own_cost() - chosen.own_cost();
          return pages(other) < pages(chosen) && more_work > 0 && more_work >= other.queue - chosen.queue;
        })) {
      choice.reason = "prefix";
    } else if (any([&](const Candidate& other) { return other.cost() > nearly; }) ||
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
