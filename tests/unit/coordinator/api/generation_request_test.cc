#include "coordinator/api/generation_request.h"

#include <gtest/gtest.h>

namespace lowkey::coordinator {
namespace {

constexpr SamplingDefaults kDefaults{
    .temperature = 0.7, .top_p = 0.9, .top_k = 40, .min_p = 0.05, .repetition_penalty = 1.05};

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
  using Ids = std::vector<int32_t>;
  const auto inputs = [](const char* prompt) {
    return parsed(Endpoint::kCompletions, fmt::format(R"({{"prompt":{}}})", prompt)).inputs;
  };
  EXPECT_EQ(inputs("\"héllo\""), std::vector<Prompt>{"héllo"});
  EXPECT_EQ(inputs("[\"a\"]"), std::vector<Prompt>{"a"});
  EXPECT_EQ(inputs("[1,2,3.0]"), std::vector<Prompt>{(Ids{1, 2, 3})});
  EXPECT_EQ(inputs("[[1,2,3]]"), std::vector<Prompt>{(Ids{1, 2, 3})});
  EXPECT_EQ(inputs("[\"a\",\"b\"]"), (std::vector<Prompt>{"a", "b"}));
  EXPECT_EQ(inputs("[[1],[2,3]]"), (std::vector<Prompt>{Ids{1}, Ids{2, 3}}));
  EXPECT_EQ(inputs("[\"a\",[2,3]]"), (std::vector<Prompt>{"a", Ids{2, 3}}));
}

TEST(GenerationRequest, ResponseFormat) {
  EXPECT_EQ(chat(R"("response_format":{"type":"text"})").json_schema, "");
  EXPECT_EQ(chat(R"("response_format":{"type":"json_object"})").json_schema, R"({"type":"object"})");
  EXPECT_EQ(chat(R"("response_format":{"type":"json_schema","json_schema":{"schema":{"type":"null"}}})")
                .json_schema,
            R"({"type":"null"})");
}

TEST(GenerationRequest, HowTokensAreChosen) {
  const auto request = completion(
      R"("min_p":0.1,"presence_penalty":-2,"frequency_penalty":1.5,"repetition_penalty":1.2,"n":3,
      "logit_bias":{"5":-100,"70":2.5},"stop_token_ids":[3,4],"max_tokens":9,"min_tokens":9,"priority":-7,
      "echo":true,"user":"u")");
  EXPECT_EQ(request.min_p, 0.1);
  EXPECT_EQ(request.presence_penalty, -2);
  EXPECT_EQ(request.frequency_penalty, 1.5);
  EXPECT_EQ(request.repetition_penalty, 1.2);
  EXPECT_EQ(request.n, 3u);
  EXPECT_EQ(request.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -100.f}, {70, 2.5f}}));
  EXPECT_EQ(request.stop_token_ids, (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(request.min_tokens, 9u);
  EXPECT_EQ(request.priority, -7);
  EXPECT_TRUE(request.echo);
  EXPECT_EQ(completion(R"("echo":true,"max_tokens":0)").max_tokens, 0u);
  const auto shown = completion(
      R"("skip_special_tokens":false,"include_stop_str_in_output":true,"add_special_tokens":false)");
  EXPECT_TRUE(!shown.skip_special_tokens && shown.include_stop && !shown.add_special_tokens);
  EXPECT_TRUE(chat(R"("add_special_tokens":true)").add_special_tokens);
  EXPECT_FALSE(chat("").add_special_tokens) << "the template writes them";
  const auto silent = completion("");
  EXPECT_TRUE(silent.skip_special_tokens && !silent.include_stop && silent.add_special_tokens);
  EXPECT_TRUE(silent.n == 1 && silent.min_p == 0.05 && silent.presence_penalty == 0 &&
              silent.frequency_penalty == 0 && silent.repetition_penalty == 1.05 &&
              silent.logit_bias.empty() && silent.stop_token_ids.empty() && silent.min_tokens == 0 &&
              silent.priority == 0 && !silent.echo);
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
  const auto& messages = request.messages;
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "a\nb");
  EXPECT_EQ(messages[1].name, "Ann");
  EXPECT_EQ(messages[2].content, "");
  EXPECT_EQ(request.max_tokens, 4u);
  EXPECT_TRUE(request.logprobs);
  EXPECT_EQ(request.top_logprobs, 20u);
}

