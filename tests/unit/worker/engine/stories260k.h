// The texts of the stories260K reference, and where its model lies; tests that need them skip without them.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "tests/unit/worker/model/golden.h"

namespace lowkey::testing {

struct Stories260K {
  std::filesystem::path model = shared_data() / "models" / "stories260K-hf";
  std::vector<std::vector<int32_t>> texts;  // prompt and greedy continuation, with the leading BOS
  std::vector<size_t> prompt_sizes;

  bool read() {
    const auto reference = shared_data() / "models" / "stories260K" / "greedy_reference.json";
    if (!std::filesystem::exists(model) || !std::filesystem::exists(reference)) return false;
    const auto golden = read_json(reference);
    for (const auto& item : golden.at("cases").as_array()) {
      texts.push_back(ids(item.at("tokens_after_bos")));
      texts.back().insert(texts.back().begin(), 1);
      prompt_sizes.push_back(item.at("prompt_ids").as_array().size());
    }
    return true;
  }
};

}  // namespace lowkey::testing
