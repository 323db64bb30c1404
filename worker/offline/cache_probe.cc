#include "worker/offline/cache_probe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "base/deadline.h"
#include "kernels/cpu/page_encode.h"
#include "kernels/page/dtype.h"
#include "kernels/page/page_codec.h"

namespace lowkey::worker {

using kernels::DType;
using kernels::PageLayout;

namespace {

constexpr int kLeastRounds = 15;

// Numbers of about unit size, of `dtype`; the same for a seed on every machine.
void fill_random(std::byte* data, DType dtype, size_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  for (size_t i = 0; i < count; ++i) {
    const double uniform = static_cast<double>(random()) / std::minstd_rand::max();
    kernels::store_element(data, dtype, i, static_cast<float>(3.4 * uniform - 1.7));
  }
}

// Random rows of all heads of one page, encoded into page 0 of `pages`.
void encode_page(PlainPages& pages, uint32_t seed) {
  const PageLayout& layout = pages.layout();
  const size_t elements = static_cast<size_t>(layout.page_tokens) * layout.head_dim;
  const size_t row_bytes = elements * kernels::dtype_bytes(layout.dtype);
  const PlainMemory rows = plain_memory(row_bytes * layout.join);
  std::vector<const std::byte*> heads;
  for (int head = 0; head < layout.join; ++head) heads.push_back(rows.get() + head * row_bytes);
  for (const kernels::VectorLayout& vector : layout.vectors) {
    fill_random(rows.get(), layout.dtype, elements * layout.join, ++seed);
    kernels::encode_vector(layout, vector, std::span(heads).first(vector.num_heads), {pages.slabs()});
    if (layout.sink_tokens == 0) continue;
    for (int head = 0; head < vector.num_heads; ++head)
      kernels::write_sink(layout, layout.rows_of(vector.bank, vector.side, vector.head + head), heads[head],
                          pages.slabs()[layout.sink_slab()]);
  }
}

}  // namespace

CacheProbe::CacheProbe(kernels::Backend& backend, const kvstore::ResolvedCache& cache, int num_q_heads,
                       int tokens, int read_levels)
    : backend_(backend),
      cache_(cache),
      num_q_heads_(num_q_heads),
      own_(cache.pages, read_levels),
      tail_(plain_memory(cache.pages.tail_bytes)) {
  const PageLayout& layout = cache.pages;
  const int pages = tokens / layout.page_tokens;
  int own_pages = pages;
  if (const auto spec = cache.archive_spec()) {
    const kvstore::TokenBudget budget = spec->budget(pages * layout.page_tokens);
    own_pages = 0;
    for (size_t bank = 0; bank < cache.archive.size(); ++bank) {
      const int count = budget.archived(static_cast<int>(bank)) / layout.page_tokens;
      archive_.emplace_back(cache.archive[bank]);
      fill(archive_.back(), count, static_cast<uint32_t>(1000 * bank));
      archived_.push_back(
          {.layout = &cache.archive[bank], .slabs = archive_.back().slabs(), .num_pages = count});
    }
  }
  fill(own_, own_pages, 1);
  slots_ = own_pages * layout.page_tokens + layout.page_tokens / 2;
  fill_random(tail_.get(), layout.dtype, layout.tail_bytes / kernels::dtype_bytes(layout.dtype), 2);
  const int q = num_q_heads * layout.head_dim, kv = layout.num_kv_heads * layout.head_dim;
  rows_ = backend.allocate(sizeof(float) * 2 * (q + kv));
  fill_random(rows_->data(), DType::kF32, 2 * size_t(q + kv), 3);
  q_ = tensor(q), k_ = tensor(kv), v_ = tensor(kv), out_ = tensor(q);
}

float* CacheProbe::next_row(int cols) {
  float* row = reinterpret_cast<float*>(rows_->data()) + used_;
  used_ += cols;
  return row;
}

void CacheProbe::fill(PlainPages& pages, int count, uint32_t seed) {
  pages.grow(count);
  if (count == 0) return;
  encode_page(pages, seed);
  const PageLayout& layout = pages.layout();
  for (int page = 1; page < count; ++page)
    for (int level = 0; level < layout.num_levels; ++level)
      std::memcpy(pages.slabs()[page * kernels::kMaxSlabs + level], pages.slabs()[level],
                  layout.slab_bytes[level]);
}

double CacheProbe::attend() {
  const kernels::SequenceSlice slice{.num_rows = 1,
                                     .first_slot = slots_,
                                     .slabs = own_.slabs(),
                                     .page_levels = own_.page_levels(),
                                     .tail = tail_.get(),
                                     .archives = archived_.empty() ? nullptr : archived_.data()};
  const TimePoint start = Clock::now();
  for (const int bank : cache_.layers.bank_of_layer)
    backend_.attend({.layout = &own_.layout(),
                     .bank = bank,
                     .num_q_heads = num_q_heads_,
                     .scale = 1.0f / std::sqrt(static_cast<float>(own_.layout().head_dim)),
                     .q = q_,
                     .k = k_,
                     .v = v_,
                     .out = out_,
                     .sequences = {&slice, 1}});
  return seconds(Clock::now() - start);
}

double attention_ratio(kernels::Backend& backend, const kvstore::ResolvedCache& recipe, int read_levels,
                       const kvstore::ResolvedCache& exact, int num_q_heads, int tokens, double seconds) {
  CacheProbe coded(backend, recipe, num_q_heads, tokens, read_levels),
      plain(backend, exact, num_q_heads, tokens);
  coded.attend(), plain.attend();  // caches and scratch are warm
  double least = HUGE_VAL, least_exact = HUGE_VAL;
  const Deadline enough =
      Deadline::in(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)));
  for (int round = 0; round < kLeastRounds || !enough.passed(); ++round) {
    least_exact = std::min(least_exact, plain.attend());
    least = std::min(least, coded.attend());
  }
  return least / least_exact;
}

double encode_seconds(const PageLayout& layout, int tokens, int rounds) {
  const size_t elements = static_cast<size_t>(layout.page_tokens) * layout.head_dim;
  const size_t row_bytes = elements * kernels::dtype_bytes(layout.dtype);
  const PlainMemory rows = plain_memory(row_bytes * layout.join);
  fill_random(rows.get(), layout.dtype, elements * layout.join, 7);
  std::vector<const std::byte*> heads;
  for (int head = 0; head < layout.join; ++head) heads.push_back(rows.get() + head * row_bytes);
  PlainPages page(layout);
  page.grow(1);
  kernels::simd::PageEncoder encoder;
  double least = HUGE_VAL;
  for (int round = 0; round < rounds; ++round) {
    const TimePoint start = Clock::now();
    for (int i = 0; i < tokens / layout.page_tokens; ++i)
      for (const kernels::VectorLayout& vector : layout.vectors)
        encoder.encode(layout, vector, std::span(heads).first(vector.num_heads), {page.slabs()});
    least = std::min(least, seconds(Clock::now() - start));
  }
  return least;
}

}  // namespace lowkey::worker
