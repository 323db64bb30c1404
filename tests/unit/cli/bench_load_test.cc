// The whole of `lowkey bench` against a server that answers what a script says, over real sockets.
#include "cli/bench_load.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <functional>
#include <set>
#include <thread>

#include "cli/bench_sse.h"

namespace lowkey::cli {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;

std::string head(const std::string& status, const std::string& more) {
  return "HTTP/1.1 " + status + "\r\n" + more + "\r\n";
}
std::string chunk(const std::string& text) {
  return fmt::format("{:x}\r\n{}\r\n", text.size(), text);
}

const std::string kStreamHead =
    head("200 OK", "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n");
const std::string kTwoTokens =
    kStreamHead + chunk("data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"te") +
    chunk("xt\":\" b\"}]}\n\n") +
    chunk(
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":32,\"completion_tokens\":2}}\n\ndata: "
        "[DONE]\n\n") +
    "0\r\n\r\n";

// Answers each POST with what `script` says for its number; "" closes the connection. GET /v1/models names
// "m".
class ScriptedServer {
 public:
  explicit ScriptedServer(std::function<std::string(int)> script) : script_(std::move(script)) {
    thread_ = std::thread([this] {
      asio::co_spawn(io_, accept(), asio::detached);
      io_.run();
    });
  }
  ~ScriptedServer() {
    io_.stop();
    thread_.join();
  }
  BenchOptions options() const {
    BenchOptions options;
    options.server.host = "127.0.0.1";
    options.server.port = std::to_string(acceptor_.local_endpoint().port());
    options.timeout_seconds = 20;
    options.api_key = "key";
    return options;
  }
  int posts() const { return posts_; }
  const std::vector<std::string>& bodies() const { return bodies_; }  // once the load has ended

 private:
  asio::awaitable<void> accept() {
    while (true) {
      auto socket = co_await acceptor_.async_accept(asio::use_awaitable);
      asio::co_spawn(io_, serve(std::move(socket)), asio::detached);
    }
  }
  asio::awaitable<void> serve(tcp::socket socket) {
    boost::beast::flat_buffer buffer;
    while (true) {
      http::request<http::string_body> request;
      auto [error, size] =
          co_await http::async_read(socket, buffer, request, asio::as_tuple(asio::use_awaitable));
      if (error) co_return;
      EXPECT_EQ(request[http::field::authorization], "Bearer key");
      std::string answer;
      if (request.method() == http::verb::get) {
        const std::string body = R"({"data":[{"id":"m"}]})";
        answer = head("200 OK", fmt::format("Content-Length: {}\r\n", body.size())) + body;
      } else {
        EXPECT_NE(request.body().find(R"("model":"m")"), std::string::npos) << request.body();
        bodies_.push_back(request.body());
        answer = script_(posts_++);
      }
      if (answer.empty()) co_return;
      bool cut = answer.ends_with("CUT");
      if (cut) answer.resize(answer.size() - 3);
      co_await asio::async_write(socket, asio::buffer(answer), asio::use_awaitable);
      if (cut) co_return;
    }
  }

  std::function<std::string(int)> script_;
  asio::io_context io_{1};
  tcp::acceptor acceptor_{io_, tcp::endpoint(asio::ip::make_address("127.0.0.1"), 0)};
  std::atomic<int> posts_ = 0;
  std::vector<std::string> bodies_;
  std::thread thread_;
};

TEST(RunBench, CountsTokensAndTimesOfAClosedLoop) {
  ScriptedServer server([](int) { return kTwoTokens; });
  auto options = server.options();
  options.concurrency = 3;
  options.requests = 20;
  auto stats = run_bench(options, false);
  ASSERT_TRUE(stats.ok()) << stats.error().message;
  EXPECT_EQ(options.model, "m");
  EXPECT_EQ(stats->answered, 20u);
  EXPECT_EQ(stats->failed, 0u);
  EXPECT_EQ(stats->output_tokens, 40u);
  EXPECT_EQ(stats->prompt_tokens, 640u);
  EXPECT_EQ(stats->between_tokens.count(), 20u);
  EXPECT_EQ(server.posts(), 21) << "one probe and the load";
  EXPECT_GT(stats->to_first_token.least(), 0);
  EXPECT_LE(stats->to_first_token.most(), stats->whole_request.most());
}

TEST(RunBench, AsksForTheTemperatureItWasGiven) {
  for (const double temperature : {0.0, 0.8}) {
    ScriptedServer server([](int) { return kTwoTokens; });
    auto options = server.options();
    options.requests = 1;
    options.temperature = temperature;
    ASSERT_TRUE(run_bench(options, false).ok());
    ASSERT_EQ(server.posts(), 2);
    const auto body = boost::json::parse(server.bodies()[1]).as_object();
    EXPECT_EQ(body.at("temperature").to_number<double>(), temperature);
  }
}

TEST(RunBench, PoissonArrivalsTakeTheTimeTheyShould) {
  ScriptedServer server([](int) { return kTwoTokens; });
  auto options = server.options();
  options.rate = 400;
  options.requests = 100;
  auto stats = run_bench(options, false);
  ASSERT_TRUE(stats.ok()) << stats.error().message;
  EXPECT_EQ(stats->answered, 100u);
  EXPECT_GT(stats->seconds, 0.25 * 0.6);  // 100 arrivals: 0.25 s in the mean, 10 % standard deviation
}

TEST(RunBench, ReplaysATraceAsTokenIdsInItsTime) {
  ScriptedServer server([](int i) -> std::string {
    if (i == 0) return kTwoTokens;
    return kStreamHead + chunk("data: {\"choices\":[{\"text\":\"a\"}]}\n\n") +
           chunk(
               "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":1,"
               "\"prompt_tokens_details\":{\"cached_tokens\":16,\"cached_tokens_by_tier\":"
               "{\"device\":10,\"host\":4,\"disk\":2}}},\"kv\":{\"coarse_tokens\":1}}\n\ndata: [DONE]\n\n") +
           "0\r\n\r\n";
  });
  auto options = server.options();
  options.trace = {
      .file = LOWKEY_SOURCE_DIR "/tests/golden/trace/mooncake.jsonl", .speed = 10, .tokens = 1. / 64};
  auto stats = run_bench(options, false);
  ASSERT_TRUE(stats.ok()) << stats.error().message;
  EXPECT_EQ(stats->answered, 5u);
  EXPECT_GE(stats->seconds, 0.1) << "a second of arrivals, ten times as fast";
  EXPECT_EQ(stats->cached.all, 80u);
  EXPECT_EQ(stats->cached.host, 20u);
  EXPECT_EQ(stats->coarse, 5u);
  EXPECT_EQ(stats->hit_rate(), 0.8);
  ASSERT_EQ(server.bodies().size(), 6u);
  std::multiset<std::pair<size_t, int64_t>> asked;  // requests of one moment may come in any order
  for (size_t i = 1; i < 6; ++i) {
    auto body = boost::json::parse(server.bodies()[i]).as_object();
    asked.emplace(body.at("prompt").as_array().size(), body.at("max_tokens").as_int64());
  }
  EXPECT_EQ(asked, (std::multiset<std::pair<size_t, int64_t>>{{20, 1}, {20, 1}, {16, 1}, {27, 1}, {9, 8}}));
}

TEST(RunBench, ABadTraceEndsItBeforeTheServerIsAsked) {
  BenchOptions options;
  options.server.host = "127.0.0.1";
  options.server.port = "1";
  options.trace.file = LOWKEY_SOURCE_DIR "/README.md";
  auto stats = run_bench(options, false);
  ASSERT_FALSE(stats.ok());
  EXPECT_EQ(stats.error().code, Code::kBadInput);
}

TEST(RunBench, SortsFailuresByKind) {
  ScriptedServer server([](int i) -> std::string {
    switch (i) {
      case 1:
        return head("429 Too Many Requests", "Content-Length: 4\r\nRetry-After: 1\r\n") + "busy";
      case 2:
        return "";
      case 3:
        return kStreamHead + chunk("data: {\"choices\":[{\"text\":\"a\"}]}\n\n") + "CUT";
      case 4:
        return kStreamHead + chunk("data: {\"error\":{\"message\":\"rank 2 died\"}}\n\n") + "0\r\n\r\n";
      case 5:
        return kStreamHead + chunk("data: {nonsense\n\n") + "0\r\n\r\n";
      default:
        return kTwoTokens;
    }
  });
  auto options = server.options();
  options.concurrency = 1;
  options.requests = 7;
  auto stats = run_bench(options, false);
  ASSERT_TRUE(stats.ok()) << stats.error().message;
  EXPECT_EQ(stats->answered, 2u);
  EXPECT_EQ(stats->errors, (std::map<std::string, uint64_t>{
                               {"bad_event", 1}, {"disconnect", 2}, {"http_429", 1}, {"stream_error", 1}}));
  EXPECT_EQ(stats->error_lines.at("http_429"), "busy");
  EXPECT_NE(stats->error_lines.at("stream_error").find("rank 2 died"), std::string::npos);
}

TEST(RunBench, ASilentServerIsATimeout) {
  ScriptedServer server([](int i) { return i == 0 ? kTwoTokens : kStreamHead; });
  auto options = server.options();
  options.concurrency = 1;
  options.requests = 1;
  options.timeout_seconds = 2;  // of the first requests, too, which are answered
  auto stats = run_bench(options, false);
  ASSERT_TRUE(stats.ok()) << stats.error().message;
  EXPECT_EQ(stats->errors, (std::map<std::string, uint64_t>{{"timeout", 1}}));
}

TEST(RunBench, AnUnreachableOrUnwillingServerEndsItAtOnce) {
  BenchOptions options;
  {
    ScriptedServer server([](int) { return head("401 Unauthorized", "Content-Length: 7\r\n") + "who you"; });
    options = server.options();
    auto stats = run_bench(options, false);
    ASSERT_FALSE(stats.ok());
    EXPECT_NE(stats.error().message.find("http_401: who you"), std::string::npos) << stats.error().message;
  }
  auto stats = run_bench(options, false);  // the server is gone
  ASSERT_FALSE(stats.ok());
  EXPECT_NE(stats.error().message.find("refused"), std::string::npos) << stats.error().message;
}

TEST(SseReader, ReadsEventsHoweverTheBytesAreCut) {
  const std::string text =
      ": comment\r\ndata: one\r\n\r\nevent: x\ndata:two\ndata:  three\n\n\n\ndata\n\nid: 1\n\ndata: cut";
  for (size_t step = 1; step <= text.size(); ++step) {
    SseReader reader;
    std::vector<std::string> events;
    for (size_t at = 0; at < text.size(); at += step)
      ASSERT_TRUE(reader.feed(text.substr(at, step), [&](auto data) { events.emplace_back(data); }).ok());
    EXPECT_EQ(events, (std::vector<std::string>{"one", "two\n three", ""})) << step;
  }
}

TEST(SseReader, BoundsAnEvent) {
  SseReader reader;
  EXPECT_FALSE(reader.feed(std::string(SseReader::kMaxEventBytes + 1, 'x'), [](auto) {}).ok());
}

}  // namespace
}  // namespace lowkey::cli
