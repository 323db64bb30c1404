#include "many_strings.h"

#include "coordinator/text/utf8.h"
#include "golden.h"

namespace lowkey::coordinator {
namespace {

constexpr int kCount = 10000, kBlock = 10;

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t n) {
    uint64_t x = state_ += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return (x ^ (x >> 31)) % n;
  }

 private:
  uint64_t state_;
};

}  // namespace

std::vector<std::string> many_strings() {
  const auto parts = read_golden(kGoldenDir / "many.json");
  const auto& words = parts.at("words").as_array();
  const auto& ranges = parts.at("ranges").as_array();
  std::vector<std::string> texts;
  for (int index = 0; index < kCount; ++index) {
    Random random(index);
    std::string text;
    for (uint64_t segments = 1 + random.below(6); segments > 0; --segments) {
      if (random.below(2) == 0) {
        text += as_string(words[random.below(words.size())]);
        continue;
      }
      const auto& range = ranges[random.below(ranges.size())];
      const auto low = static_cast<uint32_t>(range.at(0).as_int64()),
                 high = static_cast<uint32_t>(range.at(1).as_int64());
      for (uint64_t length = 1 + random.below(8); length > 0; --length)
        append_utf8(text, low + static_cast<uint32_t>(random.below(high - low + 1)));
    }
    texts.push_back(std::move(text));
  }
  return texts;
}

// FNV-1a over the ids, each list followed by -1.
std::vector<uint32_t> checksums(const std::vector<std::string>& texts,
                                const std::function<std::vector<int32_t>(const std::string&)>& encode) {
  std::vector<uint32_t> sums;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i % kBlock == 0) sums.push_back(0x811C9DC5u);
    std::vector<int32_t> ids = encode(texts[i]);
    ids.push_back(-1);
    for (const int32_t id : ids) {
      for (int shift = 0; shift < 32; shift += 8)
        sums.back() = (sums.back() ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x01000193u;
    }
  }
  return sums;
}

}  // namespace lowkey::coordinator
