#include "cli/bench_client.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <chrono>
#include <optional>

#include "cli/bench_sse.h"

namespace lowkey::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr size_t kMaxErrorBytes = 2000;

std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return text.substr(0, 300);
}

std::string kind_of(beast::error_code error, const char* otherwise) {
  return error == beast::error::timeout ? "timeout" : otherwise;
}

// What the events of one answer said so far.
class EventLog {
 public:
  explicit EventLog(TimePoint sent) : sent_(sent) {}

  void event(std::string_view data) {
    if (data == "[DONE]") {
      done_ = true;
      return;
    }
    boost::system::error_code error;
    auto value = json::parse(data, error);
    if (error || !value.is_object()) return fail("bad_event", std::string(data));
    const auto& object = value.get_object();
    if (const auto* problem = object.if_contains("error"))
      return fail("stream_error", json::serialize(*problem));
    if (has_text(object)) token();
    if (object.contains("kv")) outcome_.coarse = true;  // of lowkey: below all levels
    if (const auto* usage = object.if_contains("usage"); usage && usage->is_object())
      read(usage->get_object());
  }
  void fail(std::string kind, std::string detail) {
    if (outcome_.error.empty())
      outcome_.error = std::move(kind), outcome_.detail = one_line(std::move(detail));
  }

  RequestOutcome finish() {
    outcome_.to_last = Clock::now() - sent_;
    if (!done_) fail("disconnect", "the stream ended without [DONE]");
    if (outcome_.to_first == Duration{}) outcome_.to_first = outcome_.to_last;  // an answer without text
    outcome_.output_tokens = output_tokens_ ? output_tokens_ : events_;  // no usage: about one token an event
    return std::move(outcome_);
  }

 private:
  static uint64_t number(const json::object& object, const char* name) {
    const auto* value = object.if_contains(name);
    return value && value->is_int64() && value->get_int64() > 0 ? static_cast<uint64_t>(value->get_int64())
                                                                : 0;
  }
  void read(const json::object& usage) {
    outcome_.prompt_tokens = number(usage, "prompt_tokens");
    output_tokens_ = number(usage, "completion_tokens");
    const auto* details = usage.if_contains("prompt_tokens_details");
    if (!details || !details->is_object()) return;
    outcome_.cached.all = number(details->get_object(), "cached_tokens");
    const auto* tiers = details->get_object().if_contains("cached_tokens_by_tier");
    if (!tiers || !tiers->is_object()) return;
    outcome_.cached.device = number(tiers->get_object(), "device");
    outcome_.cached.host = number(tiers->get_object(), "host");
    outcome_.cached.disk = number(tiers->get_object(), "disk");
  }
  static bool has_text(const json::object& object) {
    const auto* choices = object.if_contains("choices");
    if (!choices || !choices->is_array() || choices->get_array().empty()) return false;
    const auto* choice = choices->get_array()[0].if_object();
    if (!choice) return false;
    const auto* text = choice->if_contains("text");
    if (const auto* delta = choice->if_contains("delta"); delta && delta->is_object())
      text = delta->get_object().if_contains("content");
    return text && text->is_string() && !text->get_string().empty();
  }
  void token() {
    auto now = Clock::now();
    if (events_++ == 0)
      outcome_.to_first = now - sent_;
    else
      outcome_.gaps.push_back(now - last_);
    last_ = now;
  }

  RequestOutcome outcome_;
  TimePoint sent_, last_;
  bool done_ = false;
  uint64_t events_ = 0, output_tokens_ = 0;
};

}  // namespace

struct BenchClient::Impl {
  asio::io_context& io;
  const BenchOptions& options;
  beast::tcp_stream socket{io};
  beast::flat_buffer buffer{};
  bool connected = false;

  void expire() {
    socket.expires_after(
        std::chrono::duration_cast<Duration>(std::chrono::duration<double>(options.timeout_seconds)));
  }

  void close() {
    beast::error_code ignored;
    socket.socket().close(ignored);
    buffer.clear();
    connected = false;
  }

  asio::awaitable<beast::error_code> connect() {
    if (connected) co_return beast::error_code{};
    asio::ip::tcp::resolver resolver(io);
    auto [unresolved, addresses] =
        co_await resolver.async_resolve(options.server.host, options.server.port, kTuple);
    if (unresolved) co_return unresolved;
    auto [refused, address] = co_await socket.async_connect(addresses, kTuple);
    if (refused) co_return refused;
    socket.socket().set_option(asio::ip::tcp::no_delay(true));
    connected = true;
    co_return beast::error_code{};
  }

  template <class Request>
  void set_headers(Request& request) {
    request.set(http::field::host, options.server.host + ":" + options.server.port);
    request.set(http::field::user_agent, "lowkey-bench");
    if (!options.api_key.empty()) request.set(http::field::authorization, "Bearer " + options.api_key);
  }

