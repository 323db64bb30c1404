// The work of `lowkey calibrate`, without its flags.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvstore/profile/profile.h"

namespace lowkey::cli {

struct CalibrationOptions {
  std::filesystem::path model_dir;
  std::filesystem::path text;
  std::filesystem::path recipe;  // empty: ours, weighted bases and embedded codes
  // Ratios, the first level's first where a budget has several; shares of the features (one each) where the
  // recipe has no quantizer. Empty: usual.
  std::vector<std::vector<double>> budgets;
  int64_t tokens = 128 * 1024;  // of text
  bool train = false;
  int64_t train_steps = 0;  // 0: the trainer's own
  int threads = 1;
  std::string weights = "auto";  // one of serve's --weights
  // Windows of the loss pass: a forward pass of each for every vector, group and width.
  int loss_windows = 12;
};

struct BudgetReport {  // of a budget, or of its first levels
  std::string name;
  double ratio = 0;             // all bytes at kBudgetTokens, bf16 over ours
  double bits_per_element = 0;  // planes, scales and norms of complete pages
  double loss = 0;              // KL on the calibration text
};

struct Calibration {
  kvstore::Profile profile;
  std::vector<BudgetReport> budgets;
};

// Errors: kUsage (what the options or the recipe ask), kBadInput (files), kInternal.
Result<Calibration> calibrate(const CalibrationOptions& options);

}  // namespace lowkey::cli
