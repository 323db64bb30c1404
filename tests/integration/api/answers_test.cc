// Plain and streamed answers, as a client of the OpenAI API reads them.
#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

using Answers = ApiTest;
namespace json = boost::json;

std::string text_of(const json::value& value) {
  return json::value_to<std::string>(value);
}

TEST_F(Answers, Completion) {
  start_ready({.tokens = {100, 101}});
  const auto answer =
      client().post("/v1/completions", R"({"model":"demo-model","prompt":[1,2,3],"max_tokens":4})");
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto body = answer.json();
  EXPECT_EQ(text_of(body.at("object")), "text_completion");
  EXPECT_EQ(text_of(body.at("model")), "demo-model");
  EXPECT_EQ(text_of(body.at("id")).substr(0, 5), "cmpl-");
  EXPECT_EQ(text_of(body.at("system_fingerprint")).substr(0, 3), "fp_");
  const auto& choice = body.at("choices").at(0);
  const std::vector<int32_t> ids = {100, 101, 100, 101};
  EXPECT_EQ(text_of(choice.at("text")), model()->tokenizer->decode(ids, true));
  EXPECT_EQ(text_of(choice.at("finish_reason")), "length");
  EXPECT_TRUE(choice.at("logprobs").is_null());
  EXPECT_EQ(
      json::serialize(body.at("usage")),
      R"({"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":1,)"
      R"("cached_tokens_by_tier":{"device":1,"host":0,"disk":0}}})");
}

TEST_F(Answers, ModelDefaultsApplyWhereTheRequestIsSilent) {
  start_ready();
  client().post("/v1/completions", R"({"prompt":"Once upon","max_tokens":1})");
  client().post("/v1/completions",
                R"({"prompt":"Once upon","temperature":0,"top_p":0.5,"top_k":7,"seed":9,"ignore_eos":true})");
  const auto submits = leaders_[0]->submits();
  ASSERT_EQ(submits.size(), 2u);
  EXPECT_DOUBLE_EQ(submits[0].sampling().temperature(), 0.8);  // generation_config.json
  EXPECT_DOUBLE_EQ(submits[0].sampling().top_p(), 0.95);
  EXPECT_NE(submits[0].sampling().seed(), 0u) << "chosen here, so that a retry elsewhere repeats its tokens";
  EXPECT_DOUBLE_EQ(submits[1].sampling().temperature(), 0);
  EXPECT_DOUBLE_EQ(submits[1].sampling().top_p(), 0.5);
  EXPECT_EQ(submits[1].sampling().top_k(), 7);
  EXPECT_EQ(submits[1].sampling().seed(), 9u);
  EXPECT_TRUE(submits[1].sampling().ignore_eos());
  EXPECT_EQ(submits[1].sampling().max_tokens(), 16u);  // OpenAI's default for completions
}

TEST_F(Answers, ChatUsesTheTemplateAndTheRestOfTheContext) {
  start_ready({.hold_after = 0});
  auto waiting = client();
  waiting.send(post_text("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}]})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  const auto submit = leaders_[0]->submits().at(0);
  const std::vector<int32_t> prompt(submit.prompt().begin(), submit.prompt().end());
  EXPECT_EQ(model()->tokenizer->decode(prompt, false),
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(submit.sampling().max_tokens() + prompt.size(), 1024u);
}

TEST_F(Answers, StreamedChatWithUsage) {
  start_ready();
  const auto answer = client().post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}],
      "stream":true,"max_completion_tokens":3,"stream_options":{"include_usage":true}})");
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(answer.headers.at("transfer-encoding"), "chunked");
  EXPECT_EQ(answer.events().back(), "[DONE]");
  const auto chunks = answer.chunks();
  ASSERT_EQ(chunks.size(), 5u) << answer.body;  // role, three texts, usage
  EXPECT_EQ(json::serialize(chunks[0].at("choices").at(0).at("delta")),
            R"({"role":"assistant","content":""})");
  std::string text;
  for (size_t i = 1; i < 4; ++i) {
    const auto& choice = chunks[i].at("choices").at(0);
    text += text_of(choice.at("delta").at("content"));
    EXPECT_EQ(text_of(chunks[i].at("object")), "chat.completion.chunk");
    EXPECT_TRUE(chunks[i].at("usage").is_null());
    EXPECT_EQ(chunks[i].at("id"), chunks[0].at("id"));
    EXPECT_EQ(choice.at("finish_reason").is_null(), i < 3);
  }
  const std::vector<int32_t> ids = {100, 100, 100};
  EXPECT_EQ(text, model()->tokenizer->decode(ids, true));
  EXPECT_EQ(chunks[4].at("choices").as_array().size(), 0u);
  EXPECT_EQ(chunks[4].at("usage").at("completion_tokens").as_int64(), 3);
}