TEST(GenerationRequest, WhatTheTemplateIsGiven) {
  EXPECT_TRUE(chat("").chat.add_generation_prompt);
  EXPECT_FALSE(chat(R"("add_generation_prompt":false)").chat.add_generation_prompt);
  const auto continued = chat(R"("continue_final_message":true)");
  EXPECT_TRUE(continued.chat.continue_final_message && !continued.chat.add_generation_prompt);
  EXPECT_EQ(chat(R"("chat_template_kwargs":{"enable_thinking":false,"n":[1,2.5,null]})").chat.variables,
            R"({"enable_thinking":false,"n":[1,2.5E0,null]})");
  const std::pair<const char*, const char*> refusals[] = {
      {R"("continue_final_message":true,"add_generation_prompt":true)", "continue_final_message"},
      {R"("continue_final_message":1)", "continue_final_message"},
      {R"("chat_template_kwargs":[])", "chat_template_kwargs"},
      {R"("chat_template_kwargs":{"messages":[]})", "chat_template_kwargs"},
      {R"("chat_template_kwargs":{"add_generation_prompt":true})", "chat_template_kwargs"},
  };
  const std::string messages = R"({"messages":[{"role":"user","content":"a"}],)";
  for (const auto& [fields, param] : refusals)
    EXPECT_EQ(refused(Endpoint::kChat, messages + fields + "}").param, param) << fields;
  const std::string large(GenerationRequest::kMaxTemplateVariableBytes, 'x');
  EXPECT_EQ(refused(Endpoint::kChat, messages + R"("chat_template_kwargs":{"a":")" + large + "\"}}").param,
            "chat_template_kwargs");
}

