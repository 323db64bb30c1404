// Server-sent events (HTML standard, section 9.2) out of a byte stream, as far as OpenAI-style answers use
// them.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lowkey::cli {

class SseReader {
 public:
  static constexpr size_t kMaxEventBytes = 1 << 20;

  // Calls `on_data` for each complete event that has data, lines joined by '\n'. Fails on an event over the
  // limit.
  Status feed(std::string_view bytes, const std::function<void(std::string_view)>& on_data);

 private:
  void end_line(const std::function<void(std::string_view)>& on_data);

  std::string line_, data_;
  bool has_data_ = false;
  bool after_cr_ = false;  // CR LF is one line end
};

}  // namespace lowkey::cli
