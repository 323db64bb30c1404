#include "coordinator/api/explainer.h"

#include <gtest/gtest.h>

#include "coordinator/api/request_story.h"

namespace lowkey::coordinator {
namespace {

std::shared_ptr<RequestStory> story(const std::string& id) {
  auto story = std::make_shared<RequestStory>();
  story->id = id;
  return story;
}

TEST(Explainer, ForgetsTheOldest) {
  Explainer explainer;
  for (size_t i = 0; i <= Explainer::kMaxRequests; ++i) explainer.remember(story(std::to_string(i)));
  EXPECT_EQ(explainer.explain("request=0", "").status, 404);
  EXPECT_EQ(explainer.explain("request=1", "").status, 200);
  EXPECT_EQ(explainer.explain("request=1024", "").status, 200);
}

TEST(Explainer, ReadsTheQuery) {
  Explainer explainer;
  explainer.remember(story("a/b"));
  for (const char* query : {"request=a%2Fb", "x=&request=a/b&y", "&request=a/b"})
    EXPECT_EQ(explainer.explain(query, "").status, 200) << query;
  for (const char* query : {"", "request", "request=", "requests=a/b", "x"})
    EXPECT_EQ(explainer.explain(query, "").status, 400) << query;
  EXPECT_EQ(explainer.explain("request=a/b", "another").status, 404);
}

TEST(Explainer, ToldNumbersAreJson) {
  Explainer explainer;
  auto told = story("r");
  wire::KvReport& report = told->report.emplace();
  report.set_restore_seconds(std::numeric_limits<double>::quiet_NaN());
  report.set_queue_seconds(-std::numeric_limits<double>::infinity());
  explainer.remember(told);
  const std::string text = explainer.explain("request=r", "").body;
  EXPECT_NE(text.find("\"restore_seconds\": null"), std::string::npos) << text;
  EXPECT_NE(text.find("\"queue_seconds\": null"), std::string::npos) << text;
}

TEST(Explainer, IsForHumanEyes) {
  Explainer explainer;
  auto told = story("r");
  RoutingDecision decision{.replica = 7, .policy = "kv", .reason = "load", .tokens = 9, .page_tokens = 4};
  for (int replica = 0; replica < 20; ++replica)
    decision.candidates.push_back({.replica = replica, .compute = 1.0 + replica / 4.0});
  told->place(decision, "", 0);
  told->first_token_seconds = 0.25;
  explainer.remember(told);
  const std::string text = explainer.explain("request=r", "").body;
  EXPECT_NE(text.find("\"status\": \"running\""), std::string::npos) << text;
  EXPECT_NE(text.find("\n  \"time_to_first_token_seconds\": 0.25,\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\"why\": \"it has less to do, or does it faster\""), std::string::npos) << text;
  EXPECT_NE(text.find("\"candidates_left_out\": 4"), std::string::npos) << text;
  EXPECT_LT(text.find("\"predicted_seconds\": 2.75"), text.find("\"predicted_seconds\": 1,"))
      << "the chosen one first";
  EXPECT_EQ(told->placements[0].decision.chosen()->replica, 7);
}

}  // namespace
}  // namespace lowkey::coordinator
