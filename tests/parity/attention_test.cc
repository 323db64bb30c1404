// attend() and compact() against the float64 reference: outputs, every byte of pages and tails, guard bytes.
#include <numeric>
#include <random>

#include "tests/parity/backends.h"
#include "tests/parity/device_sequence.h"

namespace lowkey::kernels::test {
namespace {

// Queries and weights are rounded to bf16 before they are multiplied.
bool attends_in_pairs(const Backend& backend) {
  return backend.host_accessible() && backend.dtype() == DType::kBf16 && has_bf16_pairs();
}

// What a device may be off from float64 sums. Products of bf16 attend in bf16 in prefill.
Tolerance device_tolerance(const Backend& backend, const PageLayout& layout) {
  Tolerance worst;
  const bool in_pairs = attends_in_pairs(backend);
  for (int levels = 1; levels <= layout.num_levels; ++levels) {
    const Tolerance one = tolerance(layout, levels, in_pairs);
    if (one.decibel != 0)
      worst.decibel = worst.decibel == 0 ? one.decibel : std::min(worst.decibel, one.decibel);
  }
  if (!backend.host_accessible() && backend.dtype() == DType::kBf16)
    worst.decibel = worst.decibel == 0 ? 40 : std::min(worst.decibel, 40.0);
  // The mean of many random values is small beside what is rounded.
  if (worst.decibel != 0) worst.decibel -= 6;
  return worst;
}

class AttentionParity : public testing::TestWithParam<std::tuple<BackendCase, Recipe>> {
 protected:
  void SetUp() override {
    backend = std::get<0>(GetParam()).make();
    if (backend == nullptr) GTEST_SKIP() << no_device();
    reference = make_reference_backend(dtype);
  }
  std::string name(const Shape& s, int tokens, int chunk) const {
    return recipe.name +
           testing::PrintToString(std::array{s.q_heads, s.kv_heads, s.dim, s.page_tokens, tokens, chunk});
  }

