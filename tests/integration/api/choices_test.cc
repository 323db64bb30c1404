// Several answers to one request: prompts, n, echo.
#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

using Choices = ApiTest;
namespace json = boost::json;

std::string text_of(const json::value& value) {
  return json::value_to<std::string>(value);
}

std::vector<int32_t> prompt_of(const wire::Submit& submit) {
  return {submit.prompt().begin(), submit.prompt().end()};
}

TEST_F(Choices, TheOthersBeginWithTheFirstOnesFirstToken) {
  start_ready({.tokens = {100, 101}, .hold_after = 0});
  auto waiting = client();
  waiting.send(
      post_text("/v1/completions", R"({"prompt":[1,2,3],"max_tokens":2,"n":3,"seed":7,"temperature":1})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  EXPECT_TRUE(wait_in_flight(3));
  EXPECT_EQ(leaders_[0]->submits().size(), 1u) << "the first computes the prompt";
  leaders_[0]->release();
  const auto answer = waiting.read();
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto body = answer.json();
  ASSERT_EQ(body.at("choices").as_array().size(), 3u);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(body.at("choices").at(i).at("index").as_int64(), i);
    EXPECT_EQ(text_of(body.at("choices").at(i).at("finish_reason")), "length");
  }
  EXPECT_EQ(body.at("usage").at("prompt_tokens").as_int64(), 3);
  EXPECT_EQ(body.at("usage").at("completion_tokens").as_int64(), 6);
  const auto submits = leaders_[0]->submits();
  ASSERT_EQ(submits.size(), 3u);
  for (uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(submits[i].sampling().seed(), 7 + i);
    EXPECT_EQ(prompt_of(submits[i]), (std::vector<int32_t>{1, 2, 3}));
  }
  EXPECT_TRUE(wait_in_flight(0));
}

TEST_F(Choices, SeveralPromptsStartAtOnceAndAreStreamedByIndex) {
  start_ready({.tokens = {100, 101, 102}});
  const auto answer = client().post("/v1/completions",
                                    R"({"prompt":[[1,2],[3,4,5]],"max_tokens":3,"n":2,"stream":true,
                                        "stream_options":{"include_usage":true}})");
  ASSERT_EQ(answer.status, 200) << answer.body;
  std::map<int64_t, std::string> texts;
  std::map<int64_t, int> finished;
  for (const auto& chunk : answer.chunks()) {
    for (const auto& choice : chunk.at("choices").as_array()) {
      const int64_t index = choice.at("index").as_int64();
      EXPECT_EQ(finished[index], 0) << "nothing comes behind a choice's end";
      texts[index] += text_of(choice.at("text"));
      finished[index] += !choice.at("finish_reason").is_null();
    }
  }
  ASSERT_EQ(texts.size(), 4u);
  const std::vector<int32_t> ids = {100, 101, 102};
  for (const auto& [index, text] : texts) {
    EXPECT_EQ(text, model()->tokenizer->decode(ids, true));
    EXPECT_EQ(finished[index], 1);
  }
  EXPECT_EQ(answer.events().back(), "[DONE]");
  const auto usage = answer.chunks().back().at("usage");
  EXPECT_EQ(usage.at("prompt_tokens").as_int64(), 5);
  EXPECT_EQ(usage.at("completion_tokens").as_int64(), 12);
  for (const auto& submit : leaders_[0]->submits())
    EXPECT_TRUE(prompt_of(submit).size() == 2 || prompt_of(submit).size() == 3);
}

TEST_F(Choices, EveryChoiceOfAChatHasItsRole) {
  start_ready();
  const auto answer =
      client().post("/v1/chat/completions",
                    R"({"messages":[{"role":"user","content":"a"}],"n":2,"max_tokens":2,"stream":true})");
  std::map<int64_t, int> roles;
  for (const auto& chunk : answer.chunks())
    for (const auto& choice : chunk.at("choices").as_array())
      roles[choice.at("index").as_int64()] += choice.at("delta").as_object().contains("role");
  EXPECT_EQ(roles, (std::map<int64_t, int>{{0, 1}, {1, 1}}));
}

TEST_F(Choices, AClientThatLeavesEndsThemAll) {
  start_ready({.hold_after = 1});
  {
    auto leaving = client();
    leaving.send(post_text("/v1/completions", R"({"prompt":["a","b"],"n":2,"max_tokens":5})"));
    ASSERT_TRUE(leaders_[0]->wait_submits(4));
  }
  EXPECT_TRUE(leaders_[0]->wait_cancels(4));
  EXPECT_TRUE(wait_in_flight(0));
  EXPECT_EQ(metric("lowkey_queued_requests"), 0);
}

TEST_F(Choices, OneThatFailsEndsThemAll) {
  start_ready({.hold_after = 0, .error = Error{Code::kInternal, "boom", {}}});
  const auto answer = client().post("/v1/completions", R"({"prompt":["a","b"],"n":2,"max_tokens":5})");
  EXPECT_EQ(answer.status, 500) << answer.body;
  EXPECT_TRUE(wait_in_flight(0));
}