TEST_F(Answers, StreamWithoutUsageHasNoUsageField) {
  start_ready();
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":2})");
  for (const auto& chunk : answer.chunks()) EXPECT_EQ(chunk.as_object().count("usage"), 0u);
  EXPECT_EQ(answer.chunks().size(), 2u);
}

TEST_F(Answers, HalfACharacterIsNeverSent) {
  // The three bytes of the euro sign as three tokens.
  std::vector<int32_t> bytes;
  for (int32_t id = 0; id < model()->tokenizer->vocab_size(); ++id) {
    const std::string text = model()->tokenizer->token_bytes(id);
    for (const char* wanted : {"\xE2", "\x82", "\xAC"})
      if (text == wanted) bytes.push_back(id);
  }
  ASSERT_EQ(bytes.size(), 3u);
  const std::string euro = model()->tokenizer->decode(bytes, true) == "€" ? "€" : "";
  if (euro.empty())
    std::sort(bytes.begin(), bytes.end(), [&](int32_t a, int32_t b) {
      const std::string order = "\xE2\x82\xAC";
      return order.find(model()->tokenizer->token_bytes(a)) < order.find(model()->tokenizer->token_bytes(b));
    });
  start_ready({.tokens = bytes});
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":5})");
  const auto chunks = answer.chunks();
  ASSERT_EQ(chunks.size(), 2u) << answer.body;
  EXPECT_EQ(text_of(chunks[0].at("choices").at(0).at("text")), "€");
  EXPECT_EQ(text_of(chunks[1].at("choices").at(0).at("text")), "\uFFFD");  // cut off by max_tokens
}

TEST_F(Answers, StopStringCutsExactlyAndCancelsTheEngine) {
  const auto ids = model()->tokenizer->encode("one two three four", false);
  start_ready({.tokens = ids, .hold_after = ids.size()});
  for (const char* stream : {"false", "true"}) {
    const auto answer = client().post(
        "/v1/completions",
        fmt::format(R"({{"prompt":"a","max_tokens":500,"stop":["zzz"," three"],"stream":{}}})", stream));
    ASSERT_EQ(answer.status, 200) << answer.body;
    std::string text;
    std::string finish;
    const auto take = [&](const json::value& value) {
      text += text_of(value.at("choices").at(0).at("text"));
      if (const auto& f = value.at("choices").at(0).at("finish_reason"); f.is_string()) finish = text_of(f);
    };
    if (stream == std::string("true")) {
      for (const auto& chunk : answer.chunks()) take(chunk);
    } else {
      take(answer.json());
    }
    EXPECT_EQ(text, "one two");
    EXPECT_EQ(finish, "stop");
  }
  EXPECT_TRUE(leaders_[0]->wait_cancels(2));
}

