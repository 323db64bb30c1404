// attend(): against the float64 reference, against full attention written out here, and bit against bit
// across chunk sizes, batches and threads, for every format of a page.
#include "kernels/ops/attention_reference.h"

#include <random>

#include "tests/unit/kernels/cpu/attention_support.h"

namespace lowkey::kernels::test {
namespace {

class Attention : public testing::TestWithParam<std::tuple<BackendCase, Recipe>> {
 protected:
  DType dtype = std::get<0>(GetParam()).dtype;
  bool in_pairs = std::get<0>(GetParam()).in_pairs;
  Recipe recipe = std::get<1>(GetParam());
  std::unique_ptr<Backend> backend = std::get<0>(GetParam()).make();
};

class AttentionOnInstructionSets : public testing::TestWithParam<BackendCase> {};
class ExactAttention : public testing::TestWithParam<BackendCase> {};

constexpr Shape kShapes[] = {{4, 4, 8},   {8, 4, 8},   {9, 3, 64},     {6, 1, 64},    {4, 1, 48},
                             {2, 1, 128}, {2, 2, 128}, {3, 1, 20, 16}, {4, 2, 16, 48}};

std::string name_of(const Recipe& recipe, const Shape& s, int tokens, int chunk) {
  return recipe.name + testing::PrintToString(std::array{s.q_heads, s.kv_heads, s.dim, tokens, chunk});
}

void expect_equals_reference(Backend& backend, const Recipe& recipe, const Shape& s, int tokens, int chunk,
                             bool in_pairs = false) {
  const PageLayout layout = make_layout(recipe, s, backend.dtype());
  const Inputs inputs(s, tokens, 20);
  SequenceMemory memory(layout, tokens), expected_memory(layout, tokens);
  const auto reference = make_reference_backend(backend.dtype());
  const auto expected = attend_in_chunks(*reference, layout, s, inputs, expected_memory, tokens, chunk);
  const auto actual = attend_in_chunks(backend, layout, s, inputs, memory, tokens, chunk);
  expect_same_cache(layout, memory, expected_memory, tokens);
  expect_attention(actual, expected, tolerance(layout, layout.num_levels, in_pairs),
                   name_of(recipe, s, tokens, chunk));
  expect_other_bank_untouched(layout, memory);
}

TEST_P(Attention, EqualsTheReferenceAndWritesTheSameCache) {
  for (const Shape& s : kShapes) {
    const std::pair<int, int> cases[] = {{1, 1},
                                         {s.page_tokens, s.page_tokens},
                                         {2 * s.page_tokens + 5, 7},
                                         {77, s.page_tokens + 1},
                                         {77, 77}};
    for (const auto& [tokens, chunk] : cases) {
      expect_equals_reference(*backend, recipe, s, tokens, chunk, in_pairs);
      if (HasFatalFailure()) return;
    }
  }
}

// Both read the pages that the fast one wrote: codes of mapped rows may differ without fused multiply-adds.
void expect_reads_like_reference(Backend& backend, const Recipe& recipe, const Shape& s) {
  const int written = 2 * s.page_tokens, rows = 13;
  const PageLayout layout = make_layout(recipe, s, backend.dtype());
  const Inputs inputs(s, written + rows, 21);
  SequenceMemory memory(layout, written);
  attend_in_chunks(backend, layout, s, inputs, memory, written, 33);
  const auto reference = make_reference_backend(backend.dtype());
  const auto expected = attend(*reference, layout, s, {{&inputs, &memory, written, rows}})[0];
  const auto actual = attend(backend, layout, s, {{&inputs, &memory, written, rows}})[0];
  expect_attention(actual, expected, tolerance(layout, layout.num_levels, false), recipe.name);
}

// Results are the same to rounding on every instruction set; codes and scalars are the same bytes on those
// with fused multiply-adds.
TEST_P(AttentionOnInstructionSets, EqualsTheReference) {
  const SimdTarget target(GetParam().simd_target);
  const bool fused = (GetParam().simd_target & (HWY_EMU128 | HWY_SSE4)) == 0;
  const auto backend = GetParam().make();
  for (const Recipe& recipe : recipes()) {
    for (const Shape& s : {Shape{9, 3, 64}, Shape{4, 2, 20}}) {
      if (fused) expect_equals_reference(*backend, recipe, s, 77, 33);
      expect_reads_like_reference(*backend, recipe, s);
      if (HasFatalFailure()) return;
    }
  }
}

// Attention over K and V rounded to the dtype, written out in float64.
std::vector<float> full_attention(const Inputs& inputs, const Shape& s, int tokens, DType dtype) {
  const int group = s.q_heads / s.kv_heads;
  std::vector<float> result;
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < s.q_heads; ++h) {
      auto row = [&](const std::vector<float>& x, int i, int f) {
        return double{round_to(dtype, x[(static_cast<size_t>(i) * s.kv_heads + h / group) * s.dim + f])};
      };
      std::vector<double> weights(t + 1), out(s.dim);
      double sum = 0;
      for (int i = 0; i <= t; ++i) {
        double dot = 0;
        for (int f = 0; f < s.dim; ++f) {
          dot += double{inputs.q[(static_cast<size_t>(t) * s.q_heads + h) * s.dim + f]} * row(inputs.k, i, f);
        }
        sum += weights[i] = std::exp(dot / std::sqrt(static_cast<double>(s.dim)));
      }
      for (int i = 0; i <= t; ++i) {
        for (int f = 0; f < s.dim; ++f) out[f] += weights[i] / sum * row(inputs.v, i, f);
      }
      for (double x : out) result.push_back(static_cast<float>(x));
    }
  }
  return result;
}

