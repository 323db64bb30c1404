#include "cli/bench_options.h"

#include <array>
#include <charconv>

namespace lowkey::cli {
namespace {

constexpr int kMaxTokens = 10'000'000;

Result<int> positive(std::string_view text, std::string_view whole) {
  int value = 0;
  auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size() || value < 1 || value > kMaxTokens)
    return Error{
        Code::kUsage,
        fmt::format("expected N or uniform:A,B with lengths of 1 to {}, found '{}'", kMaxTokens, whole), ""};
  return value;
}

}  // namespace

Result<ServerUrl> ServerUrl::parse(std::string_view text) {
  constexpr std::string_view kScheme = "http://";
  const Error bad{Code::kUsage, fmt::format("expected http://HOST[:PORT][/PREFIX], found '{}'", text), ""};
  if (!text.starts_with(kScheme)) return bad;
  auto rest = text.substr(kScheme.size());
  auto slash = std::min(rest.find('/'), rest.size());
  auto authority = rest.substr(0, slash);
  auto prefix = rest.substr(slash);
  while (prefix.ends_with('/')) prefix.remove_suffix(1);
  ServerUrl url;
  url.prefix = prefix;
  auto host = authority;
  auto bracket = authority.find(']');  // an IPv6 address: [::1]:8000
  auto colon = authority.find(':', bracket == authority.npos ? 0 : bracket);
  if (colon != authority.npos) {
    host = authority.substr(0, colon);
    url.port = authority.substr(colon + 1);
    int number = 0;
    auto [end, failure] = std::from_chars(url.port.data(), url.port.data() + url.port.size(), number);
    if (failure != std::errc() || *end != 0 || number < 1 || number > 65535) return bad;
  }
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  if (host.empty() || host.find_first_of(" @?#[]") != host.npos) return bad;
  url.host = host;
  return url;
}

Result<LengthDistribution> LengthDistribution::parse(std::string_view text) {
  constexpr std::string_view kUniform = "uniform:";
  auto rest = text.starts_with(kUniform) ? text.substr(kUniform.size()) : text;
  auto comma = rest.find(',');
  if (text.starts_with(kUniform) != (comma != rest.npos)) comma = 0;  // refused below: an empty number
  LOWKEY_ASSIGN(least, positive(rest.substr(0, comma), text));
  if (comma == rest.npos) return LengthDistribution{least, least};
  LOWKEY_ASSIGN(most, positive(rest.substr(comma + 1), text));
  if (most < least)
    return Error{Code::kUsage, fmt::format("expected A <= B in uniform:A,B, found '{}'", text), ""};
  return LengthDistribution{least, most};
}

std::string synthetic_prompt(uint64_t seed, uint64_t request, int words) {
  static constexpr std::array kWords{
      "time",  "people", "way",   "water", "day",   "house", "man",   "world", "life",   "hand",  "part",
      "place", "work",   "week",  "case",  "point", "night", "door",  "light", "story",  "river", "young",
      "old",   "great",  "small", "long",  "good",  "dark",  "white", "green", "early",  "open",  "said",
      "went",  "came",   "took",  "found", "gave",  "told",  "left",  "made",  "knew",   "the",   "and",
      "of",    "in",     "to",    "with",  "from",  "under", "over",  "after", "before", "again", "never",
      "there", "here",   "every", "some",  "many",  "one",   "two",   "three", "last"};
  std::mt19937_64 random(seed * 0x9e3779b97f4a7c15ull + request);
  std::string prompt;
  for (int i = 0; i < words; ++i) {
    if (i) prompt += ' ';
    prompt += kWords[random() % kWords.size()];
  }
  return prompt;
}

}  // namespace lowkey::cli
