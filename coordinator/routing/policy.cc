#include "coordinator/routing/policy.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "base/check.h"

namespace lowkey::coordinator {
namespace {

// Costs and work that differ by less say nothing: measured rates of equal replicas do. And a page of a common
// preamble is no reason to send everything to one replica.
constexpr double kAlike = 1.15;
constexpr double kNearlyAsQuick = 1.1;
constexpr double kNothingSeconds = 0.001;

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
  static double cost(const Candidate& candidate) { return candidate.cost(); }
  static double first_token(const Candidate& candidate) { return candidate.first_token(); }
  static double tokens(const Candidate& candidate) { return static_cast<double>(candidate.compute_tokens); }

 public:
  const char* name() const override { return "kv"; }
  Choice choose(std::span<const Candidate> candidates, int last) const override {
    const auto least = [&](auto of, auto among) {
      double least = std::numeric_limits<double>::infinity();
      for (const auto& candidate : candidates)
        if (among(candidate)) least = std::min(least, static_cast<double>(of(candidate)));
      return least;
    };
    const double cheap = kAlike * least(&cost, [](const Candidate&) { return true; }) + kNothingSeconds;
    const auto is_cheap = [&](const Candidate& candidate) { return candidate.cost() <= cheap; };
    const double little = kAlike * least(&tokens, is_cheap);
    const auto has_little = [&](const Candidate& candidate) {
      return is_cheap(candidate) && tokens(candidate) <= little;
    };
    const double quick = kNearlyAsQuick * least(&first_token, has_little) + kNothingSeconds;
    const auto key = [&](const Candidate& candidate) {
      return std::tuple(!is_cheap(candidate), !has_little(candidate), candidate.first_token() > quick,
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
    } else if (any([&](const Candidate& other) { return !is_cheap(other) || other.first_token() > quick; }) ||
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