TEST_P(ExactAttention, EqualsFullAttention) {
  const DType dtype = GetParam().dtype;
  const auto backend = GetParam().make();
  const Shape s{9, 3, 64};
  const int tokens = 150;
  const Inputs inputs(s, tokens, 30);
  const PageLayout layout = make_layout(recipes()[0], s, dtype);
  SequenceMemory memory(layout, tokens);
  const auto actual = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, 40);
  expect_attention(actual, full_attention(inputs, s, tokens, dtype),
                   {.element = 1e-5, .decibel = GetParam().in_pairs ? kPairsDecibel : 0}, "full attention");
}

// Full width and rank in f32: a basis changes nothing but the rounding.
TEST(AttentionInBasisCoordinates, FullWidthAndRankEqualsFullAttention) {
  const auto backend = make_cpu_backend({.dtype = DType::kF32, .threads = 2});
  for (const Recipe& recipe : recipes()) {
    if (recipe.name != "full_basis" && recipe.name != "general_basis") continue;
    for (const Shape& s : {Shape{9, 3, 64}, Shape{4, 1, 128}}) {
      const int tokens = 150;
      const Inputs inputs(s, tokens, 31);
      const PageLayout layout = make_layout(recipe, s, DType::kF32);
      SequenceMemory memory(layout, tokens);
      const auto actual = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, 40);
      expect_close(actual, full_attention(inputs, s, tokens, DType::kF32), 1e-5, 1e-5, recipe.name);
    }
  }
}

TEST_P(Attention, BitsDoNotDependOnChunking) {
  for (const Shape& s : {Shape{9, 3, 64}, Shape{8, 4, 8}, Shape{4, 1, 48}}) {
    const int tokens = s.dim == 64 ? 540 : 150;  // beyond one split of 16 pages
    const PageLayout layout = make_layout(recipe, s, dtype);
    const Inputs inputs(s, tokens, 40);
    SequenceMemory whole_memory(layout, tokens);
    const auto whole = attend_in_chunks(*backend, layout, s, inputs, whole_memory, tokens, tokens);
    for (int chunk : {1, 7, 33, 512}) {
      SequenceMemory memory(layout, tokens);
      const auto part = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, chunk);
      ASSERT_EQ(std::memcmp(part.data(), whole.data(), whole.size() * 4), 0)
          << name_of(recipe, s, tokens, chunk);
      expect_same_cache(layout, memory, whole_memory, tokens);
      if (HasFatalFailure()) return;
    }
  }
}

// A batch of prefills and decodes at different positions, in another order than alone and on other threads.
TEST_P(Attention, BitsDoNotDependOnTheBatchOrThreads) {
  const Shape s{9, 3, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const std::vector<std::pair<int, int>> parts = {{600, 1}, {0, 100}, {31, 1}, {63, 40}, {32, 1}, {0, 1}};
  std::vector<Inputs> inputs;
  for (size_t i = 0; i < parts.size(); ++i)
    inputs.emplace_back(s, parts[i].first + parts[i].second, 100 * (i + 1));

  auto prefill = [&](Backend& b, size_t i, SequenceMemory& memory) {
    if (parts[i].first > 0) attend(b, layout, s, {{&inputs[i], &memory, 0, parts[i].first}});
  };
  const auto single = make_cpu_backend({.dtype = dtype, .threads = 1, .bf16_pairs = in_pairs});
  std::vector<std::vector<float>> alone;
  std::vector<SequenceMemory> alone_memory, memory;
  for (size_t i = 0; i < parts.size(); ++i) {
    const int tokens = parts[i].first + parts[i].second;
    alone_memory.emplace_back(layout, tokens);
    memory.emplace_back(layout, tokens);
    prefill(*single, i, alone_memory[i]);
    prefill(*backend, i, memory[i]);
    alone.push_back(
        attend(*single, layout, s, {{&inputs[i], &alone_memory[i], parts[i].first, parts[i].second}})[0]);
  }
  std::vector<Chunk> batch;
  for (size_t i = 0; i < parts.size(); ++i)
    batch.push_back({&inputs[i], &memory[i], parts[i].first, parts[i].second});
  const auto together = attend(*backend, layout, s, batch);
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_EQ(std::memcmp(together[i].data(), alone[i].data(), alone[i].size() * 4), 0) << "sequence " << i;
    expect_same_cache(layout, memory[i], alone_memory[i], parts[i].first + parts[i].second);
  }
}

