// What token policies need of attend(): archived pages, observers, and compact() between them.
#include <numeric>

#include "kernels/page/page_codec.h"
#include "tests/unit/kernels/cpu/attention_support.h"

namespace lowkey::kernels::test {
namespace {

constexpr Shape kShape{9, 3, 64};
constexpr int kTokens = 150;

const Recipe& recipe_named(const std::string& name) {
  static const std::vector<Recipe> all = recipes();
  for (const Recipe& recipe : all) {
    if (recipe.name == name) return recipe;
  }
  ADD_FAILURE() << "no recipe " << name;
  return all[0];
}

// What a TokenObserver points to.
struct Observed {
  explicit Observed(const Shape& s, int capacity)
      : columns(size_t(2) * s.kv_heads * capacity), window(columns.size()), norms(columns.size()) {
    observer = {capacity, columns.data(), window.data(), /*window_first=*/100, norms.data()};
  }
  std::vector<float> columns, window, norms;
  TokenObserver observer;
};

void expect_equal_bits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * 4), 0) << what;
}

class TokenPolicies : public testing::TestWithParam<BackendCase> {
 protected:
  DType dtype = GetParam().dtype;
  std::unique_ptr<Backend> backend = GetParam().make();
  std::unique_ptr<Backend> reference = make_reference_backend(dtype);
  PageLayout exact = make_layout(recipe_named("exact"), kShape, dtype);
  Inputs inputs{kShape, kTokens, 70};
};

// Sum over rows of softmax weights and |k|, dense and in float64.
void dense_sums(const Inputs& inputs, const Shape& s, int tokens, DType dtype, int head, Observed& observed) {
  const int group = s.q_heads / s.kv_heads;
  const auto key = [&](int t, int f) {
    return double{round_to(dtype, inputs.k[(size_t(t) * s.kv_heads + head) * s.dim + f])};
  };
  std::vector<double> columns(tokens), window(tokens);
  for (int row = 0; row < tokens; ++row) {
    for (int h = head * group; h < (head + 1) * group; ++h) {
      std::vector<double> weights(row + 1);
      double sum = 0;
      for (int t = 0; t <= row; ++t) {
        double dot = 0;
        for (int f = 0; f < s.dim; ++f)
          dot += inputs.q[(size_t(row) * s.q_heads + h) * s.dim + f] * key(t, f);
        sum += weights[t] = std::exp(dot / std::sqrt(double(s.dim)));
      }
      for (int t = 0; t <= row; ++t) {
        columns[t] += weights[t] / sum;
        if (row >= observed.observer.window_first) window[t] += weights[t] / sum;
      }
    }
  }
  const size_t base = (size_t(kBank) * s.kv_heads + head) * observed.observer.capacity;
  for (int t = 0; t < tokens; ++t) {
    double norm = 0;
    for (int f = 0; f < s.dim; ++f) norm += key(t, f) * key(t, f);
    observed.columns[base + t] = static_cast<float>(columns[t]);
    observed.window[base + t] = static_cast<float>(window[t]);
    observed.norms[base + t] = static_cast<float>(std::sqrt(norm));
  }
}

TEST_P(TokenPolicies, ObserversEqualDenseSums) {
  for (const Shape& s : {kShape, Shape{4, 4, 8}, Shape{4, 1, 20, 16}, Shape{6, 2, 128}}) {
    const PageLayout layout = make_layout(recipe_named("exact"), s, dtype);
    const Inputs in(s, kTokens, 71);
    Observed expected(s, kTokens + 3);
    for (int head = 0; head < s.kv_heads; ++head) dense_sums(in, s, kTokens, dtype, head, expected);
    for (Backend* b : {backend.get(), reference.get()}) {
      SequenceMemory memory(layout, kTokens);
      Observed actual(s, kTokens + 3);
      attend_in_chunks(*b, layout, s, in, memory, kTokens, 47, {.observer = &actual.observer});
      const bool rounds =
          b == backend.get() && GetParam().in_pairs;  // queries, and the weights that add up to 1
      const double relative = rounds ? 2e-2 : 1e-5, absolute = rounds ? 1e-3 : 1e-6;
      expect_close(actual.columns, expected.columns, relative, absolute, "column sums");
      expect_close(actual.window, expected.window, relative, absolute, "window sums");
      expect_close(actual.norms, expected.norms, 1e-5, 1e-6, "key norms");
      // Every query row's softmax sums to one.
      for (int head = 0; head < s.kv_heads; ++head) {
        const auto begin =
            actual.columns.begin() + (std::ptrdiff_t(kBank) * s.kv_heads + head) * actual.observer.capacity;
        EXPECT_NEAR(std::accumulate(begin, begin + kTokens, 0.0), kTokens * (s.q_heads / s.kv_heads),
                    kTokens * (rounds ? 2e-3 : 1e-4));
      }
    }
  }
}