// Whatever would change the answer: of OpenAI, vLLM and llama.cpp.
TEST(GenerationRequest, ParametersThatAreNotHonouredAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"guided_json", R"({"type":"object"})"},
      {"guided_regex", R"("a+")"},
      {"guided_choice", R"(["a","b"])"},
      {"guided_grammar", R"("root ::= 1")"},
      {"structured_outputs", R"({"json":{}})"},
      {"chat_template", R"("{{ x }}")"},
      {"documents", R"([{"text":"a"}])"},
      {"prompt_embeds", R"("AAAA")"},
      {"prompt_logprobs", "0"},
      {"allowed_token_ids", "[1]"},
      {"bad_words", R"(["a"])"},
      {"truncate_prompt_tokens", "5"},
      {"use_beam_search", "true"},
      {"length_penalty", "0.5"},
      {"early_stopping", "true"},
      {"return_token_ids", "true"},
      {"return_tokens_as_token_ids", "true"},
      {"grammar", R"("root ::= 1")"},
      {"json_schema", R"({"type":"object"})"},
      {"n_predict", "5"},
      {"n_probs", "5"},
      {"repeat_penalty", "1.1"},
      {"typical_p", "0.9"},
      {"tfs_z", "0.9"},
      {"top_n_sigma", "1"},
      {"mirostat", "2"},
      {"dynatemp_range", "0.5"},
      {"dry_multiplier", "0.8"},
      {"xtc_probability", "0.5"},
  };
  for (const auto& [name, value] : cases) {
    const auto error =
        refused(Endpoint::kCompletions, fmt::format(R"({{"prompt":"a","{}":{}}})", name, value));
    EXPECT_EQ(error.param, name);
    EXPECT_NE(error.message.find("not supported"), std::string::npos) << error.message;
  }
  EXPECT_EQ(refused(Endpoint::kCompletions, R"({"prompt":"a","guided_json":{}})").message,
            "'guided_json' = an object is not supported; use 'response_format'.");
  completion(
      R"("guided_json":null,"structured_outputs":{},"bad_words":[],"use_beam_search":false,"length_penalty":1,
      "early_stopping":false,"grammar":"","json_schema":{},"n_probs":0,"repeat_penalty":1.0,"typical_p":1.0,
      "mirostat":0,"dry_multiplier":0.0,"xtc_probability":0.0,"top_n_sigma":-1.0,"documents":[])");
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
      {R"("n":0)", "n"},
      {R"("n":65)", "n"},
      {R"("best_of":2)", "best_of"},
      {R"("min_p":-0.1)", "min_p"},
      {R"("min_p":1.1)", "min_p"},
      {R"("presence_penalty":2.1)", "presence_penalty"},
      {R"("frequency_penalty":-2.1)", "frequency_penalty"},
      {R"("frequency_penalty":"much")", "frequency_penalty"},
      {R"("repetition_penalty":0)", "repetition_penalty"},
      {R"("logit_bias":{"5":-100.5})", "logit_bias"},
      {R"("logit_bias":{"five":1})", "logit_bias"},
      {R"("logit_bias":{"-5":1})", "logit_bias"},
      {R"("logit_bias":{"5":null})", "logit_bias"},
      {R"("logit_bias":[5])", "logit_bias"},
      {R"("min_tokens":-1)", "min_tokens"},
      {R"("max_tokens":3,"min_tokens":4)", "min_tokens"},
      {R"("stop_token_ids":5)", "stop_token_ids"},
      {R"("stop_token_ids":["a"])", "stop_token_ids"},
      {R"("priority":1.5)", "priority"},
      {R"("user":5)", "user"},
      {R"("echo":1)", "echo"},
      {R"("response_format":"json")", "response_format"},
      {R"("response_format":{})", "response_format.type"},
      {R"("response_format":{"type":"yaml"})", "response_format.type"},
      {R"("response_format":{"type":"json_schema"})", "response_format.json_schema"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"x"}})",
       "response_format.json_schema"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":{"not":{}}}})",
       "response_format.json_schema"},
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
  for (const char* body : {R"({})", R"({"prompt":1})", R"({"prompt":{}})", R"({"prompt":["a",{}]})",
                           R"({"prompt":[1,"a"]})", R"({"prompt":[1.5]})", R"({"prompt":[-1]})",
                           R"({"prompt":[[1],[-2]]})", R"({"prompt":[3000000000]})", R"({"prompt":[true]})"})
    EXPECT_EQ(refused(Endpoint::kCompletions, body).param, "prompt") << body;
  EXPECT_EQ(refused(Endpoint::kCompletions, R"({"prompt":"a","logprobs":6})").param, "logprobs");
  EXPECT_EQ(refused(Endpoint::kCompletions, R"({"prompt":["a","b"],"n":33})").param, "n");
  std::string many = "\"a\"";
  for (int i = 0; i < 64; ++i) many += ",\"a\"";
  EXPECT_EQ(refused(Endpoint::kCompletions, R"({"prompt":[)" + many + "]}").param, "prompt");
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
      {R"({"messages":[{"role":"user","content":"a"}],"echo":true})", "echo"},
  };
  for (const auto& [body, param] : cases) EXPECT_EQ(refused(Endpoint::kChat, body).param, param) << body;
}

TEST(GenerationRequest, HowTheCacheIsUsed) {
  EXPECT_EQ(completion("").min_levels, 0u);
  EXPECT_EQ(completion(R"("min_levels":2)").min_levels, 2u);
  EXPECT_EQ(chat(R"("min_levels":"all")").min_levels, 4u) << "more than any layout has";
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
  EXPECT_FALSE(messages->chat.add_generation_prompt);
  EXPECT_FALSE(messages->add_special_tokens);
  EXPECT_EQ(std::get<std::vector<ChatMessage>>(messages->input).size(), 1u);
  EXPECT_EQ(parse_tokenize(R"({})").error().param, "prompt");
  EXPECT_EQ(parse_detokenize(R"({"tokens":"a"})").error().param, "tokens");
  EXPECT_EQ(parse_detokenize(R"({"tokens":[1,2]})")->tokens.size(), 2u);
}

}  // namespace
}  // namespace lowkey::coordinator
