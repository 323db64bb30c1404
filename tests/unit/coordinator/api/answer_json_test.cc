// The exact bytes of answers: clients parse them, and some compare them.
#include "coordinator/api/answer_json.h"

#include <gtest/gtest.h>

#include <limits>

#include "coordinator/api/api_error.h"

namespace lowkey::coordinator {
namespace {

AnswerIdentity identity(Endpoint endpoint) {
  return {
      .endpoint = endpoint, .id = "x-1", .created = 1700000000, .model = "m", .system_fingerprint = "fp_0"};
}
constexpr Usage kUsage{
    .prompt_tokens = 5, .completion_tokens = 2, .cached_tokens = 4, .cached_host = 2, .cached_disk = 1};

constexpr CacheUse kFine{.levels = 3, .lowest_levels_read = 3};
constexpr CacheUse kCoarse{.levels = 3, .lowest_levels_read = 1, .coarse_tokens = 2};

using Details = std::optional<std::vector<TokenDetail>>;

std::string whole(const AnswerIdentity& identity, const std::string& text, Details details, Finish finish,
                  const Usage& usage, const CacheUse& cache) {
  const ChoiceText choice{.text = text, .details = std::move(details), .finish = finish};
  return whole_answer(identity, {&choice, 1}, usage, cache);
}
std::string streamed(const AnswerIdentity& identity, const std::string& text, Finish finish,
                     bool include_usage, const CacheUse* cache) {
  return text_event(identity, {.text = text, .details = {}, .finish = finish}, include_usage, cache);
}

std::vector<TokenDetail> two_tokens() {
  return {{.token = {" a", -0.25f}, .top = {{" a", -0.25f}, {" b", -1.5f}}, .text_offset = 0},
          {.token = {"\xE2\x82", -0.5f}, .top = {{"\xE2\x82", -0.5f}}, .text_offset = 2}};
}

TEST(AnswerJson, Completion) {
  EXPECT_EQ(
      whole(identity(Endpoint::kCompletions), "hé\"", {}, Finish::kLength, kUsage, kFine),
      R"({"id":"x-1","object":"text_completion","created":1700000000,"model":"m","system_fingerprint":"fp_0",)"
      R"("choices":[{"index":0,"text":"hé\"","logprobs":null,"finish_reason":"length"}],)"
      R"("usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,)"
      R"("prompt_tokens_details":{"cached_tokens":4,)"
      R"("cached_tokens_by_tier":{"device":1,"host":2,"disk":1}}}})");
}

TEST(AnswerJson, Chat) {
  EXPECT_EQ(
      whole(identity(Endpoint::kChat), "hi", {}, Finish::kStop, kUsage, kFine),
      R"({"id":"x-1","object":"chat.completion","created":1700000000,"model":"m","system_fingerprint":"fp_0",)"
      R"("choices":[{"index":0,"message":{"role":"assistant","content":"hi","refusal":null},"logprobs":null,)"
      R"("finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,)"
      R"("prompt_tokens_details":{"cached_tokens":4,)"
      R"("cached_tokens_by_tier":{"device":1,"host":2,"disk":1}}}})");
}

TEST(AnswerJson, AnAnswerReadCoarseSaysSo) {
  const std::string kv = R"("kv":{"levels":3,"lowest_levels_read":1,"coarse_tokens":2}})";
  const auto ends_so = [&](const std::string& text) { return text.find(kv) != std::string::npos; };
  const auto chat = identity(Endpoint::kChat);
  EXPECT_TRUE(ends_so(whole(chat, "a", {}, Finish::kStop, kUsage, kCoarse)));
  EXPECT_TRUE(ends_so(streamed(chat, "a", Finish::kStop, true, &kCoarse)));
  const CacheUse rounded{.levels = 3, .lowest_levels_read = 3, .coarse_tokens = 1};  // a lossy spill format
  EXPECT_NE(whole(chat, "a", {}, Finish::kStop, kUsage, rounded).find("\"kv\""), std::string::npos);
  for (const CacheUse& fine : {kFine, CacheUse{}})
    EXPECT_EQ(whole(chat, "a", {}, Finish::kStop, kUsage, fine).find("\"kv\""), std::string::npos);
}

