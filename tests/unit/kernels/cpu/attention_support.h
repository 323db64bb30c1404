// What the tests of attend() share: recipes of every format with random bases, one sequence's memory, steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "kernels/cpu/code_plan.h"
#include "kernels/page/dtype.h"
#include "tests/unit/kernels/support.h"

namespace lowkey::kernels::test {

inline constexpr int kBank = 1;  // of two: the other's bytes must stay as they are
inline constexpr std::byte kPoison{0xa5};

struct Shape {
  int q_heads, kv_heads, dim;
  int page_tokens = 32;
};

// Rows of a random orthonormal matrix [n][n] (Gram-Schmidt in float64); made once.
inline const std::vector<float>& orthonormal_rows(int n, uint32_t seed) {
  static std::map<std::pair<int, uint32_t>, std::vector<float>> made;
  std::vector<float>& result = made[{n, seed}];
  if (!result.empty()) return result;
  const auto random = normal_values(static_cast<size_t>(n) * n, seed);
  std::vector<double> rows(random.begin(), random.end());
  for (int i = 0; i < n; ++i) {
    double* row = rows.data() + static_cast<size_t>(i) * n;
    for (int pass = 0; pass < 2; ++pass) {
      for (int j = 0; j < i; ++j) {
        const double* other = rows.data() + static_cast<size_t>(j) * n;
        double dot = 0;
        for (int k = 0; k < n; ++k) dot += row[k] * other[k];
        for (int k = 0; k < n; ++k) row[k] -= dot * other[k];
      }
    }
    double sum = 0;
    for (int k = 0; k < n; ++k) sum += row[k] * row[k];
    for (int k = 0; k < n; ++k) row[k] /= std::sqrt(sum);
  }
  return result = {rows.begin(), rows.end()};
}

using GroupBits = std::array<uint8_t, kMaxLevels>;

// Orthonormal basis, its first groups as in `bits`, mean, descending static scales.
inline VectorSpec based(int input_dim, std::vector<GroupBits> bits, uint32_t seed) {
  VectorSpec vector{.quantizer = Quantizer::kEmbedded};
  bits.resize(std::min<size_t>(bits.size(), (input_dim + kGroupFeatures - 1) / kGroupFeatures));
  const int dim = std::min<int>(input_dim, static_cast<int>(bits.size()) * kGroupFeatures);
  vector.bits = std::move(bits);
  vector.encode = orthonormal_rows(input_dim, seed);
  vector.encode.resize(static_cast<size_t>(dim) * input_dim);
  vector.decode = vector.encode;
  vector.mean = normal_values(input_dim, seed + 1, 0.5f);
  for (int j = 0; j < dim; ++j) vector.scale.push_back(2.0f / static_cast<float>(1 + j));
  return vector;
}

// Full width and rank under a basis that is not orthonormal: decode^T encode = 1, encode's rows stretched.
inline VectorSpec general_basis(int input_dim, uint32_t seed) {
  VectorSpec vector;
  vector.encode = orthonormal_rows(input_dim, seed);
  vector.decode = vector.encode;
  for (int j = 0; j < input_dim; ++j) {
    const float stretch = 0.5f + static_cast<float>(j % 5);
    for (int i = 0; i < input_dim; ++i) {
      vector.encode[static_cast<size_t>(j) * input_dim + i] *= stretch;
      vector.decode[static_cast<size_t>(j) * input_dim + i] /= stretch;
    }
  }
  vector.mean = normal_values(input_dim, seed + 1, 0.5f);
  return vector;
}

inline VectorSpec affine(int input_dim, int bits, ScaleAxis axis, int span) {
  const int groups = (input_dim + kGroupFeatures - 1) / kGroupFeatures;
  return {.quantizer = Quantizer::kAffine,
          .bits = std::vector<GroupBits>(groups, GroupBits{static_cast<uint8_t>(bits)}),
          .axis = axis,
          .scale_span = span};
}

struct Recipe {
  std::string name;
  std::function<PageSpec(const Shape&)> make;
};
inline void PrintTo(const Recipe& recipe, std::ostream* out) {
  *out << recipe.name;
}

// Every (bank, side, vector) with a dim and widths of its own; one of them stores nothing, one nothing but
// zeros.
inline PageSpec ragged(const Shape& s) {
  PageSpec spec{.sink_tokens = 4, .num_levels = 3};
  const std::vector<GroupBits> choices[] = {{{4, 2, 2}, {2, 2, 0}, {0, 4, 0}, {2, 0, 0}},
                                            {{2, 1, 0}},
                                            {},
                                            {{8, 0, 0}, {3, 0, 0}, {5, 1, 0}},
                                            {{0, 0, 0}}};
  for (int i = 0; i < 4 * s.kv_heads; ++i) spec.vectors.push_back(based(s.dim, choices[i % 5], 300 + i));
  return spec;
}

inline PageSpec both(VectorSpec key, VectorSpec value, PageSpec spec) {
  spec.key = std::move(key);
  spec.value = std::move(value);
  return spec;
}

inline std::vector<Recipe> recipes() {
  const std::vector<GroupBits> mixed = {{4, 4}, {2, 2}, {2, 0}, {0, 0}};
  return {
      {"exact", [](const Shape&) { return PageSpec{}; }},
      {"q8", [](const Shape&) { return PageSpec::embedded("q8", 8, 4); }},
      {"q4", [](const Shape&) { return PageSpec::embedded("q4", 4, 0); }},
      {"q2", [](const Shape&) { return PageSpec::embedded("q2", 2, 32); }},
      {"full_basis",
       [](const Shape& s) {
         VectorSpec key = based(s.dim, {}, 1), value = based(s.dim, {}, 2);
         for (VectorSpec* vector : {&key, &value}) {
           vector->quantizer = Quantizer::kFull;
           vector->scale.clear();
           vector->encode = vector->decode = orthonormal_rows(s.dim, 3);
         }
         return both(key, value, {.sink_tokens = 2});
       }},
      {"general_basis",
       [](const Shape& s) { return both(general_basis(s.dim, 5), general_basis(s.dim, 6), {}); }},
      {"mixed",
       [=](const Shape& s) {
         return both(based(s.dim, mixed, 7), based(s.dim, mixed, 8), {.sink_tokens = 4, .num_levels = 2});
       }},
      {"ragged", ragged},
      {"joined",
       [=](const Shape& s) {
         const int join = s.kv_heads % 2 == 0 ? 2 : s.kv_heads;
         return both(based(join * s.dim, mixed, 9), based(join * s.dim, mixed, 10),
                     {.sink_tokens = 1, .num_levels = 2, .join = join});
       }},
      {"joined_identity",
       [](const Shape& s) {
         PageSpec spec = PageSpec::embedded("q8", 8, 0);
         spec.join = s.kv_heads;
         return spec;
       }},
      {"minikv",
       [](const Shape& s) {
         return both(affine(s.dim, 2, ScaleAxis::kChannel, 16), affine(s.dim, 2, ScaleAxis::kToken, 16), {});
       }},
      {"affine4_other_axes",
       [](const Shape& s) {
         return both(affine(s.dim, 4, ScaleAxis::kToken, 8),
                     affine(s.dim, 4, ScaleAxis::kChannel, s.page_tokens), {});
       }},
      {"affine_odd_blocks",
       [](const Shape& s) {
         return both(affine(s.dim, 8, ScaleAxis::kChannel, 5), affine(s.dim, 3, ScaleAxis::kToken, 6), {});
       }},
  };
}

// How far attention over pages of a layout may be from float64 sums over what they decode to.
struct Tolerance {
  double element = 2e-5;  // relative and absolute: f32 maps and sums of up to 256 features
  double decibel = 0;     // not 0: of all together instead, where queries, scores or weights are rounded
};

// In pairs, queries and weights are rounded to 2^-9: about 2^-9 |q| |k| of a score.
inline constexpr double kPairsDecibel = 44;

inline Tolerance tolerance(const PageLayout& layout, int levels, bool in_pairs) {
  CodePlan plan;
  Tolerance worst;
  if (in_pairs) worst.decibel = kPairsDecibel;
  for (const VectorLayout& key : layout.vectors) {
    if (key.side != Side::kKey) continue;
    if (!plan.make(layout, key, layout.vector(key.bank, Side::kValue, key.head), levels)) continue;
    const bool narrow = plan.key.narrow || plan.value.narrow;
    worst.decibel = narrow ? 24 : worst.decibel == 0 ? 46 : worst.decibel;
  }
  return worst;
}

inline void expect_attention(const std::vector<float>& actual, const std::vector<float>& expected,
                             const Tolerance& tolerance, const std::string& what) {
  if (tolerance.decibel == 0)
    return expect_close(actual, expected, tolerance.element, tolerance.element, what);
  ASSERT_EQ(actual.size(), expected.size()) << what;
  EXPECT_GT(decibel(actual, expected), tolerance.decibel) << what;
}

inline PageLayout make_layout(const Recipe& recipe, const Shape& s, DType dtype) {
  PageSpec spec = recipe.make(s);
  spec.recipe = recipe.name;
  spec.page_tokens = s.page_tokens;
  spec.sink_tokens = std::min(spec.sink_tokens, spec.page_tokens);
  return PageLayout::make(spec, {2, s.kv_heads, s.dim, dtype}).value();
}

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
  int levels = 0;  // of every page; 0: all
  const ArchivedPages* archives = nullptr;
  const TokenObserver* observer = nullptr;
  const std::vector<uint8_t>* page_levels = nullptr;  // of each page, in place of `levels`
  int window = 0;                                     // of the step: the first chunk's counts
  float soft_cap = 0;
  int unwanted = 0;  // leading rows
};

