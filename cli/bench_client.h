// One keep-alive connection of `lowkey bench` to an OpenAI-style server.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/deadline.h"
#include "cli/bench_options.h"
#include "cli/bench_stats.h"

namespace lowkey::cli {

using BenchPrompt = std::variant<std::string, std::vector<int32_t>>;  // text or token ids (completions only)

class BenchClient {
 public:
  BenchClient(boost::asio::io_context& io, const BenchOptions& options);
  ~BenchClient();

  // The JSON text of a GET below the server's prefix, or kUnavailable with the reason.
  boost::asio::awaitable<Result<std::string>> get(std::string path);

  // Sends one streamed request and reads its events to the end. Failures are in the outcome.
  boost::asio::awaitable<RequestOutcome> stream(BenchPrompt prompt, int output_tokens);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lowkey::cli
