// attend() on random pages of the 8B shape: decode at every width and page size, writes, prefill.
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/page/dtype.h"
#include "kernels/page/page_codec.h"
#include "tests/gpu/bench_support.h"

namespace lowkey::testing {
namespace {

using namespace kernels;

constexpr int kHeads = 8, kQueryHeads = 32, kDim = 128;

PageSpec recipe_of(int width, int page_tokens) {
  PageSpec spec = width == 16 ? PageSpec{} : PageSpec::embedded("q" + std::to_string(width), width, 0);
  spec.page_tokens = page_tokens;
  return spec;
}

PageLayout layout_of(int width, int page_tokens) {
  return PageLayout::make(recipe_of(width, page_tokens), {1, kHeads, kDim, DType::kBf16}).value();
}

// Sequences of equal length whose pages lie in one buffer: copies of a few pages encoded from normal rows.
class Cache {
 public:
  Cache(Bench& bench, const PageLayout& layout, int sequences, int tokens)
      : layout_(layout), pages_(tokens / layout.page_tokens + 1), tokens_(tokens) {
    const size_t slab = layout.slab_bytes[0], count = size_t(sequences) * pages_;
    slabs_ = bench.backend.allocate(slab * count);
    tails_ = bench.backend.allocate(size_t(layout.tail_bytes) * sequences);
    const size_t templates = std::min<size_t>(8, count);
    const std::vector<std::byte> pages = encode(static_cast<int>(templates));
    bench.backend.upload(pages, slabs_->data());
    for (size_t i = templates; i < count; ++i) {
      LOWKEY_CUDA_CHECK(cudaMemcpyAsync(slabs_->data() + i * slab, slabs_->data() + i * 7 % templates * slab,
                                        slab, cudaMemcpyDeviceToDevice, bench.stream));
    }
    bench.backend.synchronize();
    pointers_.resize(count * kMaxSlabs);
    for (size_t i = 0; i < count; ++i) pointers_[i * kMaxSlabs] = slabs_->data() + i * slab;
    levels_.assign(pages_, 1);
    for (int s = 0; s < sequences; ++s)
      slices_.push_back({.first_row = s,
                         .num_rows = 1,
                         .first_slot = tokens,
                         .slabs = pointers_.data() + size_t(s) * pages_ * kMaxSlabs,
                         .page_levels = levels_.data(),
                         .tail = tails_->data() + size_t(s) * layout.tail_bytes});
  }

  std::vector<SequenceSlice>& slices() { return slices_; }
  double bytes_read() const {
    return double(slices_.size()) * (tokens_ / layout_.page_tokens) * layout_.slab_bytes[0];
  }

 private:
  std::vector<std::byte> encode(int count) const {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<std::byte> pages(size_t(count) * layout_.slab_bytes[0]);
    std::vector<std::byte> rows(size_t(layout_.page_tokens) * kDim * 2);
    for (int p = 0; p < count; ++p) {
      std::byte* slabs[kMaxSlabs] = {pages.data() + size_t(p) * layout_.slab_bytes[0]};
      for (const VectorLayout& vector : layout_.vectors) {
        for (size_t i = 0; i < rows.size() / 2; ++i)
          store_element(rows.data(), DType::kBf16, i, normal(random));
        const std::byte* heads[] = {rows.data()};
        encode_vector(layout_, vector, heads, {slabs});
      }
    }
    return pages;
  }