TEST_P(TokenPolicies, ObserversAreChunkExactToTheBitAndChangeNothing) {
  const int tokens = 540;
  const Inputs in(kShape, tokens, 72);
  const auto single = make_cpu_backend({.dtype = dtype, .threads = 1, .bf16_pairs = GetParam().in_pairs});
  SequenceMemory whole_memory(exact, tokens), plain_memory(exact, tokens);
  Observed whole(kShape, tokens);
  const auto out = attend_in_chunks(*single, exact, kShape, in, whole_memory, tokens, tokens,
                                    {.observer = &whole.observer});
  expect_equal_bits(attend_in_chunks(*backend, exact, kShape, in, plain_memory, tokens, tokens), out,
                    "outputs");
  for (int chunk : {1, 7, 33, 512}) {
    SequenceMemory memory(exact, tokens);
    Observed part(kShape, tokens);
    attend_in_chunks(*backend, exact, kShape, in, memory, tokens, chunk, {.observer = &part.observer});
    expect_equal_bits(part.columns, whole.columns, "column sums, chunk " + std::to_string(chunk));
    expect_equal_bits(part.window, whole.window, "window sums, chunk " + std::to_string(chunk));
    expect_equal_bits(part.norms, whole.norms, "key norms, chunk " + std::to_string(chunk));
  }
}

// Kept slots of each head, ascending; the heads differ.
std::vector<int32_t> choose(int kept, int slots, int heads) {
  std::vector<int32_t> keep;
  for (int head = 0; head < heads; ++head) {
    std::vector<int32_t> all(slots);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), std::mt19937(80 + head));
    std::sort(all.begin(), all.begin() + kept);
    keep.insert(keep.end(), all.begin(), all.begin() + kept);
  }
  return keep;
}

// Pages of an archive that a compaction fills.
struct Archive {
  Archive(const PageLayout& layout, int tokens) : layout(layout), memory(layout, tokens) {
    pages = {&layout, kBank, memory.pointers.data(), tokens / layout.page_tokens};
    banks = {ArchivedPages{}, pages};
  }
  const PageLayout& layout;
  SequenceMemory memory;
  ArchivedPages pages;
  std::vector<ArchivedPages> banks;  // [num_banks]
};

