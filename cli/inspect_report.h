// What `lowkey inspect MODEL_DIR` prints, as text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/result.h"
#include "kernels/page/page_layout.h"
#include "kvstore/recipe/recipe.h"

namespace lowkey::cli {

struct InspectOptions {
  int tp = 1;
  kernels::DType dtype = kernels::DType::kBf16;
  uint64_t kv_bytes = 0;  // of all ranks together, as serve's --kv-bytes
};

// The compressed recipe that is always shown: as recipes/q8.yaml.
kvstore::Recipe q8_recipe();

// Model, weights per rank for every possible TP, cache bytes and their ratio to plain bf16 per recipe, and
// what fits into the budget. Reads headers and samples of the weight files only. Errors: kBadInput, kUsage.
Result<std::string> inspect_report(const std::filesystem::path& model_dir, const InspectOptions& options,
                                   std::span<const kvstore::Recipe> recipes);

// The longest sequence whose bytes on one rank stay within `bytes`; 0 when not even one token does.
uint64_t tokens_that_fit(const kernels::PageLayout& layout, uint64_t bytes);

}  // namespace lowkey::cli
