#include "coordinator/api/generation_request.h"

#include <gtest/gtest.h>

namespace lowkey::coordinator {
namespace {

constexpr SamplingDefaults kDefaults{.temperature = 0.7, .top_p = 0.9, .top_k = 40};

GenerationRequest parsed(Endpoint endpoint, const std::string& body) {
  auto result = parse_generation(endpoint, body, kDefaults);
  EXPECT_TRUE(result.ok()) << body << ": " << (result.ok() ? "" : result.error().message);
  return result.ok() ? *std::move(result) : GenerationRequest{};
}
GenerationRequest completion(const std::string& fields) {
  return parsed(Endpoint::kCompletions, R"({"prompt":"a")" + (fields.empty() ? "" : "," + fields) + "}");
}
GenerationRequest chat(const std::string& fields) {
  return parsed(Endpoint::kChat, R"({"messages":[{"role":"user","content":"a"}])" +
                                     (fields.empty() ? "" : "," + fields) + "}");
}

Error refused(Endpoint endpoint, const std::string& body) {
  auto result = parse_generation(endpoint, body, kDefaults);
  EXPECT_FALSE(result.ok()) << body;
  if (result.ok()) return {};
  EXPECT_EQ(result.error().code, Code::kInvalidArgument);
  EXPECT_FALSE(result.error().message.empty());
  return result.error();
}

TEST(GenerationRequest, PromptForms) {
  EXPECT_EQ(std::get<std::string>(parsed(Endpoint::kCompletions, R"({"prompt":"héllo"})").input), "héllo");
  EXPECT_EQ(std::get<std::string>(parsed(Endpoint::kCompletions, R"({"prompt":["a"]})").input), "a");
  const std::vector<int32_t> ids = {1, 2, 3};
  EXPECT_EQ(std::get<std::vector<int32_t>>(parsed(Endpoint::kCompletions, R"({"prompt":[1,2,3.0]})").input),
            ids);
  EXPECT_EQ(std::get<std::vector<int32_t>>(parsed(Endpoint::kCompletions, R"({"prompt":[[1,2,3]]})").input),
            ids);
}

TEST(GenerationRequest, DefaultsAndNull) {
  for (const auto& request :
       {completion(""), completion(R"("temperature":null,"top_p":null,"top_k":null,"stop":null,
         "max_tokens":null,"seed":null,"stream":null,"logprobs":null,"stream_options":null)")}) {
    EXPECT_EQ(request.temperature, 0.7);
    EXPECT_EQ(request.top_p, 0.9);
    EXPECT_EQ(request.top_k, 40);
    EXPECT_FALSE(request.seed || request.max_tokens);
    EXPECT_TRUE(request.stop.empty());
    EXPECT_FALSE(request.stream || request.logprobs || request.include_usage || request.ignore_eos);
  }
}

TEST(GenerationRequest, Values) {
  const auto request =
      completion(R"("model":"m","temperature":0,"top_p":1,"top_k":-1,"seed":-5,"max_tokens":7,
      "stop":["x","y"],"logprobs":0,"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true)");
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(request.temperature, 0);
  EXPECT_EQ(request.top_p, 1);
  EXPECT_EQ(request.top_k, 0);  // off
  EXPECT_EQ(request.seed, static_cast<uint64_t>(-5));
  EXPECT_EQ(request.max_tokens, 7u);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(request.logprobs);  // of the sampled tokens alone
  EXPECT_EQ(request.top_logprobs, 0u);
  EXPECT_TRUE(request.stream && request.include_usage && request.ignore_eos);
  EXPECT_EQ(completion(R"("stop":"z")").stop, std::vector<std::string>{"z"});
}

TEST(GenerationRequest, Chat) {
  const auto request = parsed(Endpoint::kChat, R"({"messages":[
      {"role":"developer","content":"be brief"},
      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"Ann"},
      {"role":"assistant","content":""}],
      "max_tokens":3,"max_completion_tokens":4,"logprobs":true,"top_logprobs":20})");
  const auto& messages = std::get<std::vector<ChatMessage>>(request.input);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "a\nb");
  EXPECT_EQ(messages[1].name, "Ann");
  EXPECT_EQ(messages[2].content, "");
  EXPECT_EQ(request.max_tokens, 4u);
  EXPECT_TRUE(request.logprobs);
  EXPECT_EQ(request.top_logprobs, 20u);
}

