#include "coordinator/api/explainer.h"

#include <algorithm>
#include <cstring>

#include "coordinator/api/api_error.h"
#include "coordinator/api/percent.h"
#include "coordinator/api/pretty_json.h"
#include "coordinator/api/request_story.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

const char* why(std::string_view reason) {
  if (reason == "prefix") return "less of the prompt has to be computed there";
  if (reason == "load") return "it has less to do, or does it faster";
  if (reason == "only") return "no other replica could take the request";
  return "nothing told the replicas apart, and it was its turn";
}

json::object candidate_json(const Candidate& candidate) {
  json::object object = {{"replica", candidate.replica},
                         {"predicted_seconds", candidate.first_token()},
                         {"queue_seconds", candidate.queue},
                         {"restore_seconds", candidate.restore},
                         {"compute_seconds", candidate.compute},
                         {"compute_tokens", candidate.compute_tokens},
                         {"device_pages", candidate.prefix.device - candidate.prefix.under_way},
                         {"pages_being_computed", candidate.prefix.under_way},
                         {"store_pages", candidate.prefix.store},
                         {"in_flight", candidate.in_flight},
                         {"load", candidate.load}};
  if (candidate.prefix.store > 0)
    object["store_pages_are"] = candidate.restores ? "restored" : "computed again";
  return object;
}

json::object placement_json(const Placement& placement) {
  const RoutingDecision& decision = placement.decision;
  json::array candidates;
  for (const auto& candidate : decision.candidates) candidates.push_back(candidate_json(candidate));
  json::object stores;
  for (const auto& [rank, pages] : decision.in_stores) stores[fmt::format("rank {}", rank)] = pages;
  json::object object = {{"replica", decision.replica},
                         {"policy", decision.policy},
                         {"reason", decision.reason},
                         {"why", why(decision.reason)},
                         {"after_seconds", placement.after_seconds},
                         {"tokens", decision.tokens},
                         {"page_tokens", decision.page_tokens}};
  if (!placement.cause.empty()) {
    object["moved_because"] = placement.cause;
    object["after_answer_tokens"] = placement.after_tokens;
  }
  if (const auto* chosen = decision.chosen())
    object["predicted_time_to_first_token_seconds"] = chosen->first_token();
  object["candidates"] = std::move(candidates);
  if (placement.candidates_left_out > 0) object["candidates_left_out"] = placement.candidates_left_out;
  object["prefix_pages_in_stores"] = std::move(stores);
  return object;
}

json::value report_json(const std::optional<wire::KvReport>& report) {
  if (!report) return nullptr;
  json::array notes;
  for (const auto& note : report->notes()) notes.emplace_back(note);
  return {{"prompt_tokens", report->prompt_tokens()},
          {"device_tokens", report->device_tokens()},
          {"host_tokens", report->host_tokens()},
          {"disk_tokens", report->disk_tokens()},
          {"computed_tokens", report->computed_tokens()},
          {"recomputed_tokens", report->recomputed_tokens()},
          {"preemptions", report->preemptions()},
          {"levels", report->levels()},
          {"lowest_levels_read", report->lowest_levels_read()},
          {"coarse_tokens", report->coarse_tokens()},
          {"decision", report->decision()},
          {"predicted_restore_seconds", report->predicted_restore_seconds()},
          {"predicted_compute_seconds", report->predicted_compute_seconds()},
          {"restore_seconds", report->restore_seconds()},
          {"queue_seconds", report->queue_seconds()},
          {"notes", std::move(notes)}};
}

// The move of an answer that had begun.
json::value continuation_json(const std::vector<Placement>& placements) {
  for (size_t i = 1; i < placements.size(); ++i) {
    if (placements[i].after_tokens == 0) continue;
    return {{"from_replica", placements[i - 1].decision.replica},
            {"to_replica", placements[i].decision.replica},
            {"after_answer_tokens", placements[i].after_tokens},
            {"because", placements[i].cause}};
  }
  return nullptr;
}

json::object story_json(const RequestStory& story) {
  json::array routing;
  for (const auto& placement : story.placements) routing.push_back(placement_json(placement));
  const bool running = story.ended.empty();
  json::object object = {{"request", story.id},
                         {"created", story.created},
                         {"status", running        ? "running"
                                    : story.failed ? "failed"
                                                   : "finished"}};
  if (!running) object[story.failed ? "error" : "finish_reason"] = story.ended;
  object["prompt_tokens"] = story.prompt_tokens;
  object["answer_tokens"] = story.answer_tokens;
  object["time_to_first_token_seconds"] =
      story.first_token_seconds < 0 ? json::value(nullptr) : json::value(story.first_token_seconds);
  object["routing"] = std::move(routing);
  object["continuation"] = continuation_json(story.placements);
  object["cache"] = report_json(story.report);
  return object;
}

std::string parameter(std::string_view query, std::string_view name) {
  while (!query.empty()) {
    const auto pair = query.substr(0, query.find('&'));
    if (pair.substr(0, pair.find('=')) == name && pair.size() > name.size())
      return percent_decoded(pair.substr(name.size() + 1));
    query.remove_prefix(std::min(pair.size() + 1, query.size()));
  }
  return {};
}

}  // namespace

void RequestStory::place(RoutingDecision decision, std::string cause, uint64_t emitted) {
  auto& candidates = decision.candidates;
  std::stable_sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    return std::pair(a.replica != decision.replica, a.first_token()) <
           std::pair(b.replica != decision.replica, b.first_token());
  });
  const size_t left_out = candidates.size() - std::min(candidates.size(), Placement::kMaxCandidates);
  candidates.resize(candidates.size() - left_out);
  placements.push_back({.cause = std::move(cause),
                        .after_tokens = emitted,
                        .after_seconds = seconds(Clock::now() - received),
                        .decision = std::move(decision),
                        .candidates_left_out = left_out});
}

void Explainer::remember(std::shared_ptr<const RequestStory> story) {
  order_.push_back(story->id);
  stories_[story->id] = std::move(story);
  if (order_.size() <= kMaxRequests) return;
  stories_.erase(order_.front());
  order_.pop_front();
}

HttpResponse Explainer::explain(std::string_view query, const std::string& tenant) const {
  const std::string id = parameter(query, "request");
  if (id.empty()) {
    ApiError error =
        api_error(400, "'request' is missing: GET /v1/kv/explain?request=ID, the id of an answer.");
    error.param = "request";
    return error_http(error);
  }
  const auto found = stories_.find(id);
  if (found == stories_.end() || found->second->tenant != tenant) {
    ApiError error = api_error(404, fmt::format("Request '{}' is unknown; the last {} are remembered.",
                                                id.substr(0, 80), kMaxRequests));
    error.param = "request";
    return error_http(error);
  }
  return HttpResponse{.body = pretty_json(story_json(*found->second))};
}

}  // namespace lowkey::coordinator
