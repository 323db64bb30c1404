// Rows whose logits nobody wants stop behind the last layer that writes K and V: what is wanted has the same
// bits as where all rows go on, now and in the steps after.
#include <gtest/gtest.h>

#include "kernels/cpu/bf16_panels.h"
#include "kernels/ops/reference_backend.h"
#include "tests/support/guarded_backend.h"
#include "tests/support/replica.h"
#include "tests/unit/worker/model/golden.h"

namespace lowkey::testing {
namespace {

enum class Wants { kAll, kLast, kNone };
struct Part {
  int sequence, rows;
  Wants wants;
};
// Prompts in chunks beside decodes; pages of 16 tokens.
const std::vector<std::vector<Part>> kSteps = {
    {{0, 21, Wants::kNone}},
    {{0, 1, Wants::kLast}, {1, 20, Wants::kNone}, {2, 9, Wants::kLast}},
    {{2, 1, Wants::kLast}, {1, 15, Wants::kLast}, {0, 3, Wants::kAll}},
    {{0, 1, Wants::kLast}, {2, 1, Wants::kLast}, {1, 1, Wants::kLast}},
    {{1, 17, Wants::kNone}, {2, 14, Wants::kNone}},
    {{1, 2, Wants::kLast}, {2, 1, Wants::kLast}},
};

using Backends = std::function<std::unique_ptr<kernels::Backend>()>;

class WantedRows : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Replica> load(int tp, kernels::DType dtype, const Backends& backend) {
    auto replica =
        Replica::load(golden_dir() / GetParam(),
                      {.tp = tp, .dtype = dtype, .pages = {.page_tokens = 16}, .backend = backend});
    EXPECT_TRUE(replica.ok()) << replica.error().message;
    return replica.ok() ? std::move(*replica) : nullptr;
  }

  // The logits that kSteps wants, also where all rows' are computed.
  std::vector<std::vector<float>> run(Replica& replica, bool all) {
    std::vector<std::vector<float>> wanted;
    const int vocab = replica.model(0).config().vocab_size;
    for (const std::vector<Part>& step : kSteps) {
      std::vector<std::vector<int32_t>> tokens;
      std::vector<Rows> work;
      for (const Part& part : step) {
        std::vector<int32_t>& own = tokens.emplace_back();
        for (int i = 0; i < part.rows; ++i)
          own.push_back((replica.length(part.sequence) + i) * 37 % 101 * (part.sequence + 3) % vocab);
      }
      for (size_t i = 0; i < step.size(); ++i)
        work.push_back({step[i].sequence, tokens[i], all || step[i].wants == Wants::kAll,
                        step[i].wants != Wants::kNone});
      auto logits = replica.step(work);
      EXPECT_TRUE(logits.ok()) << logits.error().message;
      if (!logits.ok()) return {};
      size_t end = 0;
      for (const Part& part : step) {
        const size_t count = part.wants == Wants::kAll ? part.rows : part.wants == Wants::kLast ? 1 : 0;
        end += all ? part.rows : count;
        for (size_t i = end - count; i < end; ++i) wanted.push_back((*logits)[i]);
      }
    }
    return wanted;
  }

  void expect_same(int tp, kernels::DType dtype, const Backends& backend) {
    const auto all = load(tp, dtype, backend), few = load(tp, dtype, backend);
    ASSERT_TRUE(all && few);
    const auto expected = run(*all, true);
    ASSERT_FALSE(expected.empty());
    EXPECT_EQ(run(*few, false), expected) << "TP " << tp;
  }
};

TEST_P(WantedRows, HaveTheBitsOfAllRows) {
  for (const int tp : {1, 2})
    expect_same(tp, kernels::DType::kF32,
                [] { return kernels::make_reference_backend(kernels::DType::kF32); });
}

TEST_P(WantedRows, HaveTheBitsOfAllRowsInBf16) {
  if (!kernels::has_bf16_panels()) GTEST_SKIP() << "oneDNN's products round by their number of rows";
  for (const int tp : {1, 2}) expect_same(tp, kernels::DType::kBf16, {});
}

TEST_P(WantedRows, HaveTheBitsOfAllRowsOnADevice) {
  expect_same(1, kernels::DType::kF32, [] {
    return std::make_unique<GuardedBackend>(kernels::make_reference_backend(kernels::DType::kF32));
  });
}

INSTANTIATE_TEST_SUITE_P(Golden, WantedRows,
                         ::testing::Values("llama_gqa_scaled", "llama_bias", "llama_cla2", "llama_cla3",
                                           "llama_mlkv", "qwen3", "phi3", "gemma2", "gemma3", "mistral"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lowkey::testing
