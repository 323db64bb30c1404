#include "cli/bench_load.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json.hpp>
#include <cmath>
#include <csignal>
#include <cstdio>

#include "cli/bench_client.h"

namespace lowkey::cli {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

constexpr int kMaxInFlight = 10'000;  // of an open loop: beyond it requests are counted as errors, not sent
constexpr int kProbeWords = 64;

Duration to_duration(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

class Load {
 public:
  Load(const BenchOptions& options, const Trace& trace, double words_per_token, bool progress)
      : options_(options),
        trace_(trace),
        words_per_token_(words_per_token),
        progress_(progress),
        random_(options.seed) {}

  BenchStats run() {
    begin_ = Clock::now();
    interrupts_.async_wait([this](auto error, int) {
      if (!error) interrupted_ = true, alarm_.cancel();
    });
    if (!trace_.requests.empty()) {
      spawn(replay());
    } else if (options_.rate > 0) {
      spawn(open_loop());
    } else {
      for (int i = 0; i < options_.concurrency; ++i) spawn(closed_loop());
    }
    if (progress_) asio::co_spawn(io_, show_progress(), asio::detached);
    io_.run();
    stats_.seconds = seconds(last_answer_ - begin_);
    return std::move(stats_);
  }

 private:
  // `tasks_` counts what must end before the run does; the last one lets the rest go.
  void spawn(asio::awaitable<void> task) {
    ++tasks_;
    asio::co_spawn(io_, std::move(task), [this](std::exception_ptr failure) {
      if (failure) std::rethrow_exception(failure);
      if (--tasks_ > 0) return;
      interrupts_.cancel();
      tick_.cancel();
    });
  }

  std::optional<uint64_t> next_request() {
    if (interrupted_) return std::nullopt;
    if (options_.requests > 0 && issued_ >= static_cast<uint64_t>(options_.requests)) return std::nullopt;
    if (options_.duration_seconds > 0 && Clock::now() - begin_ >= to_duration(options_.duration_seconds))
      return std::nullopt;
    return issued_++;
  }

  struct Question {
    BenchPrompt prompt;
    int output_tokens = 1;
  };
  Question synthetic(uint64_t request) {
    int words =
        std::max(1, static_cast<int>(std::lround(options_.prompt_tokens.draw(random_) * words_per_token_)));
    return {synthetic_prompt(options_.seed, request, words), options_.output_tokens.draw(random_)};
  }

  asio::awaitable<bool> send(BenchClient& client, Question question) {
    ++in_flight_;
    auto outcome = co_await client.stream(std::move(question.prompt), question.output_tokens);
    --in_flight_;
    stats_.add(outcome);
    last_answer_ = Clock::now();
    co_return outcome.error.empty();
  }

  asio::awaitable<void> closed_loop() {
    BenchClient client(io_, options_);
    asio::steady_timer pause(io_);
    while (auto request = next_request()) {
      if (co_await send(client, synthetic(*request))) continue;
      pause.expires_after(milliseconds(100));  // a server that refuses at once shall not be hammered
      co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
    }
  }

  asio::awaitable<void> open_loop() {
    std::exponential_distribution<double> gap(options_.rate);
    auto arrival = begin_;
    while (auto request = next_request()) {
      arrival += to_duration(gap(random_));
      co_await wait_until(arrival);
      if (interrupted_) break;
      arrive(synthetic(*request));
    }
  }

  asio::awaitable<void> replay() {
    for (const auto& request : trace_.requests) {
      co_await wait_until(begin_ + request.at);
      if (interrupted_) break;
      arrive({trace_prompt(trace_, request), request.output_tokens});
    }
  }

  asio::awaitable<void> wait_until(TimePoint time) {
    alarm_.expires_at(time);
    co_await alarm_.async_wait(asio::as_tuple(asio::use_awaitable));
  }

  void arrive(Question question) {
    if (in_flight_ < kMaxInFlight) return spawn(pooled(std::move(question)));
    RequestOutcome refused;
    refused.error = "client_limit";
    refused.detail = fmt::format("{} requests are in flight", kMaxInFlight);
    stats_.add(refused);
  }

  asio::awaitable<void> pooled(Question question) {
    std::unique_ptr<BenchClient> client;
    if (idle_.empty()) {
      client = std::make_unique<BenchClient>(io_, options_);
    } else {
      client = std::move(idle_.back());
      idle_.pop_back();
    }
    co_await send(*client, std::move(question));
    idle_.push_back(std::move(client));
  }

  asio::awaitable<void> show_progress() {
    while (tasks_ > 0) {
      tick_.expires_after(milliseconds(200));
      co_await tick_.async_wait(asio::as_tuple(asio::use_awaitable));
      double passed = seconds(Clock::now() - begin_);
      auto finished = stats_.answered + stats_.failed;
      auto all = trace_.requests.empty() ? static_cast<uint64_t>(options_.requests) : trace_.requests.size();
      double share = all > 0 ? static_cast<double>(finished) / static_cast<double>(all) : 0;
      if (options_.duration_seconds > 0) share = std::max(share, passed / options_.duration_seconds);
      int filled = static_cast<int>(std::lround(30 * std::min(share, 1.0)));
      auto line =
          fmt::format("\r[{:=<{}}{:<{}}] {:3.0f} % · {} done · {} running · {} failed · {:.0f} tokens/s ", "",
                      filled, "", 30 - filled, 100 * std::min(share, 1.0), finished, in_flight_,
                      stats_.failed, static_cast<double>(stats_.output_tokens) / passed);
      std::fputs(line.c_str(), stderr);
    }
    std::fputs("\r\033[K", stderr);
  }

  const BenchOptions& options_;
  const Trace& trace_;  // without requests: a synthetic load
  const double words_per_token_;
  const bool progress_;
  asio::io_context io_{1};
  asio::signal_set interrupts_{io_, SIGINT};
  asio::steady_timer alarm_{io_}, tick_{io_};
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<BenchClient>> idle_;
  BenchStats stats_;
  TimePoint begin_, last_answer_ = Clock::now();
  uint64_t issued_ = 0;
  int tasks_ = 0, in_flight_ = 0;
  bool interrupted_ = false;
};

// Runs one coroutine to its end on an event loop of its own.
template <class T>
T run_alone(asio::io_context& io, asio::awaitable<T> task) {
  std::optional<T> result;
  asio::co_spawn(io, std::move(task), [&](std::exception_ptr failure, T value) {
    if (failure) std::rethrow_exception(failure);
    result = std::move(value);
  });
  io.run();
  return std::move(*result);
}

Result<std::string> first_model(const BenchOptions& options) {
  asio::io_context io{1};
  BenchClient client(io, options);
  // Result has no empty state, which co_spawn's handler needs: wrapped.
  auto answer = run_alone(io, [](BenchClient& c) -> asio::awaitable<std::optional<Result<std::string>>> {
    co_return co_await c.get("/v1/models");
  }(client));
  if (!answer->ok()) return answer->error();
  boost::system::error_code error;
  auto value = boost::json::parse(**answer, error);
  const boost::json::value* id = error ? nullptr : value.find_pointer("/data/0/id", error);
  if (error || !id || !id->is_string())
    return Error{Code::kUnavailable, "/v1/models names no model; give one with --model", ""};
  return std::string(id->get_string());
}

// Words a token, from one short request.
Result<double> probe(const BenchOptions& options) {
  asio::io_context io{1};
  BenchClient client(io, options);
  auto outcome = run_alone(io, client.stream(synthetic_prompt(options.seed, ~0ull, kProbeWords), 1));
  if (!outcome.error.empty())
    return Error{Code::kUnavailable,
                 fmt::format("http://{}:{}: the first request failed: {}: {}", options.server.host,
                             options.server.port, outcome.error, outcome.detail),
                 ""};
  if (outcome.prompt_tokens == 0) return 1.0;  // a server without usage: a word is about a token
  return static_cast<double>(kProbeWords) / static_cast<double>(outcome.prompt_tokens);
}

}  // namespace

Result<BenchStats> run_bench(BenchOptions& options, bool progress) {
  Trace trace;
  if (!options.trace.file.empty()) {
    LOWKEY_ASSIGN(read, Trace::read(options.trace));
    trace = std::move(read);
  }
  if (options.model.empty()) {
    LOWKEY_ASSIGN(model, first_model(options));
    options.model = model;
  }
  LOWKEY_ASSIGN(words_per_token, probe(options));
  return Load(options, trace, words_per_token, progress).run();
}

}  // namespace lowkey::cli
