// attend(): against the float64 reference, against full attention written out here, and bit against bit
// across chunk sizes, batches and threads.
#include <cmath>
#include <cstring>

#include "kernels/ops/attention_reference.h"
#include "kernels/page/dtype.h"
#include "tests/unit/kernels/support.h"

namespace lowkey::kernels {
namespace {

using test::expect_close;
using test::GuardedTensor;
using test::normal_values;

constexpr int kBank = 1;  // of two: the other's bytes must stay as they are
constexpr std::byte kPoison{0xa5};

struct Shape {
  int q_heads, kv_heads, dim;
  int page_tokens = 32;
};

// Q, K, V of one sequence.
struct Inputs {
  Inputs(const Shape& s, int tokens, uint32_t seed)
      : q(normal_values(static_cast<size_t>(tokens) * s.q_heads * s.dim, seed, 1.5f)),
        k(normal_values(static_cast<size_t>(tokens) * s.kv_heads * s.dim, seed + 1, 1.5f)),
        v(normal_values(static_cast<size_t>(tokens) * s.kv_heads * s.dim, seed + 2)) {}
  std::vector<float> q, k, v;
};

// The pages and the tail of one sequence.
class SequenceMemory {
 public:
  SequenceMemory(const PageLayout& layout, int tokens) : tail(layout.tail_bytes, kPoison) {
    const int pages = tokens / layout.page_tokens;
    for (int page = 0; page < pages; ++page) {
      for (int slab = 0; slab < kMaxSlabs; ++slab) {
        const bool present = slab < layout.num_levels || (page == 0 && slab == layout.sink_slab());
        slabs.emplace_back(present ? layout.slab_bytes[slab] : 0, kPoison);
      }
    }
    for (auto& slab : slabs) pointers.push_back(slab.empty() ? nullptr : slab.data());
  }
  std::vector<std::vector<std::byte>> slabs;
  std::vector<std::byte*> pointers;
  std::vector<std::byte> tail;
};

// Rows [first, first + rows) of a sequence in one step.
struct Chunk {
  const Inputs* inputs;
  SequenceMemory* memory;
  int first, rows;
};

std::vector<float> rows_of(const std::vector<float>& all, int first, int rows, int cols) {
  return {all.begin() + static_cast<size_t>(first) * cols,
          all.begin() + static_cast<size_t>(first + rows) * cols};
}

// One step with all chunks; the outputs of each.
std::vector<std::vector<float>> attend(Backend& backend, const PageLayout& layout, const Shape& s,
                                       const std::vector<Chunk>& chunks) {
  std::vector<float> q, k, v;
  std::vector<SequenceSlice> slices;
  int rows = 0;
  for (const Chunk& c : chunks) {
    auto append = [&](std::vector<float>& to, const std::vector<float>& from, int cols) {
      const auto part = rows_of(from, c.first, c.rows, cols);
      to.insert(to.end(), part.begin(), part.end());
    };
    append(q, c.inputs->q, s.q_heads * s.dim);
    append(k, c.inputs->k, s.kv_heads * s.dim);
    append(v, c.inputs->v, s.kv_heads * s.dim);
    slices.push_back(
        {rows, c.rows, c.first, c.memory->pointers.data(), layout.num_levels, c.memory->tail.data()});
    rows += c.rows;
  }
  GuardedTensor tq(backend, rows, s.q_heads * s.dim, q), tk(backend, rows, s.kv_heads * s.dim, k),
      tv(backend, rows, s.kv_heads * s.dim, v), out(backend, rows, s.q_heads * s.dim);
  backend.attend({&layout, kBank, s.q_heads, 1.0f / std::sqrt(static_cast<float>(s.dim)), tq, tk, tv, out,
                  /*first_reader=*/true,
                  /*last_reader=*/true, slices});
  std::vector<std::vector<float>> results;
  for (const SequenceSlice& slice : slices) {
    results.push_back(rows_of(out.values(), slice.first_row, slice.num_rows, s.q_heads * s.dim));
  }
  return results;
}

// A whole sequence in chunks of `chunk` rows.
std::vector<float> attend_in_chunks(Backend& backend, const PageLayout& layout, const Shape& s,
                                    const Inputs& inputs, SequenceMemory& memory, int tokens, int chunk) {
  std::vector<float> all;
  for (int first = 0; first < tokens; first += chunk) {
    const auto part =
        attend(backend, layout, s, {{&inputs, &memory, first, std::min(chunk, tokens - first)}})[0];
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

PageLayout make_layout(const Shape& s, DType dtype, bool q8) {
  PageSpec spec{.page_tokens = s.page_tokens};
  if (q8) {
    spec = PageSpec::embedded("q8", 8, 4);
    spec.page_tokens = s.page_tokens;
  }
  return PageLayout::make(spec, {2, s.kv_heads, s.dim, dtype}).value();
}

void expect_same_cache(const PageLayout& layout, const SequenceMemory& a, const SequenceMemory& b,
                       int tokens) {
  ASSERT_EQ(a.slabs, b.slabs) << "pages differ";
  const size_t left = tokens % layout.page_tokens * layout.head_dim * dtype_bytes(layout.dtype);
  for (Side side : {Side::kKey, Side::kValue}) {
    for (int head = 0; head < layout.num_kv_heads; ++head) {
      const uint32_t at = layout.rows_of(kBank, side, head).tail_offset;
      ASSERT_EQ(std::memcmp(a.tail.data() + at, b.tail.data() + at, left), 0) << "tails differ";
    }
  }
}

void expect_other_bank_untouched(const PageLayout& layout, const SequenceMemory& memory) {
  const VectorLayout& first = layout.vector(kBank, Side::kKey, 0);
  for (size_t i = 0; i < memory.slabs.size(); i += kMaxSlabs) {
    for (size_t j = 0; j < first.scalars_offset; ++j)
      ASSERT_EQ(memory.slabs[i][j], kPoison) << "page byte " << j;
  }
  for (size_t j = 0; j < layout.rows_of(kBank, Side::kKey, 0).tail_offset; ++j)
    ASSERT_EQ(memory.tail[j], kPoison) << "tail byte " << j;
}

class Attention : public testing::TestWithParam<std::tuple<test::BackendCase, bool>> {
 protected:
  DType dtype = std::get<0>(GetParam()).dtype;
  bool q8 = std::get<1>(GetParam());
  std::unique_ptr<Backend> backend = std::get<0>(GetParam()).make();
};

class AttentionOnInstructionSets : public testing::TestWithParam<test::BackendCase> {};
class ExactAttention : public testing::TestWithParam<test::BackendCase> {};

constexpr Shape kShapes[] = {{4, 4, 8},   {8, 4, 8},   {9, 3, 64},     {6, 1, 64},
                             {2, 1, 128}, {2, 2, 128}, {3, 1, 20, 16}, {4, 2, 16, 48}};

void expect_equals_reference(Backend& backend, bool q8, const Shape& s, int tokens, int chunk) {
  const PageLayout layout = make_layout(s, backend.dtype(), q8);
  const Inputs inputs(s, tokens, 20);
  SequenceMemory memory(layout, tokens), expected_memory(layout, tokens);
  const auto reference = make_reference_backend(backend.dtype());
  const auto expected = attend_in_chunks(*reference, layout, s, inputs, expected_memory, tokens, chunk);
  const auto actual = attend_in_chunks(backend, layout, s, inputs, memory, tokens, chunk);
  expect_close(actual, expected, 1e-5, 1e-5,
               testing::PrintToString(std::array{s.q_heads, s.kv_heads, s.dim, tokens, chunk}));
  expect_same_cache(layout, memory, expected_memory, tokens);
  expect_other_bank_untouched(layout, memory);
}

TEST_P(Attention, EqualsTheReferenceAndWritesTheSameCache) {
  for (const Shape& s : kShapes) {
    for (int tokens : {1, s.page_tokens, 2 * s.page_tokens + 5, 77}) {
      for (int chunk : {1, 7, s.page_tokens + 1, tokens}) {
        expect_equals_reference(*backend, q8, s, tokens, chunk);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Codes and scalars are the same bytes on every instruction set, results the same to rounding.
TEST_P(AttentionOnInstructionSets, EqualsTheReference) {
  const test::SimdTarget target(GetParam().simd_target);
  const auto backend = GetParam().make();
  for (const Shape& s : kShapes) {
    for (bool q8 : {false, true}) expect_equals_reference(*backend, q8, s, 77, 33);
  }
}

// Exact pages: attention over K and V rounded to the dtype, written out in float64.
TEST_P(ExactAttention, EqualsFullAttention) {
  const DType dtype = GetParam().dtype;
  const auto backend = GetParam().make();
  const Shape s{9, 3, 64};
  const int tokens = 150, group = 3;
  const Inputs inputs(s, tokens, 30);
  const PageLayout layout = make_layout(s, dtype, false);
  SequenceMemory memory(layout, tokens);
  const auto actual = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, 40);
  std::vector<float> expected;
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
        sum += weights[i] = std::exp(dot / 8.0);
      }
      for (int i = 0; i <= t; ++i) {
        for (int f = 0; f < s.dim; ++f) out[f] += weights[i] / sum * row(inputs.v, i, f);
      }
      for (double x : out) expected.push_back(static_cast<float>(x));
    }
  }
  expect_close(actual, expected, 1e-5, 1e-5, "full attention");
}

TEST_P(Attention, BitsDoNotDependOnChunking) {
  for (const Shape& s : kShapes) {
    const int tokens = s.dim == 64 ? 540 : 150;  // beyond one split of 16 pages
    const PageLayout layout = make_layout(s, dtype, q8);
    const Inputs inputs(s, tokens, 40);
    SequenceMemory whole_memory(layout, tokens);
    const auto whole = attend_in_chunks(*backend, layout, s, inputs, whole_memory, tokens, tokens);
    for (int chunk : {1, 7, 32, 33, 512}) {
      SequenceMemory memory(layout, tokens);
      const auto part = attend_in_chunks(*backend, layout, s, inputs, memory, tokens, chunk);
      ASSERT_EQ(std::memcmp(part.data(), whole.data(), whole.size() * 4), 0)
          << "dim " << s.dim << " chunk " << chunk;
      expect_same_cache(layout, memory, whole_memory, tokens);
      if (HasFatalFailure()) return;
    }
  }
}

// A batch of prefills and decodes at different positions, in another order than alone and on other threads.
TEST_P(Attention, BitsDoNotDependOnTheBatchOrThreads) {
  const Shape s{9, 3, 64};
  const PageLayout layout = make_layout(s, dtype, q8);
  const std::vector<std::pair<int, int>> parts = {{600, 1}, {0, 100}, {31, 1}, {63, 40}, {32, 1}, {0, 1}};
  std::vector<Inputs> inputs;
  for (size_t i = 0; i < parts.size(); ++i)
    inputs.emplace_back(s, parts[i].first + parts[i].second, 100 * (i + 1));

  auto prefill = [&](Backend& b, size_t i, SequenceMemory& memory) {
    if (parts[i].first > 0) attend(b, layout, s, {{&inputs[i], &memory, 0, parts[i].first}});
  };
  const auto single = make_cpu_backend({.dtype = dtype, .threads = 1});
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

// The rule itself: a row sees a page's codes from the page's end on, and the sink exact; before that, exact
// rows.
TEST_P(Attention, EncodedPagesAreReadFromTheirSlabs) {
  const Shape s{2, 1, 8};
  const PageLayout layout = make_layout(s, dtype, q8);
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
  if (!q8) return;
  values[0] ^= std::byte{0x40};  // token 0 is a sink: its code is not read
  EXPECT_EQ(last(), clean);
  std::byte* sink = memory.pointers[layout.sink_slab()] + layout.rows_of(kBank, Side::kValue, 0).sink_offset;
  sink[1] ^= std::byte{0x40};
  EXPECT_NE(last(), clean) << "the sink is";
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, AttentionOnInstructionSets,
                         testing::ValuesIn(test::simd_backends()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Backends, ExactAttention, testing::ValuesIn(test::backends()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Backends, Attention,
                         testing::Combine(testing::ValuesIn(test::backends()), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + (std::get<1>(info.param) ? "_q8" : "_exact");
                         });

}  // namespace
}  // namespace lowkey::kernels