TEST(AnswerJson, Events) {
  const auto chat = identity(Endpoint::kChat);
  const std::string head =
      R"(data: {"id":"x-1","object":"chat.completion.chunk","created":1700000000,"model":"m","system_fingerprint":"fp_0",)";
  EXPECT_EQ(role_event(chat, 0, false),
            head + R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,)" +
                "\"finish_reason\":null}]}\n\n");
  EXPECT_EQ(streamed(chat, "hi", Finish::kNone, true, nullptr),
            head +
                R"("choices":[{"index":0,"delta":{"content":"hi"},"logprobs":null,"finish_reason":null}],)" +
                "\"usage\":null}\n\n");
  EXPECT_EQ(streamed(chat, "", Finish::kStop, false, nullptr),
            head + R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]})" + "\n\n");
  EXPECT_EQ(usage_event(chat, kUsage),
            head + R"("choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,)" +
                R"("total_tokens":7,"prompt_tokens_details":{"cached_tokens":4,)" +
                R"("cached_tokens_by_tier":{"device":1,"host":2,"disk":1}}}})" + "\n\n");
  EXPECT_EQ(
      streamed(identity(Endpoint::kCompletions), "hi", Finish::kNone, false, nullptr),
      R"(data: {"id":"x-1","object":"text_completion","created":1700000000,"model":"m",)"
      R"("system_fingerprint":"fp_0","choices":[{"index":0,"text":"hi","logprobs":null,"finish_reason":null}]})"
      "\n\n");
  EXPECT_EQ(done_event(), "data: [DONE]\n\n");
}

TEST(AnswerJson, LogprobsOfChat) {
  const auto details = two_tokens();
  const std::string answer = whole(identity(Endpoint::kChat), " a", details, Finish::kStop, kUsage, kFine);
  EXPECT_NE(
      answer.find(R"("logprobs":{"content":[{"token":" a","logprob":-2.5E-1,"bytes":[32,97],"top_logprobs":[)"
                  R"({"token":" a","logprob":-2.5E-1,"bytes":[32,97]},)"
                  R"({"token":" b","logprob":-1.5E0,"bytes":[32,98]}]},)"
                  R"({"token":"bytes:\\xe2\\x82","logprob":-5E-1,"bytes":[226,130],"top_logprobs":[)"
                  R"({"token":"bytes:\\xe2\\x82","logprob":-5E-1,"bytes":[226,130]}]}],"refusal":null})"),
      std::string::npos)
      << answer;
}

TEST(AnswerJson, LogprobsOfCompletions) {
  const auto details = two_tokens();
  const std::string answer =
      whole(identity(Endpoint::kCompletions), " a", details, Finish::kStop, kUsage, kFine);
  EXPECT_NE(
      answer.find(
          R"("logprobs":{"tokens":[" a","bytes:\\xe2\\x82"],"token_logprobs":[-2.5E-1,-5E-1],)"
          R"("top_logprobs":[{" a":-2.5E-1," b":-1.5E0},{"bytes:\\xe2\\x82":-5E-1}],"text_offset":[0,2]})"),
      std::string::npos)
      << answer;
}

TEST(AnswerJson, ChoicesAndPromptsInOrder) {
  std::vector<TokenDetail> details = two_tokens();
  details[0].scored = false;  // the first token of an echoed prompt
  const std::vector<ChoiceText> choices{
      {.index = 0, .text = "x", .details = details, .finish = Finish::kStop},
      {.index = 1, .text = "y", .details = {}, .finish = Finish::kLength}};
  const std::string answer = whole_answer(identity(Endpoint::kCompletions), choices, kUsage, kFine);
  EXPECT_NE(answer.find(R"("token_logprobs":[null,-5E-1],"top_logprobs":[null,{)"), std::string::npos)
      << answer;
  EXPECT_NE(answer.find(R"({"index":1,"text":"y","logprobs":null,"finish_reason":"length"})"),
            std::string::npos)
      << answer;
  EXPECT_NE(
      text_event(identity(Endpoint::kChat), choices[1], false, nullptr).find(R"("choices":[{"index":1,)"),
      std::string::npos);
}

TEST(AnswerJson, ImpossibleTokensAreFinite) {
  const std::vector<TokenDetail> details = {{.token = {"a", -std::numeric_limits<float>::infinity()}}};
  const std::string answer =
      whole(identity(Endpoint::kCompletions), "a", details, Finish::kStop, kUsage, kFine);
  EXPECT_NE(answer.find(R"("token_logprobs":[-9.999E3])"), std::string::npos) << answer;
}

TEST(ApiError, Shapes) {
  EXPECT_EQ(
      error_body(api_error(Error{Code::kInvalidArgument, "bad \"x\"", "top_p"})),
      R"({"error":{"message":"bad \"x\"","type":"invalid_request_error","param":"top_p","code":null}})");
  EXPECT_EQ(error_body(model_not_found("m", "demo")),
            R"({"error":{"message":"The model `m` does not exist; this server has `demo`.",)"
            R"("type":"invalid_request_error","param":"model","code":"model_not_found"}})");
  const auto busy = error_http(api_error(429, "later"));
  EXPECT_EQ(busy.status, 429);
  EXPECT_EQ(busy.headers.at(0).first, "Retry-After");
  EXPECT_EQ(api_error(Error{Code::kUnavailable, "x", {}}).status, 503);
  EXPECT_EQ(api_error(Error{Code::kInternal, "x", {}}).type, "server_error");
  EXPECT_EQ(error_http(api_error(401, "who")).headers.at(0).first, "WWW-Authenticate");
}

}  // namespace
}  // namespace lowkey::coordinator
