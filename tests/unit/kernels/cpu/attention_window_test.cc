// attend() under sliding windows and soft caps: against the float64 reference, against a plain formula, and
// bit against bit across chunk sizes, batches, and what is left of the pages behind the window.
#include "kernels/ops/attention_window.h"

#include "tests/unit/kernels/cpu/attention_support.h"

namespace lowkey::kernels::test {
namespace {

class WindowedAttention : public testing::TestWithParam<std::tuple<BackendCase, Recipe>> {
 protected:
  DType dtype = std::get<0>(GetParam()).dtype;
  bool in_pairs = std::get<0>(GetParam()).in_pairs;
  Recipe recipe = std::get<1>(GetParam());
  std::unique_ptr<Backend> backend = std::get<0>(GetParam()).make();
};

// As the engine does: pages wholly behind the window of every row that follows are gone before the chunk.
std::vector<float> attend_and_release(Backend& backend, const PageLayout& layout, const Shape& s,
                                      const Inputs& inputs, SequenceMemory& memory, int tokens, int chunk,
                                      Chunk like) {
  std::vector<float> all;
  std::vector<uint8_t> levels(tokens / s.page_tokens, static_cast<uint8_t>(layout.num_levels));
  const auto first_seen_page = [&](int slot) {
    return like.window == 0 ? 0 : std::max(0, slot - like.window + 1) / s.page_tokens;
  };
  for (int first = 0; first < tokens; first += chunk) {
    for (int page = 0; page < std::min<int>(first_seen_page(first), static_cast<int>(levels.size()));
         ++page) {
      levels[page] = 0;
      std::fill_n(memory.pointers.begin() + page * kMaxSlabs, kMaxSlabs, nullptr);
    }
    like.inputs = &inputs;
    like.memory = &memory;
    like.first = first;
    like.rows = std::min(chunk, tokens - first);
    like.page_levels = &levels;
    const auto part = attend(backend, layout, s, {like})[0];
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

TEST_P(WindowedAttention, EqualsTheReference) {
  const auto reference = make_reference_backend(dtype);
  for (const Shape& s : {Shape{6, 2, 64}, Shape{3, 1, 20, 16}}) {
    const PageLayout layout = make_layout(recipe, s, dtype);
    const int p = s.page_tokens, tokens = 4 * p + 9;
    const Inputs inputs(s, tokens, 70);
    for (const auto& [window, cap] : {std::pair(1, 0.0f),
                                      {5, 3.0f},
                                      {p, 0.0f},
                                      {p + 7, 3.0f},
                                      {2 * p + 1, 0.0f},
                                      {3 * p - 2, 0.0f},
                                      {0, 3.0f},
                                      {1000, 0.0f}}) {
      for (const int chunk : {11, tokens}) {
        SequenceMemory memory(layout, tokens), expected_memory(layout, tokens);
        const Chunk like{.window = window, .soft_cap = cap};
        const auto expected =
            attend_and_release(*reference, layout, s, inputs, expected_memory, tokens, chunk, like);
        const auto actual = attend_and_release(*backend, layout, s, inputs, memory, tokens, chunk, like);
        Tolerance allowed = tolerance(layout, layout.num_levels, in_pairs);
        // Few slots average less of what integer kernels round; caps err by 1e-7 of the cap.
        if (allowed.decibel != 0) allowed.decibel -= 4;
        expect_attention(actual, expected, allowed,
                         recipe.name + testing::PrintToString(std::array{s.dim, window, int(cap), chunk}));
        expect_same_cache(layout, memory, expected_memory, tokens);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// A row's bits are its own, also where the pages behind the window are gone in one chunking and there in
// another; beyond a split of 16 pages.
TEST_P(WindowedAttention, BitsDependOnNeitherChunksNorReleasedPages) {
  const Shape s{9, 3, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int tokens = 1100;
  const Inputs inputs(s, tokens, 71), other(s, 40, 72);
  for (const auto& [window, cap] : {std::pair(70, 0.0f), {600, 5.0f}}) {
    const Chunk like{.window = window, .soft_cap = cap};
    SequenceMemory whole_memory(layout, tokens);
    const auto whole = attend_in_chunks(*backend, layout, s, inputs, whole_memory, tokens, tokens, like);
    for (const int chunk : {1, 33, 512}) {
      SequenceMemory memory(layout, tokens);
      const auto part = attend_and_release(*backend, layout, s, inputs, memory, tokens, chunk, like);
      ASSERT_EQ(std::memcmp(part.data(), whole.data(), whole.size() * 4), 0)
          << recipe.name << ", window " << window << ", chunk " << chunk;
    }
    SequenceMemory other_memory(layout, 40);
    Chunk last = like;
    last.inputs = &inputs;
    last.memory = &whole_memory;
    last.first = tokens - 1;
    last.rows = 1;
    Chunk beside = like;
    beside.inputs = &other;
    beside.memory = &other_memory;
    beside.rows = 40;
    const auto batch = attend(*backend, layout, s, {beside, last})[1];
    EXPECT_EQ(std::memcmp(batch.data(), whole.data() + whole.size() - batch.size(), batch.size() * 4), 0)
        << recipe.name << ", window " << window;
  }
}

// A window that holds everything, or a cap far above all scores, changes nothing.
TEST_P(WindowedAttention, AWindowOfEverythingIsNone) {
  const Shape s{4, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int tokens = 150;
  const Inputs inputs(s, tokens, 73);
  SequenceMemory plain_memory(layout, tokens), memory(layout, tokens);
  const auto plain = attend_in_chunks(*backend, layout, s, inputs, plain_memory, tokens, 40);
  const auto windowed = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, 40, {.window = tokens});
  EXPECT_EQ(std::memcmp(plain.data(), windowed.data(), plain.size() * 4), 0);
}

// The rule written out over exact rows: slots > t - window, scores capped before the softmax.
TEST(WindowedExactAttention, EqualsTheFormula) {
  const Shape s{4, 2, 32};
  const int tokens = 120, window = 45;
  const float cap = 2.5f;
  const Inputs inputs(s, tokens, 74);
  const PageLayout layout = make_layout(recipes()[0], s, DType::kF32);
  SequenceMemory memory(layout, tokens);
  const auto backend = make_cpu_backend({.dtype = DType::kF32, .threads = 2});
  const auto actual =
      attend_in_chunks(*backend, layout, s, inputs, memory, tokens, 50, {.window = window, .soft_cap = cap});
  std::vector<float> expected;
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < s.q_heads; ++h) {
      const auto row = [&](const std::vector<float>& x, int i) {
        return x.data() + (static_cast<size_t>(i) * s.kv_heads + h / 2) * s.dim;
      };
      std::vector<double> out(s.dim);
      double sum = 0;
      for (int i = std::max(0, t - window + 1); i <= t; ++i) {
        double dot = 0;
        for (int f = 0; f < s.dim; ++f)
          dot += double{inputs.q[(static_cast<size_t>(t) * s.q_heads + h) * s.dim + f]} * row(inputs.k, i)[f];
        const double weight = std::exp(cap * std::tanh(dot / std::sqrt(32.0) / cap));
        sum += weight;
        for (int f = 0; f < s.dim; ++f) out[f] += weight * row(inputs.v, i)[f];
      }
      for (const double x : out) expected.push_back(static_cast<float>(x / sum));
    }
  }
  expect_close(actual, expected, 1e-5, 1e-5, "window and cap");
}

INSTANTIATE_TEST_SUITE_P(Backends, WindowedAttention,
                         testing::Combine(testing::ValuesIn(backends()), testing::ValuesIn(recipes())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
                         });

}  // namespace
}  // namespace lowkey::kernels::test