  DType dtype = std::get<0>(GetParam()).dtype;
  Recipe recipe = std::get<1>(GetParam());
  std::unique_ptr<Backend> backend, reference;
};

TEST_P(AttentionParity, EqualsTheReferenceAndWritesTheSameCache) {
  struct Case {
    Shape shape;
    int tokens, chunk;
  };
  for (const auto& [s, tokens, chunk] :
       {Case{{4, 2, 64}, 77, 33}, Case{{3, 1, 20, 16}, 37, 7}, Case{{2, 1, 128, 64}, 130, 130},
        Case{{8, 1, 64, 32}, 33, 32}, Case{{4, 4, 8}, 65, 64}, Case{{2, 1, 16, 24}, 61, 60},
        Case{{2, 1, 64, 96}, 210, 200}}) {
    const PageLayout layout = make_layout(recipe, s, dtype);
    const Inputs inputs(s, tokens, 20);
    SequenceMemory memory(layout, tokens), expected_memory(layout, tokens);
    const auto expected = attend_in_chunks(*reference, layout, s, inputs, expected_memory, tokens, chunk);
    const auto actual = attend_chunks_anywhere(*backend, layout, s, inputs, memory, tokens, chunk);
    expect_same_cache(layout, memory, expected_memory, tokens);
    expect_attention(actual, expected, device_tolerance(*backend, layout), name(s, tokens, chunk));
    expect_other_bank_untouched(layout, memory);
    if (HasFatalFailure()) return;
  }
}

// Levels of `pages` pages in runs.
std::vector<uint8_t> runs_of_levels(int pages, int num_levels, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> levels;
  while (static_cast<int>(levels.size()) < pages)
    levels.insert(levels.end(), 1 + random() % 7, static_cast<uint8_t>(1 + random() % num_levels));
  levels.resize(pages);
  return levels;
}

// A batch of decodes, some of them long, and prefills, on pages that the reference wrote; what top levels are
// gone is not touched (its pointers are null).
TEST_P(AttentionParity, BatchesOfDecodesAndPrefillsEqualTheReference) {
  const std::pair<int, int> parts[] = {{1061, 1}, {0, 40}, {31, 1}, {63, 9}, {32, 1}, {0, 1}, {200, 2}};
  for (const Shape& s : {Shape{4, 1, 64}, Shape{2, 2, 16, 128}}) {
    const PageLayout layout = make_layout(recipe, s, dtype);
    std::vector<Inputs> inputs;
    std::vector<SequenceMemory> memory;
    std::vector<std::vector<uint8_t>> levels;
    for (size_t i = 0; i < std::size(parts); ++i) {
      const auto [first, rows] = parts[i];
      const int pages = (first + rows) / layout.page_tokens;
      inputs.emplace_back(s, first + rows, 100 * static_cast<uint32_t>(i + 1));
      memory.emplace_back(layout, first + rows);
      levels.push_back(runs_of_levels(pages, layout.num_levels, static_cast<uint32_t>(i)));
      const auto writer = make_cpu_backend({.dtype = dtype, .threads = 1});
      if (first > 0) attend(*writer, layout, s, {{&inputs[i], &memory[i], 0, first}});
      for (int page = 0; page < first / layout.page_tokens; ++page)
        for (int level = levels[i][page]; level < layout.num_levels; ++level)
          memory[i].pointers[page * kMaxSlabs + level] = nullptr;
    }
    std::vector<SequenceMemory> expected_memory;
    for (const SequenceMemory& m : memory) {
      expected_memory.push_back(m);
      for (size_t p = 0; p < m.slabs.size(); ++p)
        if (m.pointers[p] != nullptr)
          expected_memory.back().pointers[p] = expected_memory.back().slabs[p].data();
    }
    std::vector<Chunk> chunks, expected_chunks;
    for (size_t i = 0; i < std::size(parts); ++i) {
      chunks.push_back({.inputs = &inputs[i],
                        .memory = &memory[i],
                        .first = parts[i].first,
                        .rows = parts[i].second,
                        .page_levels = &levels[i]});
      expected_chunks.push_back(chunks.back());
      expected_chunks.back().memory = &expected_memory[i];
    }
    const auto expected = attend(*reference, layout, s, expected_chunks);
    const auto actual = attend_anywhere(*backend, layout, s, chunks);
    for (size_t i = 0; i < std::size(parts); ++i) {
      expect_attention(actual[i], expected[i], device_tolerance(*backend, layout),
                       name(s, parts[i].first, parts[i].second));
      expect_same_cache(layout, memory[i], expected_memory[i], parts[i].first + parts[i].second);
    }
  }
}

// Slots behind the window are hidden, and pages wholly behind it not touched: they are gone.
TEST_P(AttentionParity, WindowsAndSoftCapsEqualTheReference) {
  const Shape s{4, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int written = 5 * s.page_tokens + 9, rows = 7;
  const Inputs inputs(s, written + rows, 81);
  for (const auto& [window, cap] :
       {std::pair(5, 3.0f), {s.page_tokens + 7, 0.0f}, {3 * s.page_tokens, 3.0f}}) {
    SequenceMemory memory(layout, written + rows);
    const auto writer = make_cpu_backend({.dtype = dtype, .threads = 1});
    attend(*writer, layout, s, {{&inputs, &memory, 0, written}});
    for (int page = 0; page < (written - window + 1) / s.page_tokens; ++page)
      std::fill_n(memory.pointers.begin() + page * kMaxSlabs, kMaxSlabs, nullptr);
    SequenceMemory expected_memory = memory;
    for (size_t i = 0; i < memory.slabs.size(); ++i)
      expected_memory.pointers[i] = memory.pointers[i] == nullptr ? nullptr : expected_memory.slabs[i].data();
    Chunk chunk{.inputs = &inputs, .memory = &memory, .first = written, .rows = rows};
    chunk.window = window;
    chunk.soft_cap = cap;
    const auto actual = attend_anywhere(*backend, layout, s, {chunk})[0];
    chunk.memory = &expected_memory;
    const auto expected = attend(*reference, layout, s, {chunk})[0];
    Tolerance allowed = device_tolerance(*backend, layout);
    if (allowed.decibel != 0) allowed.decibel -= 4;  // few slots average less of what is rounded
    expect_attention(actual, expected, allowed, name(s, window, rows));
  }
}

class DeviceAttention : public AttentionParity {};

// A row's result is the same bits in any batch: items and merges depend on its own sequence alone.
// (tests/unit/kernels/cpu/attention_test.cc has it for the CPU, and for all chunks.)
TEST_P(DeviceAttention, DecodedRowsDoNotDependOnTheBatch) {
  const Shape s{4, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const Inputs one(s, 100, 1), two(s, 70, 2);
  SequenceMemory first(layout, 100), second(layout, 70);
  const auto writer = make_cpu_backend({.dtype = dtype, .threads = 1});
  attend(*writer, layout, s, {{&one, &first, 0, 99}});
  attend(*writer, layout, s, {{&two, &second, 0, 69}});
  const Chunk a{&one, &first, 99, 1}, b{&two, &second, 69, 1};
  const auto alone = attend_anywhere(*backend, layout, s, {a})[0];
  const auto together = attend_anywhere(*backend, layout, s, {b, a})[1];
  EXPECT_EQ(std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)), 0);
}

// Nor of how a prompt is cut, as long as its pieces go the same way.
TEST_P(DeviceAttention, PrefilledRowsDoNotDependOnTheirTile) {
  const Shape s{6, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int written = 70, end = 200;
  const Inputs inputs(s, end, 5);
  std::vector<std::vector<float>> results;
  for (const std::vector<int>& pieces : {std::vector{130}, {37, 16, 77}}) {
    SequenceMemory memory(layout, end);
    const auto writer = make_cpu_backend({.dtype = dtype, .threads = 1});
    attend(*writer, layout, s, {{&inputs, &memory, 0, written}});
    std::vector<float>& all = results.emplace_back();
    int first = written;
    for (const int rows : pieces) {
      const auto part = attend_anywhere(*backend, layout, s, {{&inputs, &memory, first, rows}})[0];
      all.insert(all.end(), part.begin(), part.end());
      first += rows;
    }
  }
  EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)), 0);
}

