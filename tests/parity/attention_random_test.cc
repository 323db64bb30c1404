// attend() on layouts, shapes and steps drawn at random from what is allowed: widths 0, 2, 4, 8 and full
// mixed, ranks, levels, groups of query heads, page sizes, sinks, windows, soft caps, archives, empty
// contexts, decodes and prefills in one step. Seeds are fixed: a case has the name of its own.
#include <random>

#include "tests/parity/backends.h"
#include "tests/parity/device_sequence.h"

namespace lowkey::kernels::test {
namespace {

class Draw {
 public:
  explicit Draw(uint32_t seed) : random_(seed) {}
  int below(int count) { return static_cast<int>(random_() % static_cast<uint32_t>(count)); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int>(values.size()))];
  }
  bool chance(int percent) { return below(100) < percent; }

 private:
  std::mt19937 random_;
};

// Groups of one stored vector: a width each, in a level of its own; nothing behind the rank.
std::vector<GroupBits> draw_bits(Draw& draw, int groups, int num_levels, bool narrow) {
  std::vector<GroupBits> bits(groups, GroupBits{});
  for (GroupBits& group : bits) {
    const auto width = static_cast<uint8_t>(narrow ? draw.one_of({0, 2, 4, 4}) : draw.one_of({0, 2, 4, 8}));
    group[draw.below(num_levels)] = width;
  }
  bits[0][0] = std::max<uint8_t>(bits[0][0], 4);
  for (int level = 1; level < num_levels; ++level) bits[0][level] = 0;
  return bits;
}

VectorSpec draw_vector(Draw& draw, int dim, int num_levels, bool full, bool narrow, uint32_t seed) {
  const bool basis = draw.chance(70);
  const int all = dim / kGroupFeatures;
  VectorSpec vector;
  if (full) {
    if (basis) vector.encode = vector.decode = orthonormal_rows(dim, seed);
  } else if (basis) {
    vector = based(dim, draw_bits(draw, 1 + draw.below(all), num_levels, narrow), seed);
    for (size_t f = 0; f < vector.scale.size(); ++f) vector.scale[f] = 1.5f - float(f) / float(dim);
  } else {
    vector.quantizer = Quantizer::kEmbedded;
    vector.bits = draw_bits(draw, all, num_levels, narrow);
  }
  vector.mean = draw.chance(50) ? normal_values(dim, seed + 1, 0.5f) : std::vector<float>();
  return vector;
}

struct RandomCase {
  Shape shape;
  PageSpec spec;
  int window = 0;
  float soft_cap = 0;
  std::vector<std::pair<int, int>> parts;  // tokens before the step, rows

  RandomCase(Draw& draw, uint32_t seed) {
    const int group = draw.one_of({1, 2, 3, 4, 5, 7, 8, 12, 16});
    const int heads = group > 8 ? 1 : 1 + draw.below(2);
    shape = {group * heads, heads, draw.one_of({64, 96, 128, 128, 256}), draw.one_of({32, 64, 128})};
    spec.recipe = "random" + std::to_string(seed);
    spec.page_tokens = shape.page_tokens;
    spec.sink_tokens = draw.one_of({0, 0, 3, shape.page_tokens});
    const bool full = draw.chance(20), narrow = draw.chance(50);
    spec.num_levels = full ? 1 : 1 + draw.below(3);
    spec.key = draw_vector(draw, shape.dim, spec.num_levels, full, narrow, 500 + seed);
    spec.value = draw_vector(draw, shape.dim, spec.num_levels, full, narrow, 600 + seed);
    if (draw.chance(30)) window = 1 + draw.below(3 * shape.page_tokens);
    if (draw.chance(30)) soft_cap = 3;
    const int p = shape.page_tokens;
    for (int i = 0; i < 3; ++i) {
      const int before = draw.one_of({0, 1, p - 1, p, 2 * p + 5, 3 * p});
      parts.push_back({before, draw.one_of({1, 1, 2, 15, 16, p, p + 9, 2 * p + 1})});
    }
  }
};

class RandomAttention : public testing::TestWithParam<std::tuple<BackendCase, uint32_t>> {};

TEST_P(RandomAttention, EqualsTheReference) {
  const auto& [backend_case, seed] = GetParam();
  const auto backend = backend_case.make();
  if (backend == nullptr) GTEST_SKIP() << no_device();
  const auto reference = make_reference_backend(backend_case.dtype);
  Draw draw(seed);
  const RandomCase c(draw, seed);
  const auto layout =
      PageLayout::make(c.spec, {2, c.shape.kv_heads, c.shape.dim, backend_case.dtype}).value();
  const auto writer = make_cpu_backend({.dtype = backend_case.dtype, .threads = 1});
  std::vector<Inputs> inputs;
  std::vector<SequenceMemory> memory, expected_memory;
  std::vector<std::vector<uint8_t>> levels;
  for (const auto& [first, rows] : c.parts) {
    inputs.emplace_back(c.shape, first + rows, 900 + static_cast<uint32_t>(inputs.size()));
    memory.emplace_back(layout, first + rows);
    levels.emplace_back();
    for (int page = 0; page < (first + rows) / layout.page_tokens; ++page) {
      const bool old = page < first / layout.page_tokens;
      levels.back().push_back(
          static_cast<uint8_t>(old ? 1 + draw.below(layout.num_levels) : layout.num_levels));
    }
  }
  std::vector<Chunk> chunks, expected_chunks;
  for (size_t i = 0; i < c.parts.size(); ++i) {
    const auto [first, rows] = c.parts[i];
    if (first > 0) attend(*writer, layout, c.shape, {{&inputs[i], &memory[i], 0, first}});
    expected_memory.push_back(memory[i]);
  }
  for (size_t i = 0; i < c.parts.size(); ++i) {
    for (size_t p = 0; p < memory[i].slabs.size(); ++p)
      expected_memory[i].pointers[p] =
          memory[i].pointers[p] == nullptr ? nullptr : expected_memory[i].slabs[p].data();
    Chunk& chunk = chunks.emplace_back();
    chunk = {.inputs = &inputs[i],
             .memory = &memory[i],
             .first = c.parts[i].first,
             .rows = c.parts[i].second,
             .page_levels = &levels[i],
             .window = c.window,
             .soft_cap = c.soft_cap};
    expected_chunks.push_back(chunk);
    expected_chunks.back().memory = &expected_memory[i];
  }
  const auto expected = attend(*reference, layout, c.shape, expected_chunks);
  const auto actual = attend_anywhere(*backend, layout, c.shape, chunks);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const std::string what =
        c.spec.recipe +
        testing::PrintToString(std::array{c.shape.q_heads, c.shape.kv_heads, c.shape.dim, c.shape.page_tokens,
                                          c.window, chunks[i].first, chunks[i].rows});
    // Queries and weights are rounded to bytes where codes are attended (24 dB, and few slots average less of
    // it), products of bf16 to 2^-9.
    expect_attention(actual[i], expected[i], {.decibel = backend_case.dtype == DType::kF32 ? 80.0 : 20.0}, what);
    expect_same_cache(layout, memory[i], expected_memory[i], chunks[i].first + chunks[i].rows);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, RandomAttention,
                         testing::Combine(testing::ValuesIn(device_cases()), testing::Range(1u, 21u)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace lowkey::kernels::test
