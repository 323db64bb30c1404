#include "cli/bench_sse.h"

namespace lowkey::cli {

Status SseReader::feed(std::string_view bytes, const std::function<void(std::string_view)>& on_data) {
  for (char c : bytes) {
    bool second_half = after_cr_ && c == '\n';
    after_cr_ = c == '\r';
    if (second_half) continue;
    if (c == '\n' || c == '\r') {
      end_line(on_data);
    } else {
      line_ += c;
      if (line_.size() + data_.size() > kMaxEventBytes)
        return Error{Code::kTooLarge, fmt::format("an event of more than {} bytes", kMaxEventBytes), ""};
    }
  }
  return {};
}

void SseReader::end_line(const std::function<void(std::string_view)>& on_data) {
  if (line_.empty()) {
    if (has_data_) on_data(data_);
    data_.clear();
    has_data_ = false;
    return;
  }
  std::string_view rest = line_;
  if (rest == "data" || rest.starts_with("data:")) {
    rest.remove_prefix(std::min<size_t>(5, rest.size()));
    if (rest.starts_with(' ')) rest.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += rest;
    has_data_ = true;
  }
  line_.clear();
}

}  // namespace lowkey::cli
