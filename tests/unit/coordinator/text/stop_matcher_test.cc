#include "coordinator/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace lowkey::coordinator {
namespace {

struct Streamed {
  std::string text;
  bool stopped = false;
  int which = -1;
};

Streamed stream(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  auto matcher = StopMatcher::create(stops);
  EXPECT_TRUE(matcher.ok());
  Streamed result;
  for (const std::string& piece : pieces) {
    const auto output = matcher->push(piece);
    result.text += output.text;
    if (!output.stopped) continue;
    result.stopped = true;
    result.which = output.which;
  }
  result.text += matcher->flush();
  return result;
}

// By the definition: the earliest end of any stop string; of several with that end, the longest.
Streamed by_definition(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string_view head(text.data(), end);
    Streamed best;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (!head.ends_with(stops[i]) || (best.stopped && stops[i].size() <= stops[best.which].size()))
        continue;
      best = {text.substr(0, end - stops[i].size()), true, static_cast<int>(i)};
    }
    if (best.stopped) return best;
  }
  return {text, false, -1};
}

TEST(StopMatcher, PassesTextThroughWithoutStops) {
  auto matcher = StopMatcher::create({});
  EXPECT_EQ(matcher->push("hello").text, "hello");
  EXPECT_EQ(matcher->flush(), "");
}

TEST(StopMatcher, HoldsBackWhatMayBecomeAStop) {
  auto matcher = StopMatcher::create({"\nUser:"});
  EXPECT_EQ(matcher->push("Hi\nUs").text, "Hi");
  EXPECT_EQ(matcher->push("ing it").text, "\nUsing it");
  EXPECT_EQ(matcher->push("\n").text, "");
  const auto output = matcher->push("User: more");
  EXPECT_TRUE(output.stopped);
  EXPECT_EQ(output.text, "");
  EXPECT_EQ(output.which, 0);
  EXPECT_EQ(matcher->push("dropped").text, "");
  EXPECT_EQ(matcher->flush(), "");
}

TEST(StopMatcher, FlushGivesBackAnUnfinishedStop) {
  auto matcher = StopMatcher::create({"END"});
  EXPECT_EQ(matcher->push("the EN").text, "the ");
  EXPECT_EQ(matcher->flush(), "EN");
}

TEST(StopMatcher, FallsBackInsideRepeatingStops) {
  EXPECT_EQ(stream({"aab"}, {"aaab"}).text, "a");
  EXPECT_EQ(stream({"abababc"}, {"abababab", "abc!"}).text, "abab");
}

TEST(StopMatcher, PrefersTheStopThatIsCompleteFirst) {
  const auto result = stream({"abcd", "bc"}, {"xabcd"});
  EXPECT_EQ(result.text, "xa");
  EXPECT_EQ(result.which, 1);
  EXPECT_EQ(stream({"c", "abc"}, {"xabc"}).text, "x");
}

TEST(StopMatcher, DoesNotDependOnHowTheTextIsCut) {
  std::mt19937 random(3);
  const auto pick = [&](size_t from, size_t to) { return from + random() % (to - from + 1); };
  const auto letters = [&](size_t size) {
    std::string text;
    for (size_t i = 0; i < size; ++i) text += "ab\n"[random() % 3];
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops(pick(0, 4));
    for (auto& stop : stops) stop = letters(pick(1, 6));
    const std::string text = letters(pick(0, 40));
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t size = pick(0, 5);
      pieces.push_back(text.substr(at, size));
      at += size;
    }
    const Streamed expected = by_definition(stops, text), found = stream(stops, pieces);
    ASSERT_EQ(found.text, expected.text) << text;
    ASSERT_EQ(found.stopped, expected.stopped);
    ASSERT_EQ(found.stopped ? stops[found.which] : "", expected.stopped ? stops[expected.which] : "");
  }
}

TEST(StopMatcher, RefusesStopsOutOfRange) {
  for (const auto& stops : {std::vector<std::string>(17, "x"), {""}, {std::string(257, 'x')}}) {
    const auto matcher = StopMatcher::create(stops);
    ASSERT_FALSE(matcher.ok());
    EXPECT_EQ(matcher.error().code, Code::kInvalidArgument);
    EXPECT_EQ(matcher.error().param, "stop");
  }
  EXPECT_TRUE(StopMatcher::create(std::vector<std::string>(16, std::string(256, 'x'))).ok());
}

}  // namespace
}  // namespace lowkey::coordinator
