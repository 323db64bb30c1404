#include "cli/bench_trace.h"

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>

namespace lowkey::cli {
namespace {

namespace json = boost::json;

constexpr int64_t kMostTokens = 10'000'000;             // of one request
constexpr int64_t kMostMilliseconds = 1ll << 40;        // 34 years
constexpr int32_t kFirstToken = 32, kTokenKinds = 224;  // ids of prompts: 32..255
constexpr uint64_t kMostBlockId = uint64_t{kTokenKinds} * kTokenKinds * kTokenKinds * kTokenKinds - 1;
constexpr std::string_view kMooncakeShape =
    R"({"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]})";
constexpr std::string_view kAzureHead = "TIMESTAMP,ContextTokens,GeneratedTokens";

// A line of the file as it stands there, before any scaling.
struct RawRequest {
  int64_t microseconds = 0;
  int64_t prompt_tokens = 0, output_tokens = 0;
  std::vector<uint64_t> blocks;
};

// Where in the file we are; every complaint names it.
class LineReader {
 public:
  explicit LineReader(const std::string& file) : name_(file), stream_(file) {}

  bool opened() const { return stream_.is_open(); }
  // The next line that holds anything, without its end.
  bool next() {
    while (std::getline(stream_, line_)) {
      ++number_;
      if (number_ == 1 && line_.starts_with("\xef\xbb\xbf")) line_.erase(0, 3);
      while (!line_.empty() && (line_.back() == '\r' || line_.back() == ' ')) line_.pop_back();
      if (!line_.empty()) return true;
    }
    line_.clear();
    return false;
  }
  const std::string& line() const { return line_; }
  Error bad(std::string_view expected) const {
    return bad(expected, line_.empty() ? "the end of the file" : "'" + shortened(line_) + "'");
  }
  Error bad(std::string_view expected, std::string_view found) const {
    return Error{Code::kBadInput,
                 fmt::format("{}:{}: expected {}, found {}", name_, std::max(number_, 1), expected, found),
                 ""};
  }

 private:
  static std::string shortened(const std::string& text) {
    std::string out = text.substr(0, 80) + (text.size() > 80 ? "..." : "");
    for (char& c : out)
      if (static_cast<unsigned char>(c) < ' ') c = '?';
    return out;
  }

  std::string name_;
  std::ifstream stream_;
  std::string line_;
  int number_ = 0;
};

Result<int64_t> whole_number(const LineReader& reader, const json::object& object, const char* name,
                             int64_t least, int64_t most) {
  const auto* value = object.if_contains(name);
  if (!value || !value->is_int64() || value->get_int64() < least || value->get_int64() > most)
    return reader.bad(fmt::format("'{}' as a whole number from {} to {}", name, least, most),
                      value ? json::serialize(*value).substr(0, 80) : std::string("none"));
  return value->get_int64();
}

Result<RawRequest> mooncake_request(const LineReader& reader) {
  boost::system::error_code error;
  const auto value = json::parse(reader.line(), error);
  if (error || !value.is_object()) return reader.bad(kMooncakeShape);
  const auto& object = value.get_object();
  LOWKEY_ASSIGN(milliseconds, whole_number(reader, object, "timestamp", 0, kMostMilliseconds));
  LOWKEY_ASSIGN(prompt, whole_number(reader, object, "input_length", 1, kMostTokens));
  LOWKEY_ASSIGN(output, whole_number(reader, object, "output_length", 0, kMostTokens));
  RawRequest request{milliseconds * 1000, prompt, output, {}};
  const auto* ids = object.if_contains("hash_ids");
  const auto blocks = (prompt + Trace::kMooncakeBlock - 1) / Trace::kMooncakeBlock;
  if (!ids || !ids->is_array() || static_cast<int64_t>(ids->get_array().size()) != blocks)
    return reader.bad(
        fmt::format("'hash_ids' with {} ids, one per {} tokens of {}", blocks, Trace::kMooncakeBlock, prompt),
        ids && ids->is_array() ? std::to_string(ids->get_array().size()) : std::string("none"));
  for (const auto& id : ids->get_array()) {
    if (!id.is_int64() || id.get_int64() < 0 || static_cast<uint64_t>(id.get_int64()) > kMostBlockId)
      return reader.bad(fmt::format("hash ids from 0 to {}", kMostBlockId),
                        json::serialize(id).substr(0, 80));
    request.blocks.push_back(static_cast<uint64_t>(id.get_int64()));
  }
  return request;
}

// "2023-11-16 18:17:03.9799600" as microseconds since 1970.
std::optional<int64_t> parse_time(const std::string& text) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, read = 0;
  double second = 0;
  if (std::sscanf(text.c_str(), "%4d-%2d-%2d %2d:%2d:%lf%n", &year, &month, &day, &hour, &minute, &second,
                  &read) != 6 ||
      read != static_cast<int>(text.size()))
    return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(year),
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!date.ok() || hour < 0 || hour > 23 || minute < 0 || minute > 59 || !(second >= 0 && second < 61))
    return std::nullopt;
  const int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  return ((days * 24 + hour) * 60 + minute) * 60'000'000 + std::llround(second * 1e6);
}

