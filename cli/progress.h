// A progress bar on stderr; a line every tenth where stderr is no terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace lowkey::cli {

class Progress {
 public:
  Progress(std::string what, int64_t total);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `note` stands behind the bar.
  void advance(int64_t done, const std::string& note = "");

 private:
  const std::string what_;
  const int64_t total_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  int64_t tenths_ = -1;
  bool shown_ = false;
};

}  // namespace lowkey::cli
