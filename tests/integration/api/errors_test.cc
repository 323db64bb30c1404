// Every error that a client of the API can meet, in OpenAI's shape.
#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

using Errors = ApiTest;
namespace json = boost::json;

void expect_error(const ClientAnswer& answer, int status, const std::string& code,
                  const std::string& param = "") {
  ASSERT_EQ(answer.status, status) << answer.body;
  const auto error = answer.json().at("error");
  EXPECT_TRUE(error.at("message").is_string());
  EXPECT_TRUE(error.at("type").is_string());
  EXPECT_EQ(error.at("code").is_null() ? "" : json::value_to<std::string>(error.at("code")), code)
      << answer.body;
  EXPECT_EQ(error.at("param").is_null() ? "" : json::value_to<std::string>(error.at("param")), param)
      << answer.body;
}

std::string message_of(const ClientAnswer& answer) {
  return json::value_to<std::string>(answer.json().at("error").at("message"));
}

TEST_F(Errors, BadRequests) {
  start_ready();
  auto connection = client();  // one for all: errors do not end it
  auto answer = connection.post("/v1/completions", R"({"prompt": "a", )");
  expect_error(answer, 400, "");
  EXPECT_NE(message_of(answer).find("at byte 16"), std::string::npos) << message_of(answer);
  expect_error(connection.post("/v1/completions", R"([1])"), 400, "");
  expect_error(connection.post("/v1/completions", R"({})"), 400, "", "prompt");
  expect_error(connection.post("/v1/completions", R"({"prompt":"a","temperature":3})"), 400, "",
               "temperature");
  expect_error(connection.post("/v1/completions", R"({"prompt":"a","best_of":2})"), 400, "", "best_of");
  expect_error(connection.post("/v1/completions", R"({"prompt":[1,99999]})"), 400, "", "prompt");
  expect_error(connection.post("/v1/completions", R"({"prompt":[]})"), 400, "", "prompt");
  expect_error(connection.post("/v1/chat/completions", R"({"messages":[]})"), 400, "", "messages");
  expect_error(connection.post("/tokenize", R"({"prompt":1})"), 400, "", "prompt");
  expect_error(connection.post("/detokenize", R"({"tokens":[-1]})"), 400, "", "tokens");
  EXPECT_EQ(leaders_[0]->submits().size(), 0u);
}

TEST_F(Errors, ContextLength) {
  start_ready({.max_sequence_tokens = 100});
  const auto answer = client().post("/v1/completions", R"({"prompt":[1,2,3],"max_tokens":98})");
  expect_error(answer, 400, "context_length_exceeded", "prompt");
  EXPECT_EQ(message_of(answer),
            "This model's maximum context length is 100 tokens. However, you requested 101 tokens (3 in the "
            "prompt, "
            "98 for the completion).");
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":[1,2,3],"max_tokens":97})").status, 200);
  // The default gives way.
  json::array prompt(95, 1);
  EXPECT_EQ(client().post("/v1/completions", json::serialize(json::object{{"prompt", prompt}})).status, 200);
  EXPECT_EQ(leaders_[0]->submits().back().sampling().max_tokens(), 5u);
  prompt.resize(100, 1);
  expect_error(client().post("/v1/completions", json::serialize(json::object{{"prompt", prompt}})), 400,
               "context_length_exceeded", "prompt");
}

TEST_F(Errors, UnknownModelAndRoute) {
  start_ready();
  expect_error(client().post("/v1/completions", R"({"model":"gpt-4","prompt":"a"})"), 404, "model_not_found",
               "model");
  expect_error(client().post("/tokenize", R"({"model":"gpt-4","prompt":"a"})"), 404, "model_not_found",
               "model");
  expect_error(client().get("/v1/models/gpt-4"), 404, "model_not_found", "model");
  expect_error(client().get("/v2/completions"), 404, "not_found");
  expect_error(client().get("/"), 404, "not_found");
}

TEST_F(Errors, WrongMethod) {
  start();
  auto answer = client().get("/v1/completions");
  expect_error(answer, 405, "method_not_allowed");
  EXPECT_EQ(answer.headers.at("allow"), "POST, OPTIONS");
  answer = client().post("/health", "");
  expect_error(answer, 405, "method_not_allowed");
  EXPECT_EQ(answer.headers.at("allow"), "GET, HEAD, OPTIONS");
  auto connection = client();
  connection.send("OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n");
  answer = connection.read();
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers.at("allow"), "POST, OPTIONS");
  connection.send("HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
  answer = connection.read(true);
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers.at("content-length"), std::to_string(connection.get("/v1/models").body.size()));
}

