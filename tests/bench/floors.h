// What this machine can do at best, measured in the same run as what is compared with it.
#pragma once

#include <span>

namespace lowkey::testing {

// Bytes per second read by `threads` threads from memory far beyond the caches: best of 1, 2, 4 and 8 streams
// per thread, huge pages.
double best_read_bandwidth(int threads);

struct GemmShape {
  int in = 0;
  int out = 0;
};

// Seconds of `repeats` times all of y[rows, out] = x W^T, by oneDNN in bf16 with weights in its own format:
// each of `threads` threads takes its part of the rows on one oneDNN thread. Best of several rounds.
double onednn_seconds(std::span<const GemmShape> shapes, int repeats, int rows, int threads);

}  // namespace lowkey::testing
