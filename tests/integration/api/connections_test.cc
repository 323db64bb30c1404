// HTTP itself: bad bytes, limits, slow and leaving clients, keep-alive.
#include <filesystem>

#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

using Connections = ApiTest;

std::vector<std::string> open_descriptors() {
  std::vector<std::string> all;
  std::error_code gone;  // the iterator's own
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    all.push_back(entry.path().filename().string() + " " + std::filesystem::read_symlink(entry, gone).string());
  return all;
}

TEST_F(Connections, MalformedBytes) {
  start();
  const std::pair<std::string, int> cases[] = {
      {"hello\r\n\r\n", 400},
      {"GET /health\r\n\r\n", 400},
      {"GET /health HTTP/9.9\r\n\r\n", 400},
      {"GET /health HTTP/1.1\r\nbad header\r\n\r\n", 400},
      {std::string("GET /he\0alth HTTP/1.1\r\n\r\n", 25), 400},
      {"POST /tokenize HTTP/1.1\r\nContent-Length: nine\r\n\r\n", 400},
      {"POST /tokenize HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
      {"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {"GET /health HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n", 431},
      {"POST /tokenize HTTP/1.1\r\nContent-Length: 8388609\r\n\r\n", 413},
      {"POST /tokenize HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab", 415},
  };
  for (const auto& [bytes, status] : cases) {
    auto connection = client();
    connection.send(bytes);
    const auto answer = connection.read();
    EXPECT_EQ(answer.status, status) << bytes.substr(0, 60);
    EXPECT_FALSE(answer.keep_alive) << bytes.substr(0, 60);
    EXPECT_TRUE(answer.json().at("error").at("message").is_string());
    connection.shutdown_send();
    EXPECT_EQ(connection.read_some(), "");
  }
  EXPECT_EQ(client().get("/health").status, 200);
}

TEST_F(Connections, BodyTooLongWithoutItsLengthTold) {
  limits_.body_bytes = 1000;
  start();
  auto connection = client();
  connection.send("POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n");
  connection.send(std::string(0x800, 'x') + "\r\n0\r\n\r\n");
  EXPECT_EQ(connection.read().status, 413);
}

TEST_F(Connections, ExpectContinue) {
  start();
  const std::string body = R"({"prompt":"Once"})";
  auto connection = client();
  connection.send("POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: " +
                  std::to_string(body.size()) + "\r\n\r\n");
  EXPECT_EQ(connection.read_some(), "HTTP/1.1 100 Continue\r\n\r\n");
  connection.send(body);
  EXPECT_EQ(connection.read().status, 200);
  // Too long: refused before the client sends it.
  connection.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n");
  EXPECT_EQ(connection.read().status, 413);
}

TEST_F(Connections, PipelinedRequestsAreAnsweredInOrder) {
  start_ready({.hold_after = 1});
  auto connection = client();
  connection.send(post_text("/v1/completions", R"({"prompt":"a","max_tokens":2})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  std::string rest;
  for (int i = 0; i < 50; ++i) rest += "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n";
  connection.send(rest + "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  leaders_[0]->release();
  EXPECT_NE(connection.read().body.find("text_completion"), std::string::npos);
  for (int i = 0; i < 50; ++i) EXPECT_NE(connection.read().body.find("\"list\""), std::string::npos) << i;
  EXPECT_EQ(connection.read().status, 404);
  EXPECT_EQ(connection.read_some(), "");
}

TEST_F(Connections, OldHttpGetsAnUnchunkedStreamAndTheEnd) {
  start_ready();
  auto connection = client();
  const std::string body = R"({"prompt":"a","stream":true,"max_tokens":2})";
  connection.send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) +
                  "\r\n\r\n" + body);
  const auto answer = connection.read();
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(answer.events().back(), "[DONE]");
}

TEST_F(Connections, LeavingClientCancels) {
  start_ready({.hold_after = 1});
  // While waiting for a whole answer; in the middle of a stream; with a reset; with requests pipelined
  // behind.
  auto waiting = client();
  waiting.send(post_text("/v1/completions", R"({"prompt":"a"})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  waiting.close();
  ASSERT_TRUE(leaders_[0]->wait_cancels(1));

  auto streaming = client();
  streaming.send(post_text("/v1/completions", R"({"prompt":"a","stream":true})"));
  EXPECT_NE(streaming.read_some(), "");
  streaming.close();
  ASSERT_TRUE(leaders_[0]->wait_cancels(2));

  auto resetting = client();
  resetting.send(post_text("/v1/completions", R"({"prompt":"a","stream":true})"));
  EXPECT_NE(resetting.read_some(), "");
  resetting.reset();
  ASSERT_TRUE(leaders_[0]->wait_cancels(3));

  auto pipelining = client();
  pipelining.send(post_text("/v1/completions", R"({"prompt":"a"})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(4));
  pipelining.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  pipelining.close();
  ASSERT_TRUE(leaders_[0]->wait_cancels(4));

  ASSERT_TRUE(wait_in_flight(0));
  EXPECT_EQ(metric("lowkey_client_disconnects_total"), 4);
  EXPECT_EQ(metric("lowkey_queued_requests"), 0);
}

TEST_F(Connections, LeavingWhileALongPromptIsRead) {
  start_ready({.hold_after = 0});
  std::string text;
  while (text.size() < 2'000'000) text += "It was a dark and stormy night; ";
  double left = 0;
  for (int attempt = 1; left == 0 && attempt <= 20; ++attempt) {
    auto connection = client();
    connection.send(post_text("/v1/completions", R"({"prompt":")" + text + "\"}"));
    connection.close();
    // One that was slow to leave has been answered (it is too long a prompt), and another one leaves.
    ASSERT_TRUE(eventually([&] {
      left = metric("lowkey_client_disconnects_total");
      return left + metric("lowkey_http_requests_total", {R"(endpoint="/v1/completions")"}) == attempt;
    }));
  }
  EXPECT_EQ(left, 1);
  EXPECT_TRUE(wait_in_flight(0));
  EXPECT_EQ(leaders_[0]->submits().size(), 0u);
}

TEST_F(Connections, ClientThatDoesNotReadIsCutOff) {
  limits_.stream_buffer_bytes = 64 << 10;
  limits_.socket_send_bytes = 16 << 10;
  limits_.write_deadline = std::chrono::hours(1);  // a write may be under way when the buffer is full
  start_ready({.max_sequence_tokens = 1024, .hold_after = 1});
  // Small windows on both sides, so that 1000 events are enough to fill them: each carries its logprobs.
  std::vector<HttpClient> lazy;
  for (int i = 0; i < 4; ++i) {
    lazy.push_back(client());
    lazy.back().send(post_text("/v1/chat/completions",
                               R"({"messages":[{"role":"user","content":"a"}],"stream":true,
                                  "logprobs":true,"top_logprobs":20})"));
  }
  ASSERT_TRUE(leaders_[0]->wait_submits(4));
  leaders_[0]->release();
  ASSERT_TRUE(
      eventually([&] { return metric("lowkey_clients_cut_off_total", {R"(reason="not_reading")"}) == 4; }));
  EXPECT_TRUE(wait_in_flight(0));
  EXPECT_EQ(client().get("/health").status, 200);
}

TEST_F(Connections, SlowRequestIsCutOff) {
  limits_.read_deadline = std::chrono::milliseconds(300);
  start();
  const auto cut_off = [&] { return metric("lowkey_clients_cut_off_total", {R"(reason="slow_request")"}); };
  auto idle = client();
  EXPECT_EQ(idle.read_some(), "");
  EXPECT_EQ(cut_off(), 0) << "not counted: that is how keep-alive ends";
  double before = 0;
  for (const char* begun : {"GET /health HT", "POST /tokenize HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"}) {
    EXPECT_TRUE(eventually([&] {  // one that does not even begin in time is idle
      auto slow = client();
      slow.send(begun);
      EXPECT_EQ(slow.read_some(), "");
      return cut_off() > before;
    })) << begun;
    before = cut_off();
  }
}

TEST_F(Connections, TooManyConnections) {
  limits_.max_connections = 3;
  start();
  std::vector<HttpClient> kept;
  for (int i = 0; i < 3; ++i) {
    kept.push_back(client());
    EXPECT_EQ(kept.back().get("/health").status, 200);
  }
  auto extra = client();
  const auto answer = extra.get("/health");
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.headers.count("retry-after"), 1u);
  kept.pop_back();
  EXPECT_TRUE(eventually([&] { return client().get("/health").status == 200; }));
}

TEST_F(Connections, ThousandRequestsLeakNothing) {
  start_ready();
  const std::string body = R"({"prompt":"a","max_tokens":2,"stream":true})";
  client().post("/v1/completions", body);
  ASSERT_TRUE(wait_connections(0));
  const auto before = open_descriptors();
  for (int i = 0; i < 500; ++i) ASSERT_EQ(client().post("/v1/completions", body).status, 200) << i;
  {
    auto connection = client();
    for (int i = 0; i < 500; ++i) ASSERT_EQ(connection.post("/v1/completions", body).status, 200) << i;
  }
  ASSERT_TRUE(wait_connections(0));
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_TRUE(wait_in_flight(0));
}

TEST_F(Connections, HundredStreamsAtOnce) {
  start_ready({.hold_after = 1});
  std::vector<HttpClient> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(client());
    clients.back().send(post_text("/v1/completions", R"({"prompt":"a","max_tokens":64,"stream":true})"));
  }
  ASSERT_TRUE(leaders_[0]->wait_submits(100));
  ASSERT_TRUE(wait_in_flight(100));
  leaders_[0]->release();
  for (auto& connection : clients) {
    const auto answer = connection.read();
    EXPECT_EQ(answer.events().size(), 65u);
    EXPECT_EQ(answer.events().back(), "[DONE]");
  }
  EXPECT_TRUE(wait_in_flight(0));
}

}  // namespace
}  // namespace lowkey::coordinator
