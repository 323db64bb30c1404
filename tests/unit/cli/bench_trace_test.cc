#include "cli/bench_trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "tests/support/temp_folder.h"

namespace lowkey::cli {
namespace {

using std::chrono::milliseconds;

const std::string kGolden = LOWKEY_SOURCE_DIR "/tests/golden/trace/";

Trace read(TraceOptions options) {
  auto trace = Trace::read(options);
  EXPECT_TRUE(trace.ok()) << trace.error().message;
  return *trace;
}

size_t common_prefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

TEST(Trace, MooncakeKeepsArrivalsLengthsAndPrefixes) {
  auto trace = read({.file = kGolden + "mooncake.jsonl"});
  EXPECT_EQ(trace.format, "mooncake");
  ASSERT_EQ(trace.requests.size(), 5u);
  std::vector<int> prompts, outputs;
  std::vector<Duration> times;
  std::vector<std::vector<int32_t>> tokens;
  for (const auto& request : trace.requests) {
    prompts.push_back(request.prompt_tokens);
    outputs.push_back(request.output_tokens);
    times.push_back(request.at);
    tokens.push_back(trace_prompt(trace, request));
    EXPECT_EQ(tokens.back().size(), static_cast<size_t>(request.prompt_tokens));
    EXPECT_TRUE(std::ranges::all_of(tokens.back(), [](int32_t id) { return 0 <= id && id < 256; }));
  }
  EXPECT_EQ(prompts, (std::vector<int>{1300, 1024, 1700, 513, 1300}));
  EXPECT_EQ(outputs, (std::vector<int>{64, 32, 1, 500, 64}));
  EXPECT_EQ(times, (std::vector<Duration>{milliseconds(0), milliseconds(200), milliseconds(200),
                                          milliseconds(450), milliseconds(1000)}));
  EXPECT_EQ(tokens[0], tokens[4]);
  EXPECT_EQ(common_prefix(tokens[0], tokens[1]), 1024u);
  EXPECT_GE(common_prefix(tokens[0], tokens[2]), 1024u);
  EXPECT_LT(common_prefix(tokens[0], tokens[2]), 1028u) << "other blocks differ within four tokens";
  EXPECT_LT(common_prefix(tokens[0], tokens[3]), 4u);
}

TEST(Trace, ScalesTimeAndLengthsAndTakesAPart) {
  auto trace =
      read({.file = kGolden + "mooncake.jsonl", .speed = 10, .tokens = 1. / 64, .skip = 1, .requests = 3});
  EXPECT_EQ(trace.block_tokens, 8);
  ASSERT_EQ(trace.requests.size(), 3u);
  EXPECT_EQ(trace.requests[0].at, Duration{});
  EXPECT_EQ(trace.requests[2].at, milliseconds(25));
  EXPECT_EQ(trace.requests[0].prompt_tokens, 16);
  EXPECT_EQ(trace.requests[1].prompt_tokens, 3 * 8 + 3) << "164 of 512 tokens are 3 of 8";
  EXPECT_EQ(trace.requests[2].prompt_tokens, 8 + 1) << "at least one token of every block";
  EXPECT_EQ(trace.requests[1].output_tokens, 1);
  auto first = trace_prompt(trace, trace.requests[0]), second = trace_prompt(trace, trace.requests[1]);
  EXPECT_EQ(common_prefix(first, second), 16u) << "the shared blocks scale as well";
}

TEST(Trace, AzureSharesNoPrefix) {
  auto trace = read({.file = kGolden + "azure.csv", .speed = 0.5});
  EXPECT_EQ(trace.format, "azure");
  ASSERT_EQ(trace.requests.size(), 3u);
  EXPECT_EQ(trace.requests[1].at, milliseconds(500)) << "over midnight";
  EXPECT_EQ(trace.requests[2].at, std::chrono::duration_cast<Duration>(std::chrono::microseconds(2040080)));
  EXPECT_EQ(trace.requests[0].prompt_tokens, 374);
  EXPECT_EQ(trace.requests[2].output_tokens, 1) << "an answer has a token";
  std::set<std::vector<int32_t>> starts;
  for (const auto& request : trace.requests) {
    auto tokens = trace_prompt(trace, request);
    starts.emplace(tokens.begin(), tokens.begin() + Trace::kLeastBlock);
  }
  EXPECT_EQ(starts.size(), 3u);
}

TEST(Trace, BlocksOfFourTokensStillTellAllIdsApart) {
  Trace trace{.format = "mooncake", .block_tokens = Trace::kLeastBlock};
  std::set<std::vector<int32_t>> seen;
  for (uint64_t id = 0; id < 200'000; id += 7)
    seen.insert(trace_prompt(trace, {.prompt_tokens = 4, .output_tokens = 1, .blocks = {id}}));
  EXPECT_EQ(seen.size(), (200'000 + 6) / 7u);
}

TEST(Trace, SaysWhatIsWrongWithFileAndLine) {
  testing::TempFolder folder;
  const std::string good =
      "{\"timestamp\": 5, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, 2]}\n";
  const std::string head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const std::map<std::string, std::string> complaints{
      {"", ":1: expected a Mooncake trace"},
      {"hello\n", ":1: expected a Mooncake trace"},
      {"ContextTokens,TIMESTAMP\n", "found 'ContextTokens,TIMESTAMP'"},
      {good + "{\"timestamp\": 5\n", ":2: expected {\"timestamp\": ms"},
      {good + "{\"timestamp\": 4, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}\n",
       ":2: expected times that ascend"},
      {"{\"timestamp\": 5, \"input_length\": 0, \"output_length\": 1, \"hash_ids\": []}\n",
       ":1: expected 'input_length' as a whole number from 1 to 10000000, found 0"},
      {"{\"timestamp\": 5, \"input_length\": 9, \"hash_ids\": [1]}\n", "'output_length' as a whole number"},
      {"{\"timestamp\": 5, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1]}\n",
       ":1: expected 'hash_ids' with 2 ids, one per 512 tokens of 600, found 1"},
      {"\n\n{\"timestamp\": 5, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [-1]}\n",
       ":3: expected hash ids from 0"},
      {head, ":1: expected requests behind the first 0, found 0 in all"},
      {head + "2023-11-16 18:17:03.97,4808\n", ":2: expected YYYY-MM-DD HH:MM:SS.F,ContextTokens"},
      {head + "2023-13-16 18:17:03.97,4808,10\n", ":2: expected a time"},
      {head + "yesterday,4808,10\n", ":2: expected a time"},
      {head + "2023-11-16 18:17:03.97,many,10\n", ":2: expected two lengths"},
      {head + "2023-11-16 18:17:03.97,10,-3\n", ":2: expected two lengths"},
  };
  for (const auto& [content, complaint] : complaints) {
    const auto path = (folder.path() / "trace").string();
    std::ofstream(path) << content;
    auto trace = Trace::read({.file = path});
    ASSERT_FALSE(trace.ok()) << content;
    EXPECT_EQ(trace.error().code, Code::kBadInput);
    EXPECT_TRUE(trace.error().message.starts_with(path)) << trace.error().message;
    EXPECT_NE(trace.error().message.find(complaint), std::string::npos) << content << trace.error().message;
    EXPECT_EQ(trace.error().message.find('\n'), std::string::npos);
  }
  EXPECT_EQ(Trace::read({.file = (folder.path() / "none").string()}).error().code, Code::kBadInput);
  auto short_blocks = Trace::read({.file = kGolden + "mooncake.jsonl", .tokens = 0.001});
  ASSERT_FALSE(short_blocks.ok());
  EXPECT_EQ(short_blocks.error().code, Code::kUsage);
}

TEST(Trace, ReadsThePublishedOnes) {
  const std::filesystem::path folder =
      std::filesystem::path(LOWKEY_SOURCE_DIR).parent_path() / "shared/data/traces";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is absent";
  const struct {
    const char *file, *format;
    size_t requests;
    double seconds, mean_prompt;
  } published[] = {{"mooncake-fast25/conversation_trace.jsonl", "mooncake", 12031, 3537, 12035},
                   {"mooncake-fast25/synthetic_trace.jsonl", "mooncake", 3993, 1020, 15326},
                   {"azure-llm-2023/AzureLLMInferenceTrace_conv.csv", "azure", 19366, 3501, 1155},
                   {"azure-llm-2023/AzureLLMInferenceTrace_code.csv", "azure", 8819, 3430, 2048}};
  for (const auto& expected : published) {
    auto trace = read({.file = (folder / expected.file).string()});
    EXPECT_EQ(trace.format, expected.format);
    EXPECT_EQ(trace.requests.size(), expected.requests);
    EXPECT_NEAR(seconds(trace.requests.back().at), expected.seconds, 0.05 * expected.seconds)
        << expected.file;
    double sum = 0;
    for (const auto& request : trace.requests) sum += request.prompt_tokens;
    EXPECT_NEAR(sum / static_cast<double>(expected.requests), expected.mean_prompt, 1) << expected.file;
  }
}

}  // namespace
}  // namespace lowkey::cli