// Fewer levels are a coarser cache: read by both, the same.
TEST_P(Attention, EveryCutOfThePagesEqualsTheReference) {
  const Shape s{4, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const auto reference = make_reference_backend(dtype);
  const int tokens = 110;
  const Inputs inputs(s, tokens, 50);
  for (int levels = 1; levels <= layout.num_levels; ++levels) {
    SequenceMemory memory(layout, tokens), expected_memory(layout, tokens);
    const auto expected =
        attend_in_chunks(*reference, layout, s, inputs, expected_memory, tokens, 50, {.levels = levels});
    const auto actual = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, 50, {.levels = levels});
    expect_attention(actual, expected, tolerance(layout, levels, in_pairs), recipe.name);
  }
}

// Levels of `pages` pages in runs of 1 to 20, so that some are longer than a split.
std::vector<uint8_t> runs_of_levels(int pages, int num_levels, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> levels;
  while (static_cast<int>(levels.size()) < pages)
    levels.insert(levels.end(), random() % 3 == 0 ? 20 : 1 + random() % 3,
                  static_cast<uint8_t>(1 + random() % num_levels));
  levels.resize(pages);
  return levels;
}

Tolerance worst_tolerance(const PageLayout& layout, bool in_pairs) {
  Tolerance worst;
  for (int levels = 1; levels <= layout.num_levels; ++levels) {
    const double decibel = tolerance(layout, levels, in_pairs).decibel;
    if (decibel != 0) worst.decibel = worst.decibel == 0 ? decibel : std::min(worst.decibel, decibel);
  }
  // The mean of many random values is small beside what the integer kernels round.
  if (worst.decibel != 0) worst.decibel -= 6;
  return worst;
}

// Every page has its own number of levels, also those that the step completes.
TEST_P(Attention, PagesOfMixedLevelsEqualTheReferenceInPrefill) {
  for (const Shape& s : {Shape{4, 2, 64}, Shape{3, 1, 20, 16}}) {
    const PageLayout layout = make_layout(recipe, s, dtype);
    if (layout.num_levels == 1) return;
    const auto reference = make_reference_backend(dtype);
    const int tokens = 7 * s.page_tokens + 5;
    const Inputs inputs(s, tokens, 51);
    for (uint32_t seed : {1, 2, 3}) {
      const auto levels = runs_of_levels(tokens / s.page_tokens, layout.num_levels, seed);
      const Chunk like{.page_levels = &levels};
      SequenceMemory memory(layout, tokens), expected_memory(layout, tokens);
      const auto expected =
          attend_in_chunks(*reference, layout, s, inputs, expected_memory, tokens, 50, like);
      const auto actual = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, 50, like);
      expect_attention(actual, expected, worst_tolerance(layout, in_pairs), name_of(recipe, s, tokens, seed));
      expect_same_cache(layout, memory, expected_memory, tokens);
    }
  }
}

