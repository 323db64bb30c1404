#include "coordinator/text/stop_matcher.h"

#include <algorithm>

namespace lowkey::coordinator {

Result<StopMatcher> StopMatcher::create(std::vector<std::string> stops) {
  const auto bad = [](const std::string& message) { return Error{Code::kInvalidArgument, message, "stop"}; };
  if (stops.size() > kMaxStops) {
    return bad(fmt::format("stop: expected at most {} strings, found {}", kMaxStops, stops.size()));
  }
  StopMatcher matcher;
  for (std::string& text : stops) {
    if (text.empty() || text.size() > kMaxStopBytes) {
      return bad(
          fmt::format("stop: expected strings of 1..{} bytes, found one of {}", kMaxStopBytes, text.size()));
    }
    Stop stop{std::move(text), {}, 0};
    stop.fallback.assign(stop.text.size(), 0);
    for (size_t i = 1, length = 0; i < stop.text.size(); ++i) {
      while (length > 0 && stop.text[i] != stop.text[length]) length = stop.fallback[length - 1];
      if (stop.text[i] == stop.text[length]) ++length;
      stop.fallback[i] = static_cast<uint16_t>(length);
    }
    matcher.stops_.push_back(std::move(stop));
  }
  return matcher;
}

StopMatcher::Output StopMatcher::push(std::string_view text) {
  Output output;
  if (stopped_) return output;
  for (const char c : text) {
    held_ += c;
    for (size_t i = 0; i < stops_.size(); ++i) {
      Stop& stop = stops_[i];
      while (stop.matched > 0 && c != stop.text[stop.matched]) stop.matched = stop.fallback[stop.matched - 1];
      if (c == stop.text[stop.matched]) ++stop.matched;
      if (stop.matched < stop.text.size()) continue;
      if (output.which < 0 || stop.text.size() > stops_[output.which].text.size())
        output.which = static_cast<int>(i);
    }
    if (output.which >= 0) {
      stopped_ = output.stopped = true;
      held_.resize(held_.size() - stops_[output.which].text.size());
      output.text = std::exchange(held_, {});
      return output;
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  output.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return output;
}

std::string StopMatcher::flush() {
  for (Stop& stop : stops_) stop.matched = 0;
  return std::exchange(held_, {});
}

}  // namespace lowkey::coordinator
