#include "cli/bench.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>

#include "cli/bench_load.h"

namespace lowkey::cli {
namespace {

struct Command {
  BenchOptions options;
  std::string url = "http://127.0.0.1:8000";
  std::string prompt_tokens = "128", output_tokens = "64", endpoint = "completions";
  std::string json_file;
};

// A CLI11 check out of one of our parsers.
template <class T>
CLI::Validator parses_as(const char* shape) {
  return CLI::Validator(
      [](std::string& text) {
        auto parsed = T::parse(text);
        return parsed.ok() ? std::string() : parsed.error().message;
      },
      shape);
}

int run(Command& command) {
  auto& options = command.options;
  options.server = *ServerUrl::parse(command.url);
  options.prompt_tokens = *LengthDistribution::parse(command.prompt_tokens);
  options.output_tokens = *LengthDistribution::parse(command.output_tokens);
  options.chat = command.endpoint == "chat";
  auto stats = run_bench(options, isatty(STDERR_FILENO));
  if (!stats.ok()) {
    fmt::print(stderr, "lowkey bench: {}\n", stats.error().message);
    const auto code = stats.error().code;
    return code == Code::kUsage ? 2 : code == Code::kBadInput ? 3 : 4;
  }
  fmt::print("{}", stats->text());
  if (!command.json_file.empty()) {
    std::ofstream file(command.json_file);
    file << stats->json(options) << '\n';
    if (!file.flush()) {
      fmt::print(stderr, "lowkey bench: cannot write {}\n", command.json_file);
      return 4;
    }
  }
  return stats->answered > 0 ? 0 : 4;
}

// What to ask, and when.
void add_load_options(CLI::App& bench, Command& command) {
  auto& options = command.options;
  bench.add_option("--endpoint", command.endpoint, "completions or chat")
      ->capture_default_str()
      ->check(CLI::IsMember({"completions", "chat"}));
  auto* concurrency =
      bench.add_option("--concurrency", options.concurrency, "requests in flight at any time")
          ->capture_default_str()
          ->check(CLI::Range(1, 10000));
  bench.add_option("--rate", options.rate, "Poisson arrivals per second, instead of --concurrency")
      ->check(CLI::Range(1e-3, 1e5))
      ->excludes(concurrency);
  auto* requests = bench.add_option("--requests", options.requests, "requests to send")
                       ->capture_default_str()
                       ->check(CLI::Range(1, 100'000'000));
  bench
      .add_option("--duration", options.duration_seconds,
                  "seconds to send requests for, instead of --requests")
      ->check(CLI::Range(0.1, 1e6))
      ->excludes(requests);
  bench.add_option("--prompt-tokens", command.prompt_tokens, "prompt length: N or uniform:A,B")
      ->capture_default_str()
      ->check(parses_as<LengthDistribution>("LENGTH"));
  bench.add_option("--output-tokens", command.output_tokens, "answer length: N or uniform:A,B")
      ->capture_default_str()
      ->check(parses_as<LengthDistribution>("LENGTH"));
  bench.add_option("--seed", options.seed, "of prompts, lengths and arrivals")->capture_default_str();
}

// A trace says what to ask and when: it excludes every option above.
void add_trace_options(CLI::App& bench, TraceOptions& trace) {
  auto* file = bench.add_option("--trace", trace.file,
                                "replay this request trace: Mooncake (jsonl) or Azure LLM inference (csv)");
  for (const char* load : {"--endpoint", "--concurrency", "--rate", "--requests", "--duration",
                           "--prompt-tokens", "--output-tokens", "--seed"})
    file->excludes(bench.get_option(load));
  bench.add_option("--trace-speed", trace.speed, "arrivals this many times as fast")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1e6))
      ->needs(file);
  bench
      .add_option("--trace-tokens", trace.tokens,
                  "prompts, answers and shared prefixes this many times as long")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1e3))
      ->needs(file);
  bench.add_option("--trace-skip", trace.skip, "requests to leave out at the trace's start")
      ->check(CLI::Range(0, 100'000'000))
      ->needs(file);
  bench.add_option("--trace-requests", trace.requests, "requests to replay (default: all)")
      ->check(CLI::Range(1, 100'000'000))
      ->needs(file);
}

}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  auto command = std::make_shared<Command>();
  auto& options = command->options;
  auto* bench =
      app.add_subcommand("bench", "load over HTTP against an OpenAI-style server; latencies and throughput");
  bench->add_option("--url", command->url, "server, without /v1")
      ->capture_default_str()
      ->check(parses_as<ServerUrl>("http://HOST[:PORT]"));
  bench->add_option("--model", options.model, "model id (default: the first of /v1/models)");
  bench->add_option("--api-key", options.api_key, "sent as a Bearer token");
  bench
      ->add_option("--temperature", options.temperature,
                   "of the answers; 0: the likeliest token, more: tokens are drawn")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 2.0));
  add_load_options(*bench, *command);
  add_trace_options(*bench, options.trace);
  bench->add_option("--timeout", options.timeout_seconds, "seconds one request may take")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 1e6));
  bench->add_option("--json", command->json_file, "also write the report to this file");
  bench->callback([command, &exit_code] {
    if (command->options.duration_seconds > 0) command->options.requests = 0;
    exit_code = run(*command);
  });
}

}  // namespace lowkey::cli
