// Whole greedy texts against independent references.
#include <gtest/gtest.h>

#include "tests/support/replica.h"
#include "tests/unit/worker/model/golden.h"

namespace lowkey::testing {
namespace {

class Stories260K : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    dir_ = shared_data() / "models" / "stories260K-hf";
    const auto reference = shared_data() / "models" / "stories260K" / "greedy_reference.json";
    if (!std::filesystem::exists(dir_) || !std::filesystem::exists(reference))
      GTEST_SKIP() << "stories260K: " << dir_.string() << " or its greedy_reference.json is absent";
    const auto golden = read_json(reference);
    for (const auto& item : golden.at("cases").as_array()) {
      Text text{ids(item.at("prompt_ids")), ids(item.at("tokens_after_bos"))};
      // tokens_after_bos holds the rest of the prompt, too.
      text.tokens.erase(text.tokens.begin(), text.tokens.begin() + (text.prompt.size() - 1));
      texts_.push_back(std::move(text));
    }
    ASSERT_EQ(texts_.size(), 3u);
  }
  std::unique_ptr<Replica> load() {
    auto replica = Replica::load(dir_, {.tp = GetParam()});
    EXPECT_TRUE(replica.ok()) << replica.error().message;
    return std::move(*replica);
  }

  struct Text {
    std::vector<int32_t> prompt, tokens;
  };
  std::filesystem::path dir_;
  std::vector<Text> texts_;
};

TEST_P(Stories260K, AloneAndChunked) {
  auto replica = load();
  for (size_t i = 0; i < texts_.size(); ++i) {
    const Text& text = texts_[i];
    for (const int chunk : {1 << 20, 3}) {
      const auto tokens = replica->greedy(0, text.prompt, static_cast<int>(text.tokens.size()), chunk);
      ASSERT_TRUE(tokens.ok()) << tokens.error().message;
      EXPECT_EQ(*tokens, text.tokens) << "text " << i << ", chunk " << chunk;
      replica->forget(0);
    }
  }
}

// All three in every step, prompts token by token beside decodes.
TEST_P(Stories260K, Together) {
  auto replica = load();
  std::vector<std::vector<int32_t>> texts, found(texts_.size());
  for (const Text& text : texts_) texts.push_back(text.prompt);
  while (true) {
    std::vector<Rows> step;
    std::vector<size_t> who;
    for (size_t i = 0; i < texts.size(); ++i) {
      if (found[i].size() == texts_[i].tokens.size()) continue;
      const size_t done = replica->length(static_cast<int>(i));
      step.push_back({static_cast<int>(i), std::span(texts[i]).subspan(done, 1)});
      who.push_back(i);
    }
    if (step.empty()) break;
    const auto logits = replica->step(step);
    ASSERT_TRUE(logits.ok()) << logits.error().message;
    for (size_t s = 0; s < who.size(); ++s) {
      const size_t i = who[s];
      if (replica->length(static_cast<int>(i)) < static_cast<int>(texts[i].size())) continue;
      const auto& row = logits.value()[s];
      texts[i].push_back(static_cast<int32_t>(std::ranges::max_element(row) - row.begin()));
      found[i].push_back(texts[i].back());
    }
  }
  for (size_t i = 0; i < texts_.size(); ++i) EXPECT_EQ(found[i], texts_[i].tokens) << "text " << i;
}

INSTANTIATE_TEST_SUITE_P(Tp, Stories260K, ::testing::Values(1, 2, 4), ::testing::PrintToStringParamName());

struct DemoText {
  std::vector<int32_t> prompt, tokens;
};

std::vector<DemoText> demo_texts() {
  std::vector<DemoText> texts;
  const auto golden = read_json(golden_dir() / "greedy_demo.json");
  for (const auto& item : golden.at("cases").as_array())
    texts.push_back({ids(item.at("prompt_ids")), ids(item.at("tokens"))});
  return texts;
}

// Smallest margin of the reference: 2.7e-3 of logits around 10; float32 sums differ by 1e-5.
TEST(Demo, ExactEqualsTransformers) {
  auto replica = Replica::load(demo_model(), {.threads = 2});
  ASSERT_TRUE(replica.ok()) << replica.error().message;
  for (const DemoText& text : demo_texts()) {
    const auto tokens = replica.value()->greedy(0, text.prompt, static_cast<int>(text.tokens.size()), 48);
    ASSERT_TRUE(tokens.ok());
    EXPECT_EQ(*tokens, text.tokens);
    replica.value()->forget(0);
  }
}

// Along the exact greedy text: how often q8 would have chosen the same token.
TEST(Demo, Q8AgreesAlongTheExactText) {
  auto replica = Replica::load(demo_model(), {.threads = 2, .pages = q8_pages()});
  ASSERT_TRUE(replica.ok()) << replica.error().message;
  int agree = 0, same_text = 0, total = 0;
  for (const DemoText& text : demo_texts()) {
    std::vector<int32_t> all = text.prompt;
    all.insert(all.end(), text.tokens.begin(), text.tokens.end() - 1);
    const auto logits = replica.value()->step(0, all);
    ASSERT_TRUE(logits.ok());
    const auto* row = logits->data() + text.prompt.size() - 1;
    for (size_t i = 0; i < text.tokens.size(); ++i)
      agree += std::ranges::max_element(row[i]) - row[i].begin() == text.tokens[i];
    const auto free_running = replica.value()->greedy(1, text.prompt, static_cast<int>(text.tokens.size()));
    ASSERT_TRUE(free_running.ok());
    for (size_t i = 0; i < text.tokens.size(); ++i) same_text += (*free_running)[i] == text.tokens[i];
    total += static_cast<int>(text.tokens.size());
    replica.value()->forget(0);
    replica.value()->forget(1);
  }
  std::printf("q8 against exact, %d tokens: %.2f %% teacher-forced, %.2f %% free-running\n", total,
              100.0 * agree / total, 100.0 * same_text / total);
  EXPECT_GE(agree, 0.95 * total);
}

}  // namespace
}  // namespace lowkey::testing