// Decoding after top levels were dropped: what is gone is not touched (its pointers are null).
TEST_P(Attention, PagesThatLostLevelsEqualTheReferenceInDecode) {
  const Shape s{9, 3, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  if (layout.num_levels == 1) return;
  const auto reference = make_reference_backend(dtype);
  const int pages = 45, written = pages * s.page_tokens + 9;
  const Inputs inputs(s, written + 3, 52);
  SequenceMemory memory(layout, written + 3);
  attend(*backend, layout, s, {{&inputs, &memory, 0, written}});
  const auto levels = runs_of_levels(pages, layout.num_levels, 4);
  for (int page = 0; page < pages; ++page)
    for (int level = levels[page]; level < layout.num_levels; ++level)
      memory.pointers[page * kMaxSlabs + level] = nullptr;
  for (const int rows : {1, 3}) {
    const Chunk chunk{
        .inputs = &inputs, .memory = &memory, .first = written, .rows = rows, .page_levels = &levels};
    const auto expected = attend(*reference, layout, s, {chunk})[0];
    expect_attention(attend(*backend, layout, s, {chunk})[0], expected, worst_tolerance(layout, in_pairs),
                     recipe.name);
  }
}

// With mixed levels, too, a row's bits are its own: in other chunks, batches and on other threads.
TEST_P(Attention, BitsOfMixedLevelsDependOnNothingElse) {
  const Shape s{9, 3, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  if (layout.num_levels == 1) return;
  const int tokens = 1200;
  const Inputs inputs(s, tokens, 53), other(s, 40, 54);
  const auto levels = runs_of_levels(tokens / s.page_tokens, layout.num_levels, 5);
  const Chunk like{.page_levels = &levels};
  SequenceMemory whole_memory(layout, tokens);
  const auto whole = attend_in_chunks(*backend, layout, s, inputs, whole_memory, tokens, tokens, like);
  const auto single = make_cpu_backend({.dtype = dtype, .threads = 1, .bf16_pairs = in_pairs});
  for (Backend* b : {backend.get(), single.get()}) {
    for (int chunk : {1, 33, 512}) {
      if (b == single.get() && chunk == 1) continue;
      SequenceMemory memory(layout, tokens);
      const auto part = attend_in_chunks(*b, layout, s, inputs, memory, tokens, chunk, like);
      ASSERT_EQ(std::memcmp(part.data(), whole.data(), whole.size() * 4), 0)
          << name_of(recipe, s, tokens, chunk);
    }
  }
  SequenceMemory other_memory(layout, 40);
  const Chunk last{
      .inputs = &inputs, .memory = &whole_memory, .first = tokens - 1, .rows = 1, .page_levels = &levels};
  const auto batch = attend(*backend, layout, s, {{&other, &other_memory, 0, 40}, last})[1];
  EXPECT_EQ(std::memcmp(batch.data(), whole.data() + whole.size() - batch.size(), batch.size() * 4), 0);
}

// Layers that share a bank: one encodes, the last one moves the tail, all see the same.
TEST_P(Attention, LayersThatShareABankSeeWhatOneWould) {
  const Shape s{4, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int tokens = 110;
  const Inputs inputs(s, tokens, 55);
  SequenceMemory alone_memory(layout, tokens);
  const auto alone = attend_in_chunks(*backend, layout, s, inputs, alone_memory, tokens, 45);
  const auto reference = make_reference_backend(dtype);
  for (Backend* b : {backend.get(), reference.get()}) {
    SequenceMemory memory(layout, tokens);
    const auto shared = attend_in_chunks(*b, layout, s, inputs, memory, tokens, 45, {}, /*readers=*/3);
    expect_attention(shared, alone, tolerance(layout, layout.num_levels, in_pairs), recipe.name);
    expect_same_cache(layout, memory, alone_memory, tokens);
  }
}

// The rule itself: a row sees a page's codes from the page's end on, and the sink exact; before that, exact
// rows.
TEST_P(Attention, EncodedPagesAreReadFromTheirSlabs) {
  if (recipe.name != "exact" && recipe.name != "q8") return;
  const Shape s{2, 1, 8};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int tokens = 70;
  const Inputs inputs(s, tokens, 60);
  SequenceMemory memory(layout, tokens);
  const auto before = attend_in_chunks(*backend, layout, s, inputs, memory, 69, 69);
  auto last = [&] { return attend(*backend, layout, s, {{&inputs, &memory, 69, 1}})[0]; };
  const auto clean = last();
  std::byte* values =
      memory.pointers[0] + layout.planes[layout.vector(kBank, Side::kValue, 0).first_plane].offset;
  const std::byte kept = values[40];
  values[40] ^= std::byte{0x40};
  EXPECT_NE(last(), clean) << "page 0 is read encoded by a row of page 2";
  values[40] = kept;
  EXPECT_EQ(last(), clean);
  if (recipe.name != "q8") return;
  values[0] ^= std::byte{0x40};  // token 0 is a sink: its code is not read
  EXPECT_EQ(last(), clean);
  std::byte* sink = memory.pointers[layout.sink_slab()] + layout.rows_of(kBank, Side::kValue, 0).sink_offset;
  sink[1] ^= std::byte{0x40};
  EXPECT_NE(last(), clean) << "the sink is";
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, AttentionOnInstructionSets, testing::ValuesIn(simd_backends()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Backends, ExactAttention, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Backends, Attention,
                         testing::Combine(testing::ValuesIn(backends()), testing::ValuesIn(recipes())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
                         });

}  // namespace
}  // namespace lowkey::kernels::test