// A prompt, compacted to `kept` tokens, and rows after it.
std::vector<float> attend_compacted(Backend& backend, const PageLayout& exact, const PageLayout& to,
                                    const Shape& s, const Inputs& inputs, int prompt, int kept, int chunk,
                                    Archive& archive) {
  SequenceMemory memory(exact, kTokens);
  attend_in_chunks(backend, exact, s, inputs, memory, prompt, prompt);
  const std::vector<int32_t> keep = choose(kept, prompt, s.kv_heads);
  backend.compact({&exact, kBank, memory.pointers.data(), memory.tail.data(), prompt, keep.data(), kept, &to,
                   kBank, archive.memory.pointers.data()});
  // What follows takes slots from the rows left in the tail on.
  Inputs after = inputs;
  const int left = kept % to.page_tokens, rows = 40;
  const auto move = [&](std::vector<float>& x, int cols) {
    const std::vector<float> tail = rows_of(x, prompt, rows, cols);
    std::copy(tail.begin(), tail.end(), x.begin() + static_cast<size_t>(left) * cols);
  };
  move(after.q, s.q_heads * s.dim);
  move(after.k, s.kv_heads * s.dim);
  move(after.v, s.kv_heads * s.dim);
  std::vector<float> all;
  for (int first = left; first < left + rows; first += chunk) {
    const auto part =
        attend(backend, exact, s,
               {{&after, &memory, first, std::min(chunk, left + rows - first), 0, archive.banks.data()}})[0];
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

TEST_P(TokenPolicies, CompactedPagesAreAttendedLikeTheReferenceInAnyChunks) {
  for (const Recipe& recipe : recipes()) {
    for (int kept : {100, 96, 20}) {
      const PageLayout to = make_layout(recipe, kShape, dtype);
      Archive expected(to, kept), whole(to, kept);
      const auto reference_rows =
          attend_compacted(*reference, exact, to, kShape, inputs, 105, kept, 40, expected);
      const auto rows = attend_compacted(*backend, exact, to, kShape, inputs, 105, kept, 40, whole);
      ASSERT_EQ(whole.memory.slabs, expected.memory.slabs) << recipe.name;
      expect_attention(rows, reference_rows, tolerance(to, to.num_levels, GetParam().in_pairs),
                       recipe.name + " " + std::to_string(kept));
      if (HasFatalFailure()) return;
      for (int chunk : {1, 7}) {
        Archive part(to, kept);
        expect_equal_bits(attend_compacted(*backend, exact, to, kShape, inputs, 105, kept, chunk, part), rows,
                          recipe.name);
      }
    }
  }
}

// Exact pages of 32 tokens into pages of 16 and 64, heads joined: every kept row is where it belongs.
TEST_P(TokenPolicies, CompactionMovesTheChosenRowsOfEachHead) {
  const Shape s{4, 2, 20};
  const PageLayout from = make_layout(recipe_named("exact"), s, dtype);
  const int prompt = 77, kept = 70;
  const Inputs in(s, prompt, 73);
  const auto keep = choose(kept, prompt, s.kv_heads);
  for (int page_tokens : {16, 64}) {
    PageSpec spec{.page_tokens = page_tokens, .sink_tokens = 3, .join = 2};
    const PageLayout to = PageLayout::make(spec, {2, s.kv_heads, s.dim, dtype}).value();
    SequenceMemory memory(from, prompt);
    attend_in_chunks(*backend, from, s, in, memory, prompt, prompt);
    Archive archive(to, kept);
    backend->compact({&from, kBank, memory.pointers.data(), memory.tail.data(), prompt, keep.data(), kept,
                      &to, kBank, archive.memory.pointers.data()});
    for (Side side : {Side::kKey, Side::kValue}) {
      const VectorLayout& vector = to.vector(kBank, side, 0);
      std::vector<float> rows(static_cast<size_t>(page_tokens) * vector.input_dim);
      for (int i = 0; i < kept; ++i) {
        const int page = i / page_tokens, token = i % page_tokens;
        const bool in_tail = page == kept / page_tokens;
        std::byte* const* slabs = archive.memory.pointers.data() + static_cast<size_t>(page) * kMaxSlabs;
        if (!in_tail) decode_vector(to, vector, {slabs}, 1, rows.data());
        for (int head = 0; head < s.kv_heads; ++head) {
          const auto& source = side == Side::kKey ? in.k : in.v;
          const size_t slot = keep[static_cast<size_t>(head) * kept + i];
          for (int f = 0; f < s.dim; ++f) {
            const float expected = round_to(dtype, source[(slot * s.kv_heads + head) * s.dim + f]);
            const size_t at = static_cast<size_t>(token) * s.dim + f;
            const float actual =
                in_tail ? load_element(memory.tail.data() + from.rows_of(kBank, side, head).tail_offset,
                                       dtype, at)
                        : rows[static_cast<size_t>(token) * vector.input_dim + head * s.dim + f];
            ASSERT_EQ(actual, expected) << "row " << i << " of head " << head << ", pages of " << page_tokens;
            if (i >= to.sink_tokens) continue;
            const std::byte* sink = slabs[to.sink_slab()] + to.rows_of(kBank, side, head).sink_offset;
            ASSERT_EQ(load_element(sink, dtype, at), expected) << "sink row " << i;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TokenPolicies, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::kernels::test