TEST(GenerationRequest, EveryBadValueIsRefusedByName) {
  const std::pair<const char*, const char*> both[] = {
      {R"("model":1)", "model"},
      {R"("temperature":-0.1)", "temperature"},
      {R"("temperature":2.1)", "temperature"},
      {R"("temperature":"hot")", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("top_p":1.5)", "top_p"},
      {R"("top_k":-2)", "top_k"},
      {R"("top_k":1.5)", "top_k"},
      {R"("seed":0.5)", "seed"},
      {R"("seed":1e300)", "seed"},
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":99999999999)", "max_tokens"},
      {R"("stop":[1])", "stop"},
      {R"("stop":{})", "stop"},
      {R"("stop":"")", "stop"},
      {R"("stop":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])", "stop"},
      {R"("stream":1)", "stream"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("stream":true,"stream_options":1)", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
      {R"("ignore_eos":"yes")", "ignore_eos"},
      {R"("n":2)", "n"},
      {R"("presence_penalty":0.5)", "presence_penalty"},
      {R"("logit_bias":{"5":-100})", "logit_bias"},
      {R"("min_tokens":3)", "min_tokens"},
      {R"("response_format":{"type":"json_object"})", "response_format"},
  };
  for (const auto& [fields, param] : both) {
    EXPECT_EQ(refused(Endpoint::kCompletions, R"({"prompt":"a",)" + std::string(fields) + "}").param, param)
        << fields;
    EXPECT_EQ(refused(Endpoint::kChat,
                      R"({"messages":[{"role":"user","content":"a"}],)" + std::string(fields) + "}")
                  .param,
              param)
        << fields;
  }
}

TEST(GenerationRequest, BadPrompts) {
  for (const char* body : {R"({})", R"({"prompt":1})", R"({"prompt":{}})", R"({"prompt":["a","b"]})",
                           R"({"prompt":[1,"a"]})", R"({"prompt":[1.5]})", R"({"prompt":[-1]})",
                           R"({"prompt":[[1],[2]]})", R"({"prompt":[3000000000]})", R"({"prompt":[true]})"})
    EXPECT_EQ(refused(Endpoint::kCompletions, body).param, "prompt") << body;
  EXPECT_EQ(refused(Endpoint::kCompletions, R"({"prompt":"a","logprobs":6})").param, "logprobs");
  EXPECT_EQ(refused(Endpoint::kCompletions, R"({"prompt":"a","echo":true})").param, "echo");
}

TEST(GenerationRequest, BadMessages) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "messages"},
      {R"({"messages":"hi"})", "messages"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":["hi"]})", "messages[0]"},
      {R"({"messages":[{"content":"a"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user","content":"a"},{"role":"tool","content":"a"}]})", "messages[1].role"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":5}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[5]}]})", "messages[0].content[0]"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})", "messages[0].content[0].type"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "messages[0].content[0].text"},
      {R"({"messages":[{"role":"assistant","content":"a","tool_calls":[]}]})", "messages[0].tool_calls"},
      {R"({"messages":[{"role":"user","content":"a"}],"logprobs":2})", "logprobs"},
      {R"({"messages":[{"role":"user","content":"a"}],"top_logprobs":2})", "top_logprobs"},
      {R"({"messages":[{"role":"user","content":"a"}],"logprobs":true,"top_logprobs":21})", "top_logprobs"},
      {R"({"messages":[{"role":"user","content":"a"}],"tools":[{}]})", "tools"},
  };
  for (const auto& [body, param] : cases) EXPECT_EQ(refused(Endpoint::kChat, body).param, param) << body;
}

TEST(GenerationRequest, HowTheCacheIsUsed) {
  EXPECT_EQ(completion("").min_levels, 0u);
  EXPECT_EQ(completion(R"("min_levels":2)").min_levels, 2u);
  EXPECT_EQ(chat(R"("min_levels":"all")").min_levels, 3u);
  EXPECT_EQ(chat(R"("cache_salt":"team a")").cache_salt, "team a");
  for (const char* levels : {"0", "4", "1.5", "\"most\"", "true"})
    EXPECT_EQ(
        refused(Endpoint::kCompletions, fmt::format(R"({{"prompt":"a","min_levels":{}}})", levels)).param,
        "min_levels");
  for (const std::string& salt : {std::string("7"), '"' + std::string(129, 's') + '"'})
    EXPECT_EQ(refused(Endpoint::kCompletions, fmt::format(R"({{"prompt":"a","cache_salt":{}}})", salt)).param,
              "cache_salt");
}

TEST(GenerationRequest, NeutralAndUnknownFieldsPass) {
  completion(
      R"("n":1,"best_of":1,"echo":false,"suffix":null,"presence_penalty":0,"frequency_penalty":0.0,"logit_bias":{},
      "user":"u","some_future_field":{"x":1})");
  chat(
      R"("n":1,"tools":[],"tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],"store":false,
      "metadata":{"a":"b"},"user":"u")");
}

TEST(GenerationRequest, MalformedJsonNamesThePosition) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "at byte 0"},
      {"{\"prompt\": tru }", "at byte 11"},
      {"{} {}", "at byte 3"},
      {"{\"prompt\":\"\xff\"}", "at byte 11"},
      {"[1]", "must be a JSON object"},
      {"\"a\"", "must be a JSON object"},
  };
  for (const auto& [body, text] : cases) {
    const auto error = refused(Endpoint::kCompletions, body);
    EXPECT_NE(error.message.find(text), std::string::npos) << body << ": " << error.message;
    EXPECT_EQ(error.param, "");
  }
  refused(Endpoint::kCompletions,
          R"({"prompt":)" + std::string(100, '[') + std::string(100, ']') + "}");  // too deep
}

TEST(TokenizeRequest, Forms) {
  EXPECT_EQ(std::get<std::string>(parse_tokenize(R"({"prompt":"a"})")->input), "a");
  const auto messages =
      parse_tokenize(R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false})");
  ASSERT_TRUE(messages.ok());
  EXPECT_FALSE(messages->add_generation_prompt);
  EXPECT_EQ(std::get<std::vector<ChatMessage>>(messages->input).size(), 1u);
  EXPECT_EQ(parse_tokenize(R"({})").error().param, "prompt");
  EXPECT_EQ(parse_detokenize(R"({"tokens":"a"})").error().param, "tokens");
  EXPECT_EQ(parse_detokenize(R"({"tokens":[1,2]})")->tokens.size(), 2u);
}

}  // namespace
}  // namespace lowkey::coordinator