std::optional<int64_t> parse_length(std::string_view text) {
  int64_t value = 0;
  auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size() || value < 0 || value > kMostTokens)
    return std::nullopt;
  return value;
}

Result<RawRequest> azure_request(const LineReader& reader, uint64_t number) {
  const std::string& line = reader.line();
  const auto first = line.find(','), second = line.find(',', first + 1);
  if (first == line.npos || second == line.npos)
    return reader.bad("YYYY-MM-DD HH:MM:SS.F,ContextTokens,GeneratedTokens");
  const auto time = parse_time(line.substr(0, first));
  if (!time) return reader.bad("a time YYYY-MM-DD HH:MM:SS.F first");
  const auto prompt = parse_length(std::string_view(line).substr(first + 1, second - first - 1));
  const auto output = parse_length(std::string_view(line).substr(second + 1));
  if (!prompt || *prompt < 1 || !output)
    return reader.bad(fmt::format("two lengths in tokens, at most {}, behind the time", kMostTokens));
  return RawRequest{*time, *prompt, *output, {number}};
}

int scaled(int64_t tokens, double scale) {
  return static_cast<int>(
      std::clamp<double>(std::round(static_cast<double>(tokens) * scale), 1, kMostTokens));
}

// SplitMix64's finalizer: every bit of the result depends on every bit of the argument.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

Result<Trace> Trace::read(const TraceOptions& options) {
  LineReader reader(options.file);
  if (!reader.opened())
    return Error{Code::kBadInput, fmt::format("{}: expected a readable trace file, found none", options.file),
                 ""};
  const bool any = reader.next();
  const bool mooncake = any && reader.line().starts_with('{');
  if (!mooncake && reader.line() != kAzureHead)
    return reader.bad(
        fmt::format("a Mooncake trace ({}) or an Azure trace ({})", kMooncakeShape, kAzureHead));

  Trace trace{.format = mooncake ? "mooncake" : "azure"};
  double scale = options.tokens;
  if (mooncake) {
    trace.block_tokens = static_cast<int>(std::lround(std::min(kMooncakeBlock * options.tokens, 1e6)));
    scale = static_cast<double>(trace.block_tokens) / kMooncakeBlock;
    if (trace.block_tokens < kLeastBlock)
      return Error{
          Code::kUsage,
          fmt::format("--trace-tokens {} makes blocks of {} tokens; expected at least {}, so {:g} or more",
                      options.tokens, trace.block_tokens, kLeastBlock,
                      static_cast<double>(kLeastBlock) / kMooncakeBlock),
          ""};
  } else {
    trace.block_tokens = std::numeric_limits<int>::max();
  }

  uint64_t number = 0;
  int64_t begin = 0, last = std::numeric_limits<int64_t>::min();
  for (bool more = mooncake || reader.next(); more; more = reader.next(), ++number) {
    if (options.requests > 0 && trace.requests.size() == static_cast<size_t>(options.requests)) break;
    LOWKEY_ASSIGN(raw, mooncake ? mooncake_request(reader) : azure_request(reader, number));
    if (raw.microseconds < last) return reader.bad("times that ascend");
    last = raw.microseconds;
    if (number < static_cast<uint64_t>(options.skip)) continue;
    if (trace.requests.empty()) begin = raw.microseconds;
    TraceRequest request{.output_tokens = scaled(raw.output_tokens, scale), .blocks = std::move(raw.blocks)};
    request.at = std::chrono::duration_cast<Duration>(std::chrono::duration<double, std::micro>(
        static_cast<double>(raw.microseconds - begin) / options.speed));
    if (mooncake) {
      const int whole = static_cast<int>(request.blocks.size()) - 1;
      const int64_t rest = raw.prompt_tokens - int64_t{whole} * kMooncakeBlock;
      request.prompt_tokens = whole * trace.block_tokens + scaled(rest, scale);
    } else {
      request.prompt_tokens = scaled(raw.prompt_tokens, scale);
    }
    trace.requests.push_back(std::move(request));
  }
  if (trace.requests.empty())
    return reader.bad(fmt::format("requests behind the first {}", options.skip),
                      fmt::format("{} in all", number));
  return trace;
}

std::vector<int32_t> trace_prompt(const Trace& trace, const TraceRequest& request) {
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(request.prompt_tokens));
  for (uint64_t block : request.blocks) {
    uint64_t digits = block;
    for (int i = 0; i < trace.block_tokens && static_cast<int>(tokens.size()) < request.prompt_tokens; ++i) {
      const uint64_t kind =
          i < Trace::kLeastBlock ? digits : mix(block * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(i));
      tokens.push_back(kFirstToken + static_cast<int32_t>(kind % kTokenKinds));
      digits /= kTokenKinds;
    }
  }
  return tokens;
}

}  // namespace lowkey::cli