TEST_F(Choices, EachCountsAgainstTheQueue) {
  config_.max_queued = 3;
  start_ready();
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a","n":3,"max_tokens":2})").status, 200);
  const auto refused = client().post("/v1/completions", R"({"prompt":"a","n":4,"max_tokens":2})");
  EXPECT_EQ(refused.status, 429) << refused.body;
  EXPECT_TRUE(wait_in_flight(0));
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a","n":3,"max_tokens":2})").status, 200);
}

TEST_F(Choices, EchoPutsThePromptBeforeTheAnswer) {
  start_ready({.tokens = {100}});
  const auto prompt = model()->tokenizer->encode("One day a boy", false);
  std::string ids;
  for (const int32_t id : prompt) ids += (ids.empty() ? "" : ",") + std::to_string(id);
  const auto answer = client().post(
      "/v1/completions", R"({"prompt":[)" + ids + R"(],"max_tokens":2,"n":2,"echo":true,"logprobs":0})");
  ASSERT_EQ(answer.status, 200) << answer.body;
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), {100, 100});
  const auto body = answer.json();
  for (const auto& choice : body.at("choices").as_array()) {
    EXPECT_EQ(text_of(choice.at("text")), model()->tokenizer->decode(all, true));
    const auto& logprobs = choice.at("logprobs");
    const auto& values = logprobs.at("token_logprobs").as_array();
    ASSERT_EQ(values.size(), all.size());
    EXPECT_TRUE(values[0].is_null());
    for (size_t i = 1; i < prompt.size(); ++i) EXPECT_FLOAT_EQ(values[i].to_number<float>(), -0.25f * i);
    EXPECT_FLOAT_EQ(values.back().to_number<float>(), -0.5f);
    std::string text;
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(logprobs.at("text_offset").at(i).as_int64(), static_cast<int64_t>(text.size()));
      text += text_of(logprobs.at("tokens").at(i));
    }
  }
  const auto submits = leaders_[0]->submits();
  EXPECT_TRUE(submits[0].sampling().prompt_logprobs());
  EXPECT_FALSE(submits[1].sampling().prompt_logprobs()) << "it has them from the first";
}

TEST_F(Choices, ThePromptAloneCanBeScored) {
  start_ready();
  const auto answer =
      client().post("/v1/completions", R"({"prompt":[300,301,302],"max_tokens":0,"echo":true,"logprobs":1})");
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto body = answer.json();
  EXPECT_EQ(body.at("choices").at(0).at("logprobs").at("tokens").as_array().size(), 3u);
  EXPECT_EQ(text_of(body.at("choices").at(0).at("finish_reason")), "length");
  EXPECT_EQ(body.at("usage").at("completion_tokens").as_int64(), 0);
}

TEST_F(Choices, ParametersReachTheEngine) {
  start_ready();
  const auto answer =
      client().post("/v1/completions",
                    R"({"prompt":"a","max_tokens":3,"min_tokens":2,"min_p":0.25,"presence_penalty":1.5,
      "frequency_penalty":-0.5,"repetition_penalty":1.25,"logit_bias":{"7":-3,"5":2.5},"stop_token_ids":[4,9],"priority":-2,
      "user":"u","response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"integer"}}}})");
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto submit = leaders_[0]->submits().at(0);
  const auto& sampling = submit.sampling();
  EXPECT_EQ(sampling.min_tokens(), 2u);
  EXPECT_EQ(sampling.min_p(), 0.25);
  EXPECT_EQ(sampling.presence_penalty(), 1.5);
  EXPECT_EQ(sampling.frequency_penalty(), -0.5);
  EXPECT_EQ(sampling.repetition_penalty(), 1.25);
  ASSERT_EQ(sampling.bias_tokens_size(), 2);
  EXPECT_EQ(sampling.bias_tokens(0), 7);
  EXPECT_EQ(sampling.bias_values(0), -3);
  EXPECT_EQ(sampling.stop_token_ids_size(), 2);
  EXPECT_EQ(sampling.json_schema(), R"({"type":"integer"})");
  EXPECT_EQ(submit.priority(), -2);
  for (const char* body :
       {R"({"prompt":"a","logit_bias":{"999999":1}})", R"({"prompt":"a","stop_token_ids":[999999]})",
        R"({"prompt":"a","min_tokens":17})", R"({"prompt":["a",[]]})"})
    EXPECT_EQ(client().post("/v1/completions", body).status, 400) << body;
}

// A stop string that is complete before min_tokens is text like any other.
TEST_F(Choices, StopStringsWaitForMinTokens) {
  const auto ids = model()->tokenizer->encode("one two", false);
  start_ready({.tokens = ids});
  const auto body = fmt::format(R"({{"prompt":"a","max_tokens":{},"min_tokens":{},"stop":" two"}})",
                                3 * ids.size(), ids.size());
  const auto answer = client().post("/v1/completions", body);
  EXPECT_EQ(text_of(answer.json().at("choices").at(0).at("text")), "one twoone") << answer.body;
}

}  // namespace
}  // namespace lowkey::coordinator
