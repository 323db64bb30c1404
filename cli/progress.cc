#include "cli/progress.h"

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace lowkey::cli {

Progress::Progress(std::string what, int64_t total)
    : what_(std::move(what)),
      total_(std::max<int64_t>(total, 1)),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()) {
  advance(0);
}

Progress::~Progress() {
  if (terminal_ && shown_) fmt::print(stderr, "\n");
}

void Progress::advance(int64_t done, const std::string& note) {
  const int64_t tenths = 10 * done / total_;
  if (!terminal_ && tenths == tenths_) return;
  tenths_ = tenths;
  shown_ = true;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  if (!terminal_) {
    fmt::print(stderr, "{}: {}/{}, {:.0f} s {}\n", what_, done, total_, seconds, note);
    return;
  }
  constexpr int64_t kWidth = 30;
  const int64_t filled = std::min(kWidth, kWidth * done / total_);
  fmt::print(stderr, "\r{:<24} [{:#>{}}{:.>{}}] {}/{}, {:.0f} s {}  ", what_, "", filled, "", kWidth - filled,
             done, total_, seconds, note);
}

}  // namespace lowkey::cli