  const PageLayout& layout_;
  const int pages_, tokens_;
  std::unique_ptr<Buffer> slabs_, tails_;
  std::vector<std::byte*> pointers_;
  std::vector<uint8_t> levels_;
  std::vector<SequenceSlice> slices_;
};

// Q, K, V and the result of some rows.
struct Rows {
  Rows(Bench& bench, int rows)
      : q(bench.floats(size_t(rows) * kQueryHeads * kDim, 2)),
        k(bench.floats(size_t(rows) * kHeads * kDim, 3)),
        v(bench.floats(size_t(rows) * kHeads * kDim, 4)),
        out(bench.backend.allocate(size_t(rows) * kQueryHeads * kDim * sizeof(float))),
        count(rows) {}
  AttentionStep step(const PageLayout& layout, std::span<const SequenceSlice> slices) const {
    return {.layout = &layout,
            .bank = 0,
            .num_q_heads = kQueryHeads,
            .scale = 0.088388f,
            .q = {q->data(), count, kQueryHeads * kDim},
            .k = {k->data(), count, kHeads * kDim},
            .v = {v->data(), count, kHeads * kDim},
            .out = {out->data(), count, kQueryHeads * kDim},
            .sequences = slices};
  }
  std::unique_ptr<Buffer> q, k, v, out;
  int count;
};

boost::json::object decode_case(Bench& bench, int width, int page_tokens, int batch, int context) {
  const PageLayout layout = layout_of(width, page_tokens);
  const Rows rows(bench, batch);
  // As many sets as it takes to be several times the 50 MB of the last cache.
  const double one = double(batch) * context / page_tokens * layout.slab_bytes[0];
  const int sets = bench.sizes.of(std::max(1, std::min(8, int(1e9 / one))), 1);
  std::vector<std::unique_ptr<Cache>> caches;
  std::vector<std::function<void()>> works;
  for (int i = 0; i < sets; ++i) {
    caches.push_back(std::make_unique<Cache>(bench, layout, batch, context));
    works.push_back(
        [&, cache = caches.back().get()] { bench.backend.attend(rows.step(layout, cache->slices())); });
  }
  const double seconds = bench.seconds(works), bytes = caches[0]->bytes_read();
  return {{"bits", width},
          {"page_tokens", page_tokens},
          {"batch", batch},
          {"context", context},
          {"seconds", seconds},
          {"bytes", bytes},
          {"floor_seconds", bytes / bench.read_bytes_per_second},
          {"fraction_of_read_bandwidth", bytes / seconds / bench.read_bytes_per_second}};
}

}  // namespace

boost::json::array bench_decode_attention(Bench& bench) {
  boost::json::array results;
  for (const int width : {4, 2, 8, 16}) {
    for (const int page_tokens : {64, 32, 128}) {
      const auto [wide_batch, wide_context] = bench.sizes.tiny ? std::pair(2, 256) : std::pair(64, 16384);
      results.push_back(decode_case(bench, width, page_tokens, wide_batch, wide_context));
      results.push_back(decode_case(bench, width, page_tokens, 1, bench.sizes.of(131072, 256)));
    }
  }
  return results;
}

// One layer at batch 64: at each step one of the sequences completes a page of 64 tokens, as on average.
boost::json::object bench_cache_write(Bench& bench) {
  const int batch = bench.sizes.of(64, 2), context = bench.sizes.of(4096, 128);
  const PageLayout layout = layout_of(4, 64);
  const Rows rows(bench, batch);
  Cache without(bench, layout, batch, context), with(bench, layout, batch, context);
  with.slices()[0].first_slot += layout.page_tokens - 1;
  const double before = bench.seconds({[&] { bench.backend.attend(rows.step(layout, without.slices())); }});
  const double after = bench.seconds({[&] { bench.backend.attend(rows.step(layout, with.slices())); }});
  return {{"batch", batch},
          {"context", context},
          {"seconds_without_a_complete_page", before},
          {"seconds_with_one", after},
          {"share", (after - before) / after}};
}

namespace {

// Rows of a Hadamard matrix: an orthonormal basis.
PageSpec with_basis(PageSpec spec) {
  std::vector<float> rows;
  for (unsigned i = 0; i < kDim; ++i)
    for (unsigned j = 0; j < kDim; ++j)
      rows.push_back((std::popcount(i & j) % 2 == 0 ? 1.0f : -1.0f) / std::sqrt(float(kDim)));
  spec.key.encode = spec.key.decode = spec.value.encode = spec.value.decode = rows;
  return spec;
}

// A whole prompt in one step, what it writes included.
boost::json::object prefill_case(Bench& bench, int width, bool basis, double products_per_second) {
  const int tokens = bench.sizes.of(8192, 70);
  const PageSpec spec = basis ? with_basis(recipe_of(width, 64)) : recipe_of(width, 64);
  const PageLayout layout = PageLayout::make(spec, {1, kHeads, kDim, DType::kBf16}).value();
  const Rows rows(bench, tokens);
  Cache cache(bench, layout, 1, tokens);
  cache.slices()[0].first_slot = 0;
  cache.slices()[0].num_rows = tokens;
  const double seconds = bench.seconds({[&] { bench.backend.attend(rows.step(layout, cache.slices())); }});
  const double operations = 4.0 * kQueryHeads * kDim * 0.5 * tokens * tokens;
  return {{"bits", width},
          {"basis", basis},
          {"tokens", tokens},
          {"seconds", seconds},
          {"operations_per_second", operations / seconds},
          {"fraction_of_products", operations / seconds / products_per_second}};
}

}  // namespace

boost::json::array bench_prefill_attention(Bench& bench, double products_per_second) {
  boost::json::array results;
  for (const auto& [width, basis] :
       {std::pair(4, false), {4, true}, {2, false}, {8, false}, {16, false}, {16, true}})
    results.push_back(prefill_case(bench, width, basis, products_per_second));
  return results;
}

// Of a step of 1 and of 64 rows over a vocabulary of 128,256: the most likely token, and top-k with top-p.
boost::json::array bench_draws(Bench& bench) {
  boost::json::array results;
  const int vocab = bench.sizes.of(128256, 1000);
  for (const int rows : {1, bench.sizes.of(64, 2)}) {
    const auto logits = bench.floats(size_t(rows) * vocab, 5, 3.0f);
    const auto tokens = bench.backend.allocate(rows * sizeof(DrawnToken));
    for (const bool greedy : {true, false}) {
      std::vector<TokenDraw> draws(rows);
      for (int i = 0; i < rows; ++i) {
        draws[i] = {.row = i, .temperature = greedy ? 0.0 : 0.8, .uniform = (i + 0.5) / rows};
        if (!greedy) draws[i].top_k = 50, draws[i].top_p = 0.9;
      }
      const double seconds = bench.seconds({[&] {
        bench.backend.draw_tokens({logits->data(), rows, vocab}, 1, vocab, draws,
                                  reinterpret_cast<DrawnToken*>(tokens->data()));
      }});
      results.push_back(boost::json::object{
          {"rows", rows}, {"vocabulary", vocab}, {"greedy", greedy}, {"seconds", seconds}});
    }
  }
  return results;
}

}  // namespace lowkey::testing
