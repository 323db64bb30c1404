// Finds stop strings in text that arrives in pieces.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lowkey::coordinator {

// One per request, not thread-safe. The first stop string to be complete ends the text just before it (of
// several that end at the same byte, the longest); the result does not depend on how the text was cut into
// pieces.
class StopMatcher {
 public:
  static constexpr size_t kMaxStops = 16;
  static constexpr size_t kMaxStopBytes = 256;

  struct Output {
    std::string text;      // safe to send: no stop string can begin inside it
    bool stopped = false;  // a stop string was found; everything from it on is dropped
    int which = -1;        // its index
  };

  // Refuses more than kMaxStops, and stops that are empty or longer than kMaxStopBytes
  // (Code::kInvalidArgument, "stop").
  static Result<StopMatcher> create(std::vector<std::string> stops);

  // After a stop, further text is dropped.
  Output push(std::string_view text);
  // The text held back, when no more comes.
  std::string flush();

 private:
  // Knuth-Morris-Pratt over one stop string.
  struct Stop {
    std::string text;
    std::vector<uint16_t> fallback;  // [i]: length of the longest proper prefix that ends text[0..i]
    size_t matched = 0;
  };

  std::vector<Stop> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace lowkey::coordinator