TEST_F(Errors, ApiKey) {
  config_.api_key = "sk-secret";
  start_ready();
  for (const char* path : {"/v1/models", "/metrics", "/version", "/nowhere"}) {
    expect_error(client().get(path), 401, "invalid_api_key");
    expect_error(client().get(path, "Authorization: Bearer sk-secre\r\n"), 401, "invalid_api_key");
    expect_error(client().get(path, "Authorization: Bearer sk-secret2\r\n"), 401, "invalid_api_key");
    expect_error(client().get(path, "Authorization: Basic sk-secret\r\n"), 401, "invalid_api_key");
  }
  expect_error(client().post("/v1/completions", R"({"prompt":"a"})"), 401, "invalid_api_key");
  EXPECT_EQ(client().get("/health").status, 200);
  EXPECT_EQ(client().get("/ready").status, 200);
  EXPECT_EQ(client().get("/v1/models", "Authorization: Bearer sk-secret\r\n").status, 200);
  EXPECT_EQ(
      client().post("/v1/completions", R"({"prompt":"a"})", "Authorization: Bearer sk-secret\r\n").status,
      200);
}

// A browser asks without a key whether a page may send one.
TEST_F(Errors, PagesOfOtherOriginsMayCall) {
  config_.api_key = "sk-secret";
  start_ready();
  auto connection = client();
  connection.send(
      "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: http://page\r\n"
      "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: "
      "authorization,content-type\r\n\r\n");
  const auto asked = connection.read();
  EXPECT_EQ(asked.status, 200) << asked.body;
  EXPECT_EQ(asked.headers.at("access-control-allow-origin"), "*");
  EXPECT_EQ(asked.headers.at("access-control-allow-methods"), "POST, OPTIONS");
  EXPECT_EQ(asked.headers.at("access-control-allow-headers"), "*, Authorization");
  connection.send("OPTIONS /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(connection.read().status, 401);
  for (const char* stream : {"false", "true"}) {
    const auto answer =
        client().post("/v1/completions", fmt::format(R"({{"prompt":"a","stream":{}}})", stream),
                      "Authorization: Bearer sk-secret\r\n");
    EXPECT_EQ(answer.headers.at("access-control-allow-origin"), "*");
  }
  EXPECT_EQ(client().get("/v1/models").headers.at("access-control-allow-origin"), "*") << "errors, too";
}

TEST_F(Errors, WithoutAKeyTheBodyIsNotEvenRead) {
  config_.api_key = "sk-secret";
  start();
  auto connection = client();
  connection.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n");
  const auto answer = connection.read();  // although the body never comes
  EXPECT_EQ(answer.status, 401);
  EXPECT_FALSE(answer.keep_alive);
}

TEST_F(Errors, FullQueue) {
  config_.max_queued = 2;
  start_ready({.hold_after = 1});
  auto first = client(), second = client();
  first.send(post_text("/v1/completions", R"({"prompt":"a"})"));
  second.send(post_text("/v1/completions", R"({"prompt":"a","stream":true})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(2));
  const auto answer = client().post("/v1/completions", R"({"prompt":"a"})");
  expect_error(answer, 429, "rate_limit_exceeded");
  EXPECT_GE(std::stoi(answer.headers.at("retry-after")), 1);
  EXPECT_EQ(metric("lowkey_rejected_requests_total", {R"(reason="queue_full")"}), 1);
  leaders_[0]->release();
  EXPECT_EQ(first.read().status, 200);
  EXPECT_EQ(second.read().events().back(), "[DONE]");
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a"})").status, 200);
}

TEST_F(Errors, AKeyMustBeThere) {
  config_.api_key = " , ";
  Coordinator coordinator(io_, config_, model(), metrics_, limits_);
  const Status started = coordinator.start();
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(started.error().code, Code::kUsage);
}

TEST_F(Errors, NotReady) {
  start();
  auto answer = client().get("/ready");
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.json().at("reason"), "no replica is there");
  answer = client().post("/v1/completions", R"({"prompt":"a"})");
  expect_error(answer, 503, "unavailable");
  EXPECT_EQ(answer.headers.count("retry-after"), 1u);

  add_leader();
  ASSERT_TRUE(wait_ready());
  leaders_[0]->set_ready(false, "rank 1 is silent");
  ASSERT_TRUE(wait_ready(503));
  EXPECT_EQ(client().get("/ready").json().at("reason"), "replica 0: rank 1 is silent");
  expect_error(client().post("/v1/completions", R"({"prompt":"a"})"), 503, "unavailable");
}

TEST_F(Errors, TheEngineRefuses) {
  start_ready({.hold_after = 0, .error = Error{Code::kResourceExhausted, "engine queue is full"}});
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","stream":true})");
  expect_error(answer, 429, "rate_limit_exceeded");  // nothing was streamed yet: a proper status
  EXPECT_EQ(message_of(answer), "engine queue is full");
}

TEST_F(Errors, TheEngineFailsInTheMiddleOfAStream) {
  start_ready({.hold_after = 2, .error = Error{Code::kInternal, "step failed"}});
  auto connection = client();
  const auto answer = connection.post("/v1/completions", R"({"prompt":"a","stream":true})");
  EXPECT_EQ(answer.status, 200);
  ASSERT_EQ(answer.events().size(), 3u) << answer.body;
  EXPECT_NE(answer.body.find("event: error\n"), std::string::npos);
  EXPECT_EQ(json::parse(answer.events().back()).at("error").at("message"), "step failed");
  EXPECT_EQ(connection.read_some(), "");  // and the connection ends
  expect_error(client().post("/v1/completions", R"({"prompt":"a"})"), 500, "");
}

}  // namespace
}  // namespace lowkey::coordinator
