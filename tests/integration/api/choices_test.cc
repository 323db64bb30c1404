// Several answers to one request: prompts, n, echo.
#include "coordinator/text/utf8.h"
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

// A text comes back as it was sent: not as its tokens read, whose special ones would be missing.
TEST_F(Choices, EchoGivesATextBackAsItWasSent) {
  start_ready({.tokens = {100}});
  const std::string prompt = "<|im_start|>user\nhe <|im_end|>\n  x ";
  const json::object request{{"prompt", prompt}, {"max_tokens", 1}, {"echo", true}, {"logprobs", 0}};
  const auto answer = client().post("/v1/completions", json::serialize(request));
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto body = answer.json();
  const auto& choice = body.at("choices").at(0);
  EXPECT_EQ(text_of(choice.at("text")), prompt + model()->tokenizer->token_bytes(100));
  const auto& logprobs = choice.at("logprobs");
  const auto& tokens = logprobs.at("tokens").as_array();
  const auto& offsets = logprobs.at("text_offset").as_array();
  const auto ids = prompt_of(leaders_[0]->submits().at(0));
  ASSERT_EQ(tokens.size(), ids.size() + 1);
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(offsets.at(i).as_int64(), static_cast<int64_t>(count_characters(text))) << i;
    text += model()->tokenizer->token_bytes(ids[i]);
  }
  EXPECT_EQ(text, prompt);
  EXPECT_EQ(offsets.back().as_int64(), static_cast<int64_t>(count_characters(prompt)));
}

TEST_F(Choices, APromptThatFillsTheContextCanBeScored) {
  start_ready({.max_sequence_tokens = 5});
  const char* body = R"({"prompt":[300,301,302,303,304],"max_tokens":0,"echo":true,"logprobs":1,"n":2})";
  const auto answer = client().post("/v1/completions", body);
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json().at("choices").at(1).at("logprobs").at("tokens").as_array().size(), 5u);
  EXPECT_EQ(leaders_[0]->submits().at(0).sampling().max_tokens(), 0u);
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":[1,2,3,4,5,6],"max_tokens":0,"echo":true})").status,
            400);
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

// Written beside the I/O thread, with everything in it, and whoever has left meanwhile is not missed.
TEST_F(Choices, AnAnswerMayHaveVeryManyLogProbabilities) {
  start_ready({.tokens = {100, 101}});
  const auto answer = client().post("/v1/chat/completions",
                                    R"({"messages":[{"role":"user","content":"a"}],"n":8,"max_tokens":200,
                                       "logprobs":true,"top_logprobs":20})");
  ASSERT_EQ(answer.status, 200) << answer.body.substr(0, 200);
  EXPECT_EQ(answer.headers.count("x-request-id"), 1u);
  const auto body = answer.json();
  ASSERT_EQ(body.at("choices").as_array().size(), 8u);
  for (const auto& choice : body.at("choices").as_array()) {
    const auto& content = choice.at("logprobs").at("content").as_array();
    ASSERT_EQ(content.size(), 200u);
    EXPECT_EQ(content.back().at("top_logprobs").as_array().size(), 20u);
  }
  EXPECT_EQ(body.at("usage").at("completion_tokens").as_int64(), 8 * 200);
  EXPECT_TRUE(wait_in_flight(0));
}

// Whatever the length of its prompt: what is longer than a stream's buffer has not been left unread.
TEST_F(Choices, AnEchoMayBeLongerThanTheBufferOfAStream) {
  limits_.stream_buffer_bytes = 2 << 10;
  start_ready({.tokens = {100}});
  json::array ids;
  for (int i = 0; i < 200; ++i) ids.push_back(300 + i);
  for (const int max_tokens : {0, 2}) {
    const json::object request{{"prompt", json::array{ids, ids}},
                               {"n", 2},
                               {"max_tokens", max_tokens},
                               {"echo", true},
                               {"logprobs", 0},
                               {"stream", true}};
    const auto answer = client().post("/v1/completions", json::serialize(request));
    ASSERT_EQ(answer.status, 200) << answer.body;
    ASSERT_FALSE(answer.events().empty());
    EXPECT_EQ(answer.events().back(), "[DONE]");
    std::map<int64_t, size_t> tokens;
    for (const auto& chunk : answer.chunks()) {
      const auto& choice = chunk.at("choices").at(0);
      if (choice.at("logprobs").is_object())
        tokens[choice.at("index").as_int64()] += choice.at("logprobs").at("tokens").as_array().size();
    }
    for (int64_t index = 0; index < 4; ++index) EXPECT_EQ(tokens[index], 200u + max_tokens) << index;
  }
  EXPECT_EQ(metric("lowkey_clients_cut_off_total"), 0);
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

TEST_F(Choices, SpecialTokensAndStopStringsAreShownWhereWanted) {
  const auto ids = model()->tokenizer->encode("<|im_end|>one two", false);
  start_ready({.tokens = ids, .hold_after = ids.size()});
  const auto text = [&](const std::string& fields) {
    const auto answer = client().post(
        "/v1/completions", R"({"prompt":"a","max_tokens":500,"stop":["zzz"," two"])" + fields + "}");
    return text_of(answer.json().at("choices").at(0).at("text"));
  };
  EXPECT_EQ(text(""), "one");
  EXPECT_EQ(text(R"(,"include_stop_str_in_output":true)"), "one two");
  EXPECT_EQ(text(R"(,"skip_special_tokens":false)"), "<|im_end|>one");
}

// The token that ended an answer is told among its tokens, and is no part of its text.
TEST_F(Choices, TheTokenThatStopsIsNotShown) {
  const auto ids = model()->tokenizer->encode("one two", false);
  start_ready({.tokens = ids, .stops = true});
  const auto post = [&](const std::string& fields) {
    return client()
        .post("/v1/completions", fmt::format(R"({{"prompt":"a","max_tokens":{}{}}})", ids.size(), fields))
        .json();
  };
  const auto answer = post("");
  const std::vector<int32_t> shown(ids.begin(), ids.end() - 1);
  EXPECT_EQ(text_of(answer.at("choices").at(0).at("text")), model()->tokenizer->decode(shown, true));
  EXPECT_EQ(text_of(answer.at("choices").at(0).at("finish_reason")), "stop");
  EXPECT_EQ(answer.at("usage").at("completion_tokens").to_number<size_t>(), ids.size());
  EXPECT_EQ(text_of(post(R"(,"include_stop_str_in_output":true)").at("choices").at(0).at("text")), "one two");
}

TEST_F(Choices, TheTemplateGetsItsVariables) {
  start_ready();
  const std::string messages = R"({"max_tokens":1,"messages":[{"role":"user","content":"hi"},)"
                               R"({"role":"assistant","content":"It is"}],)";
  const auto prompt = [&](const std::string& fields) {
    const auto answer = client().post("/v1/chat/completions", messages + fields + "}");
    EXPECT_EQ(answer.status, 200) << answer.body;
    return model()->tokenizer->decode(prompt_of(leaders_[0]->submits().back()), false);
  };
  const std::string said = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nIt is";
  EXPECT_EQ(prompt(R"("continue_final_message":true)"), said);
  EXPECT_EQ(prompt(R"("add_generation_prompt":false)"), said + "<|im_end|>\n");
  EXPECT_EQ(prompt(R"("chat_template_kwargs":{"x":1})"), said + "<|im_end|>\n<|im_start|>assistant\n");
  const auto tokens = client().post("/tokenize", messages + R"("continue_final_message":true})");
  EXPECT_EQ(tokens.json().at("count").to_number<size_t>(), model()->tokenizer->encode(said, false).size());
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