TEST_F(Answers, LogprobsOfCompletions) {
  start_ready();
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","max_tokens":2,"logprobs":2})");
  const auto logprobs = answer.json().at("choices").at(0).at("logprobs");
  const std::string token = model()->tokenizer->token_bytes(100);
  ASSERT_EQ(logprobs.at("tokens").as_array().size(), 2u);
  EXPECT_EQ(text_of(logprobs.at("tokens").at(0)), token);
  EXPECT_DOUBLE_EQ(logprobs.at("token_logprobs").at(1).as_double(), -0.5);
  EXPECT_EQ(logprobs.at("top_logprobs").at(0).as_object().size(), 2u);
  EXPECT_DOUBLE_EQ(logprobs.at("top_logprobs").at(0).at(token).as_double(), -0.5);
  EXPECT_EQ(logprobs.at("text_offset").at(0).as_int64(), 0);
  EXPECT_EQ(logprobs.at("text_offset").at(1).as_int64(), static_cast<int64_t>(token.size()));
}

TEST_F(Answers, LogprobsOfChat) {
  start_ready();
  const std::string request = R"({"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],
      "max_tokens":2,"logprobs":true,"top_logprobs":3)";
  const auto whole = client().post("/v1/chat/completions", request + "}");
  ASSERT_EQ(whole.status, 200) << whole.body;
  const auto content = whole.json().at("choices").at(0).at("logprobs").at("content");
  ASSERT_EQ(content.as_array().size(), 2u);
  EXPECT_EQ(content.at(0).at("top_logprobs").as_array().size(), 3u);
  EXPECT_DOUBLE_EQ(content.at(0).at("logprob").as_double(), -0.5);
  EXPECT_EQ(content.at(0).at("bytes").as_array().size(), model()->tokenizer->token_bytes(100).size());
  EXPECT_EQ(text_of(whole.json().at("choices").at(0).at("message").at("role")), "assistant");

  const auto streamed = client().post("/v1/chat/completions", request + R"(,"stream":true})");
  size_t tokens = 0;
  for (const auto& chunk : streamed.chunks())
    if (const auto& l = chunk.at("choices").at(0).at("logprobs"); l.is_object())
      tokens += l.at("content").as_array().size();
  EXPECT_EQ(tokens, 2u);
}

TEST_F(Answers, TokenizeAndBack) {
  start();
  const auto tokens = client().post("/tokenize", R"({"prompt":"Once upon a time"})");
  ASSERT_EQ(tokens.status, 200) << tokens.body;
  EXPECT_EQ(tokens.json().at("count").as_int64(),
            static_cast<int64_t>(tokens.json().at("tokens").as_array().size()));
  EXPECT_EQ(tokens.json().at("max_model_len").as_int64(), 1024);
  const auto back =
      client().post("/detokenize", json::serialize(json::object{{"tokens", tokens.json().at("tokens")}}));
  EXPECT_EQ(text_of(back.json().at("prompt")), "Once upon a time");
}

TEST_F(Answers, LongTextIsTokenizedOffTheInputOutputThread) {
  start();
  std::string text;
  while (text.size() < 200'000) text += "It was a dark and stormy night; ";
  const auto answer = client().post("/tokenize", json::serialize(json::object{{"prompt", text}}));
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json().at("count").as_int64(),
            static_cast<int64_t>(model()->tokenizer->encode(text, true).size()));
}

TEST_F(Answers, ModelsVersionAndHealth) {
  start();
  const auto models = client().get("/v1/models").json();
  EXPECT_EQ(text_of(models.at("data").at(0).at("id")), "demo-model");
  EXPECT_EQ(text_of(models.at("object")), "list");
  EXPECT_EQ(models.at("data").as_array().size(), 1u);
  EXPECT_EQ(text_of(client().get("/v1/models/demo-model").json().at("object")), "model");
  EXPECT_EQ(text_of(client().get("/v1/models/demo%2Dmodel").json().at("id")), "demo-model");
  EXPECT_EQ(client().get("/v1/models/other").status, 404);
  EXPECT_EQ(client().get("/v1/models/demo-model%").status, 404);
  EXPECT_EQ(client().get("/v1/models/demo%2-model").status, 404);
  EXPECT_EQ(client().get("/health").status, 200);
  EXPECT_TRUE(client().get("/version").json().at("version").is_string());
}

}  // namespace
}  // namespace lowkey::coordinator