inline std::vector<float> rows_of(const std::vector<float>& all, int first, int rows, int cols) {
  return {all.begin() + static_cast<size_t>(first) * cols,
          all.begin() + static_cast<size_t>(first + rows) * cols};
}

// One step with all chunks; the outputs of each. With `readers` > 1, that many layers read the bank; the
// outputs of the last.
inline std::vector<std::vector<float>> attend(Backend& backend, const PageLayout& layout, const Shape& s,
                                              const std::vector<Chunk>& chunks, int readers = 1) {
  std::vector<float> q, k, v;
  std::vector<SequenceSlice> slices;
  std::vector<std::vector<uint8_t>> uniform;
  int rows = 0;
  for (const Chunk& c : chunks) {
    auto append = [&](std::vector<float>& to, const std::vector<float>& from, int cols) {
      const auto part = rows_of(from, c.first, c.rows, cols);
      to.insert(to.end(), part.begin(), part.end());
    };
    append(q, c.inputs->q, s.q_heads * s.dim);
    append(k, c.inputs->k, s.kv_heads * s.dim);
    append(v, c.inputs->v, s.kv_heads * s.dim);
    uniform.emplace_back((c.first + c.rows) / layout.page_tokens,
                         static_cast<uint8_t>(c.levels == 0 ? layout.num_levels : c.levels));
    slices.push_back({rows, c.rows, c.first, c.memory->pointers.data(),
                      c.page_levels == nullptr ? uniform.back().data() : c.page_levels->data(),
                      c.memory->tail.data(), c.archives, c.observer, c.unwanted});
    rows += c.rows;
  }
  GuardedTensor tq(backend, rows, s.q_heads * s.dim, q), tk(backend, rows, s.kv_heads * s.dim, k),
      tv(backend, rows, s.kv_heads * s.dim, v), out(backend, rows, s.q_heads * s.dim);
  for (int reader = 0; reader < readers; ++reader) {
    backend.attend({.layout = &layout,
                    .bank = kBank,
                    .num_q_heads = s.q_heads,
                    .scale = 1.0f / std::sqrt(static_cast<float>(s.dim)),
                    .window = chunks[0].window,
                    .soft_cap = chunks[0].soft_cap,
                    .q = tq,
                    .k = tk,
                    .v = tv,
                    .out = out,
                    .first_reader = reader == 0,
                    .last_reader = reader == readers - 1,
                    .sequences = slices});
  }
  std::vector<std::vector<float>> results;
  for (const SequenceSlice& slice : slices) {
    results.push_back(rows_of(out.values(), slice.first_row, slice.num_rows, s.q_heads * s.dim));
  }
  return results;
}