// Rows that nobody reads change neither those that somebody does, to the bit, nor the cache.
TEST_P(AttentionParity, UnwantedRowsChangeNothingElse) {
  const Shape s{4, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int before = 41, rows = 60, cols = s.q_heads * s.dim;
  const Inputs inputs(s, before + rows, 83), other(s, 3, 84);
  const auto writer = make_cpu_backend({.dtype = dtype, .threads = 1});
  SequenceMemory begun(layout, before + rows);
  attend(*writer, layout, s, {{&inputs, &begun, 0, before}});
  const auto run = [&](SequenceMemory& memory, int unwanted) {
    for (size_t i = 0; i < memory.slabs.size(); ++i)
      if (memory.pointers[i] != nullptr) memory.pointers[i] = memory.slabs[i].data();
    SequenceMemory other_memory(layout, 3);
    Chunk chunk{.inputs = &inputs, .memory = &memory, .first = before, .rows = rows};
    chunk.unwanted = unwanted;
    return attend_anywhere(*backend, layout, s, {{&other, &other_memory, 0, 3}, chunk});
  };
  SequenceMemory whole_memory = begun;
  const auto whole = run(whole_memory, 0);
  for (const int unwanted : {1, 33, rows - 1, rows}) {
    SequenceMemory memory = begun;
    const auto part = run(memory, unwanted);
    EXPECT_EQ(part[0], whole[0]) << unwanted;
    EXPECT_EQ(rows_of(part[1], unwanted, rows - unwanted, cols),
              rows_of(whole[1], unwanted, rows - unwanted, cols))
        << unwanted;
    expect_same_cache(layout, memory, whole_memory, before + rows);
    if (!backend->host_accessible()) continue;
    for (const float x : rows_of(part[1], 0, unwanted, cols)) ASSERT_TRUE(std::isnan(x)) << "was attended";
  }
}

TEST_P(AttentionParity, LayersThatShareABankSeeWhatOneWould) {
  const Shape s{4, 2, 64};
  const PageLayout layout = make_layout(recipe, s, dtype);
  const int tokens = 70;
  const Inputs inputs(s, tokens, 55);
  SequenceMemory alone_memory(layout, tokens), memory(layout, tokens);
  const auto alone = attend_in_chunks(*reference, layout, s, inputs, alone_memory, tokens, 45);
  const auto shared =
      attend_chunks_anywhere(*backend, layout, s, inputs, memory, tokens, 45, {}, /*readers=*/3);
  expect_attention(shared, alone, device_tolerance(*backend, layout), recipe.name);
  expect_same_cache(layout, memory, alone_memory, tokens);
}

// Tokens of exact pages move to archived ones of this recipe, and are attended there.
TEST_P(AttentionParity, CompactedTokensAreTheReferencesBytesAndAreAttended) {
  const Shape s{4, 2, 64};
  const PageLayout exact = make_layout(recipes()[0], s, dtype), layout = make_layout(recipe, s, dtype);
  const int tokens = 150, kept = 75;
  const Inputs inputs(s, tokens + 1, 60);
  std::vector<int32_t> keep;
  for (int head = 0; head < s.kv_heads; ++head)
    for (int i = 0; i < kept; ++i) keep.push_back(2 * i + (head + i / 40) % 2);
  std::vector<std::vector<float>> results;
  std::vector<SequenceMemory> froms, tos;
  froms.reserve(2);
  tos.reserve(2);
  for (Backend* b : {backend.get(), reference.get()}) {
    SequenceMemory& from = froms.emplace_back(exact, tokens);
    SequenceMemory& to = tos.emplace_back(layout, kept);
    const auto writer = make_cpu_backend({.dtype = dtype, .threads = 1});
    attend(*writer, exact, s, {{&inputs, &from, 0, tokens}});
    compact_anywhere(*b,
                     {.from = &exact,
                      .bank = kBank,
                      .num_slots = tokens,
                      .keep = keep.data(),
                      .num_kept = kept,
                      .to = &layout,
                      .to_bank = kBank},
                     from, to);
    const ArchivedPages archives[] = {{}, {&layout, kBank, to.pointers.data(), kept / layout.page_tokens}};
    // What is left of the kept tokens are the sequence's first slots now.
    const int left = kept % layout.page_tokens;
    Inputs next = inputs;
    results.push_back(attend_anywhere(*b, exact, s, {{&next, &from, left, 1, 0, archives}})[0]);
  }
  EXPECT_EQ(tos[0].slabs, tos[1].slabs);
  expect_same_cache(exact, froms[0], froms[1], kept % layout.page_tokens + 1);
  expect_attention(results[0], results[1], device_tolerance(*backend, layout), recipe.name);
}

// What the fast kernels are made for: single planes of 2, 4 and 8 bits or whole bf16 features, under every
// size of page, group of query heads and rank; one row each of a few sequences, and a window of rows.
struct DecodeCase {
  std::string name;
  std::vector<GroupBits> key, value;  // empty: full width
  int num_levels;
  double decibel;  // of codes in bf16; what the rounding of queries and weights to bytes costs
};

class DecodeParity : public testing::TestWithParam<std::tuple<BackendCase, DecodeCase>> {};

void PrintTo(const DecodeCase& c, std::ostream* out) {
  *out << c.name;
}

PageLayout decode_layout(const DecodeCase& c, const Shape& s, DType dtype) {
  PageSpec spec{.recipe = c.name, .page_tokens = s.page_tokens, .sink_tokens = 4, .num_levels = c.num_levels};
  spec.key = based(s.dim, c.key, 400);
  spec.value = based(s.dim, c.value, 401);
  for (VectorSpec* side : {&spec.key, &spec.value}) {
    // Of about the size of what is coded, as calibrated scales are.
    for (size_t f = 0; f < side->scale.size(); ++f) side->scale[f] = 1.5f - 0.5f * float(f) / float(s.dim);
    if (!side->bits.empty()) continue;
    *side = {};
    side->encode = side->decode = orthonormal_rows(s.dim, 402);
    side->mean = normal_values(s.dim, 403);
  }
  return PageLayout::make(spec, {2, s.kv_heads, s.dim, dtype}).value();
}

TEST_P(DecodeParity, EqualsTheReference) {
  const auto& [backend_case, c] = GetParam();
  const auto backend = backend_case.make();
  if (backend == nullptr) GTEST_SKIP() << no_device();
  const auto reference = make_reference_backend(backend_case.dtype);
  for (const Shape& s : {Shape{4, 1, 128, 64}, Shape{8, 1, 64, 32}, Shape{3, 1, 128, 32},
                         Shape{2, 2, 64, 128}, Shape{7, 1, 64, 64}}) {
    const PageLayout layout = decode_layout(c, s, backend_case.dtype);
    const std::pair<int, int> parts[] = {{5 * s.page_tokens + 3, 1}, {s.page_tokens, 2}, {0, 1}, {600, 1}};
    std::vector<Inputs> inputs;
    std::vector<SequenceMemory> memory;
    inputs.reserve(std::size(parts));
    memory.reserve(std::size(parts));
    std::vector<Chunk> chunks;
    const auto writer = make_cpu_backend({.dtype = backend_case.dtype, .threads = 1});
    for (const auto& [first, rows] : parts) {
      inputs.emplace_back(s, first + rows, 300 + static_cast<uint32_t>(first));
      memory.emplace_back(layout, first + rows);
      if (first > 0) attend(*writer, layout, s, {{&inputs.back(), &memory.back(), 0, first}});
    }
    for (int levels = c.num_levels; levels >= 1; --levels) {
      chunks.clear();
      for (size_t i = 0; i < std::size(parts); ++i)
        chunks.push_back({&inputs[i], &memory[i], parts[i].first, parts[i].second, levels});
      const auto actual = attend_anywhere(*backend, layout, s, chunks);
      const auto expected = attend(*reference, layout, s, chunks);
      for (size_t i = 0; i < std::size(parts); ++i) {
        const bool rounds = backend_case.dtype == DType::kBf16 || backend->host_accessible();
        expect_attention(
            actual[i], expected[i], {.decibel = rounds ? c.decibel : 80},
            testing::PrintToString(std::array{s.q_heads, s.dim, s.page_tokens, parts[i].first, levels}));
      }
    }
  }
}

// The same layouts where a sequence brings many rows: several tiles, pieces that begin and end inside pages.
TEST_P(DecodeParity, PrefillsEqualTheReference) {
  const auto& [backend_case, c] = GetParam();
  const auto backend = backend_case.make();
  if (backend == nullptr) GTEST_SKIP() << no_device();
  const auto reference = make_reference_backend(backend_case.dtype);
  for (const Shape& s : {Shape{4, 1, 128, 64}, Shape{12, 1, 64, 32}, Shape{2, 2, 96, 128}}) {
    const PageLayout layout = decode_layout(c, s, backend_case.dtype);
    const std::pair<int, int> parts[] = {{0, 2 * s.page_tokens + 5}, {3 * s.page_tokens + 7, 45}};
    const auto writer = make_cpu_backend({.dtype = backend_case.dtype, .threads = 1});
    for (const auto& [first, rows] : parts) {
      const Inputs inputs(s, first + rows, 700 + static_cast<uint32_t>(first));
      for (int levels = c.num_levels; levels >= 1; --levels) {
        std::vector<float> results[2];
        for (int i = 0; i < 2; ++i) {
          SequenceMemory memory(layout, first + rows);
          if (first > 0) attend(*writer, layout, s, {{&inputs, &memory, 0, first}});
          results[i] = attend_anywhere(i == 0 ? *backend : *reference, layout, s,
                                       {{&inputs, &memory, first, rows, levels}})[0];
        }
        const bool rounds = backend_case.dtype == DType::kBf16 || backend->host_accessible();
        expect_attention(
            results[0], results[1], {.decibel = rounds ? c.decibel : 80},
            testing::PrintToString(std::array{s.q_heads, s.dim, s.page_tokens, first, rows, levels}));
      }
    }
  }
}

std::vector<DecodeCase> decode_cases() {
  using Bits = std::vector<GroupBits>;
  return {{"nibbles", Bits(8, GroupBits{4}), Bits(8, GroupBits{4}), 1, 28},
          {"crumbs", Bits(8, GroupBits{2}), Bits(8, GroupBits{2}), 1, 28},
          {"bytes", Bits(8, GroupBits{8}), Bits(8, GroupBits{8}), 1, 42},
          {"nibbles_ranks", Bits(3, GroupBits{4}), Bits(2, GroupBits{4}), 1, 28},
          {"allocated", {{8}, {4}, {4}, {2}, {2}, {0}, {2}}, {{4}, {8}, {2}, {4}}, 1, 28},
          {"levels_between_groups", {{8}, {0, 4}, {0, 4}, {0, 2}}, {{4}, {4}, {0, 2}, {0, 2}}, 2, 26},
          {"full", {}, {}, 1, 44}};
}

INSTANTIATE_TEST_SUITE_P(Backends, DecodeParity,
                         testing::Combine(testing::ValuesIn(parity_backends()),
                                          testing::ValuesIn(decode_cases())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
                         });

class ObserverParity : public testing::TestWithParam<BackendCase> {};

TEST_P(ObserverParity, SumsEqualTheReference) {
  const auto backend = GetParam().make();
  if (backend == nullptr) GTEST_SKIP() << no_device();
  const auto reference = make_reference_backend(GetParam().dtype);
  for (const Shape& s : {Shape{4, 2, 64}, Shape{4, 1, 20, 16}}) {
    const int tokens = 70, capacity = 73;
    const PageLayout layout = make_layout(recipes()[0], s, GetParam().dtype);
    const Inputs inputs(s, tokens, 71);
    std::vector<float> sums[2][3];
    for (int i = 0; i < 2; ++i) {
      for (auto& each : sums[i]) each.assign(size_t(2) * s.kv_heads * capacity, 0.25f);
      const TokenObserver observer{capacity, sums[i][0].data(), sums[i][1].data(), 50, sums[i][2].data()};
      SequenceMemory memory(layout, tokens);
      attend_chunks_anywhere(i == 0 ? *backend : *reference, layout, s, inputs, memory, tokens, 29,
                             {.observer = &observer});
    }
    const bool rounds = attends_in_pairs(*backend);
    for (int which = 0; which < 3; ++which) {
      expect_close(sums[0][which], sums[1][which], rounds ? 2e-2 : 2e-5, rounds ? 1e-3 : 2e-6,
                   "sums " + std::to_string(which));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionParity,
                         testing::Combine(testing::ValuesIn(parity_backends()), testing::ValuesIn(recipes())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
                         });

INSTANTIATE_TEST_SUITE_P(Devices, DeviceAttention,
                         testing::Combine(testing::ValuesIn(device_cases()), testing::ValuesIn(recipes())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
                         });

INSTANTIATE_TEST_SUITE_P(Backends, ObserverParity, testing::ValuesIn(parity_backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::kernels::test