  http::request<http::string_body> make_request(const BenchPrompt& prompt, int output_tokens) {
    json::object body{{"model", options.model},
                      {"max_tokens", output_tokens},
                      {"temperature", options.temperature},
                      {"ignore_eos", true},
                      {"stream", true},
                      {"stream_options", {{"include_usage", true}}}};
    if (const auto* tokens = std::get_if<std::vector<int32_t>>(&prompt))
      body["prompt"] = json::value_from(*tokens);
    else if (options.chat)
      body["messages"] =
          json::array{json::object{{"role", "user"}, {"content", std::get<std::string>(prompt)}}};
    else
      body["prompt"] = std::get<std::string>(prompt);
    auto path = options.server.prefix + (options.chat ? "/v1/chat/completions" : "/v1/completions");
    http::request<http::string_body> request(http::verb::post, path, 11, json::serialize(body));
    set_headers(request);
    request.set(http::field::content_type, "application/json");
    request.prepare_payload();
    return request;
  }

  // Reads the body to its end, `on_bytes` as they come.
  template <class Parser, class OnBytes>
  asio::awaitable<beast::error_code> read_body(Parser& parser, OnBytes on_bytes) {
    std::array<char, 16384> chunk;
    while (!parser.is_done()) {
      parser.get().body().data = chunk.data();
      parser.get().body().size = chunk.size();
      auto [error, size] = co_await http::async_read_some(socket, buffer, parser, kTuple);
      on_bytes(std::string_view(chunk.data(), chunk.size() - parser.get().body().size));
      if (error && error != http::error::need_buffer) co_return error;
    }
    if (!parser.get().keep_alive()) close();
    co_return beast::error_code{};
  }
};

BenchClient::BenchClient(asio::io_context& io, const BenchOptions& options) : impl_(new Impl{io, options}) {}
BenchClient::~BenchClient() = default;

asio::awaitable<Result<std::string>> BenchClient::get(std::string path) {
  auto& c = *impl_;
  auto failed = [&](const std::string& what) {
    c.close();
    return Error{Code::kUnavailable,
                 fmt::format("http://{}:{}{}: {}", c.options.server.host, c.options.server.port, path, what),
                 ""};
  };
  path = c.options.server.prefix + path;
  c.expire();
  if (auto error = co_await c.connect()) co_return failed(error.message());
  http::request<http::empty_body> request(http::verb::get, path, 11);
  c.set_headers(request);
  auto [unsent, sent] = co_await http::async_write(c.socket, request, kTuple);
  if (unsent) co_return failed(unsent.message());
  http::response<http::string_body> response;
  auto [unread, size] = co_await http::async_read(c.socket, c.buffer, response, kTuple);
  if (unread) co_return failed(unread.message());
  if (!response.keep_alive()) c.close();
  if (response.result() != http::status::ok)
    co_return failed(fmt::format("HTTP {}: {}", response.result_int(), one_line(response.body())));
  co_return std::move(response.body());
}

asio::awaitable<RequestOutcome> BenchClient::stream(BenchPrompt prompt, int output_tokens) {
  auto& c = *impl_;
  auto failed = [&](std::string kind, std::string detail) {
    c.close();
    RequestOutcome outcome;
    outcome.error = std::move(kind);
    outcome.detail = one_line(std::move(detail));
    return outcome;
  };
  auto request = c.make_request(prompt, output_tokens);
  c.expire();
  EventLog log(Clock::now());
  std::optional<http::response_parser<http::buffer_body>> answer;
  for (bool kept = c.connected;; kept = false) {
    auto unreachable = co_await c.connect();
    if (unreachable) co_return failed(kind_of(unreachable, "connect"), unreachable.message());
    answer.emplace();
    answer->body_limit(boost::none);
    auto [broken, sent] = co_await http::async_write(c.socket, request, kTuple);
    if (!broken) {
      auto [unread, header_size] = co_await http::async_read_header(c.socket, c.buffer, *answer, kTuple);
      broken = unread;
    }
    if (!broken) break;
    // A server may close a connection that was idle just when it is used again: that is no answer.
    if (!kept || answer->got_some()) co_return failed(kind_of(broken, "disconnect"), broken.message());
    c.close();
  }
  auto& parser = *answer;

  auto status = parser.get().result_int();
  std::string text;
  SseReader events;
  auto broken = co_await c.read_body(parser, [&](std::string_view bytes) {
    if (status != 200) {
      text.append(bytes.substr(0, kMaxErrorBytes - std::min(kMaxErrorBytes, text.size())));
    } else if (auto fed = events.feed(bytes, [&](std::string_view data) { log.event(data); }); !fed.ok()) {
      log.fail("bad_event", fed.error().message);
    }
  });
  if (status != 200) co_return failed(fmt::format("http_{}", status), text);
  if (broken) {
    log.fail(kind_of(broken, "disconnect"), broken.message());
    c.close();
  }
  co_return log.finish();
}

}  // namespace lowkey::cli