// A whole sequence in chunks of `chunk` rows; `like` has levels, archives and observer.
inline std::vector<float> attend_in_chunks(Backend& backend, const PageLayout& layout, const Shape& s,
                                           const Inputs& inputs, SequenceMemory& memory, int tokens,
                                           int chunk, Chunk like = {}, int readers = 1) {
  std::vector<float> all;
  for (int first = 0; first < tokens; first += chunk) {
    like.inputs = &inputs;
    like.memory = &memory;
    like.first = first;
    like.rows = std::min(chunk, tokens - first);
    const auto part = attend(backend, layout, s, {like}, readers)[0];
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

inline void expect_same_cache(const PageLayout& layout, const SequenceMemory& a, const SequenceMemory& b,
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

inline void expect_other_bank_untouched(const PageLayout& layout, const SequenceMemory& memory) {
  const VectorLayout& first = layout.vector(kBank, Side::kKey, 0);
  for (size_t i = 0; i < memory.slabs.size(); i += kMaxSlabs) {
    for (size_t j = 0; j < first.scalars_offset; ++j)
      ASSERT_EQ(memory.slabs[i][j], kPoison) << "page byte " << j;
  }
  for (size_t j = 0; j < layout.rows_of(kBank, Side::kKey, 0).tail_offset; ++j)
    ASSERT_EQ(memory.tail[j], kPoison) << "tail byte " << j;
}

}  // namespace lowkey::kernels::test
