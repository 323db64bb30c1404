#include "cli/bench_options.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <set>

#include "cli/bench.h"

namespace lowkey::cli {
namespace {

TEST(ServerUrl, Parses) {
  auto url = *ServerUrl::parse("http://127.0.0.1:8000");
  EXPECT_EQ(url.host + "|" + url.port + "|" + url.prefix, "127.0.0.1|8000|");
  url = *ServerUrl::parse("http://example.org/api/");
  EXPECT_EQ(url.host + "|" + url.port + "|" + url.prefix, "example.org|80|/api");
  url = *ServerUrl::parse("http://[::1]:81");
  EXPECT_EQ(url.host + "|" + url.port + "|" + url.prefix, "::1|81|");
  for (auto text : {"", "localhost:8000", "https://localhost", "http://", "http://a:0", "http://a:70000",
                    "http://a:b", "http://user@host", "http://a b"})
    EXPECT_FALSE(ServerUrl::parse(text).ok()) << text;
}

TEST(LengthDistribution, ParsesAndDraws) {
  auto fixed = *LengthDistribution::parse("128");
  std::mt19937_64 random(1);
  EXPECT_EQ(fixed.draw(random), 128);
  auto uniform = *LengthDistribution::parse("uniform:3,5");
  std::set<int> seen;
  for (int i = 0; i < 200; ++i) seen.insert(uniform.draw(random));
  EXPECT_EQ(seen, (std::set<int>{3, 4, 5}));
  EXPECT_EQ(uniform.mean(), 4);
  for (auto text : {"", "0", "-1", "x", "1.5", "uniform:", "uniform:5", "uniform:5,3", "uniform:0,3", "3,5",
                    "uniform:1,2,3", "normal:1,2", "99999999999"})
    EXPECT_FALSE(LengthDistribution::parse(text).ok()) << text;
}

TEST(SyntheticPrompt, IsReproducibleAndDiffersByRequest) {
  EXPECT_EQ(synthetic_prompt(1, 2, 50), synthetic_prompt(1, 2, 50));
  std::set<std::string> starts;
  for (uint64_t request = 0; request < 100; ++request) starts.insert(synthetic_prompt(0, request, 6));
  EXPECT_EQ(starts.size(), 100u) << "prompts must not share prefixes, or caches would be measured";
  EXPECT_EQ(std::ranges::count(synthetic_prompt(0, 0, 20), ' '), 19);
}

TEST(BenchCommand, RefusesBadOptions) {
  for (std::vector<std::string> arguments :
       std::vector<std::vector<std::string>>{{"--url", "ftp://x"},
                                             {"--concurrency", "0"},
                                             {"--concurrency", "4", "--rate", "3"},
                                             {"--requests", "5", "--duration", "3"},
                                             {"--prompt-tokens", "uniform:9,3"},
                                             {"--output-tokens", "many"},
                                             {"--endpoint", "embeddings"},
                                             {"--trace", "t", "--rate", "3"},
                                             {"--trace", "t", "--requests", "3"},
                                             {"--trace", "t", "--trace-speed", "0"},
                                             {"--trace", "t", "--trace-requests", "0"},
                                             {"--trace-tokens", "0.5"},
                                             {"--surprise"}}) {
    CLI::App app;
    int exit_code = -1;
    add_bench_command(app, exit_code);
    auto line = arguments;
    line.insert(line.begin(), "bench");
    std::ranges::reverse(line);  // CLI11 takes a vector from its back
    EXPECT_THROW(app.parse(line), CLI::ParseError) << arguments[0];
    EXPECT_EQ(exit_code, -1);
  }
}

}  // namespace
}  // namespace lowkey::cli
