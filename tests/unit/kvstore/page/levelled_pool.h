// A pool of pages with three levels of different sizes and a sink.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "kvstore/page/page_pool.h"
#include "tests/unit/kvstore/page/page_pool_support.h"

namespace lowkey::kvstore {

inline kernels::PageLayout levelled_layout() {
  kernels::PageSpec spec;
  spec.page_tokens = 16;
  spec.sink_tokens = 4;
  spec.num_levels = 3;
  for (kernels::VectorSpec* vector : {&spec.key, &spec.value}) {
    vector->quantizer = kernels::Quantizer::kEmbedded;
    vector->bits = {{4, 1, 2}};
  }
  const kernels::CacheShape shape{
      .num_banks = 2, .num_kv_heads = 1, .head_dim = 16, .dtype = kernels::DType::kF32};
  return std::move(kernels::PageLayout::make(spec, shape)).value();
}

struct Levelled {
  explicit Levelled(uint64_t budget = 256 * kKiB, PagePool::Pressure pressure = {})
      : memory(std::move(PageMemory::make(levelled_layout(), budget)).value()), pool(*memory) {
    pool.set_pressure(pressure);
  }
  std::vector<PageRef> fill() {
    std::vector<PageRef> pages;
    while (auto page = pool.allocate(false)) pages.push_back(std::move(*page));
    return pages;
  }
  // As many pages as there is room for, found as 0, 1, ...; how many.
  int publish_all() {
    const int pages = static_cast<int>(fill().size());
    for (int i = 0; i < pages; ++i) pool.publish(*pool.allocate(false), identity_of(i), tokens_of(i));
    return pages;
  }
  std::unique_ptr<PageMemory> memory;
  PagePool pool;
};

}  // namespace lowkey::kvstore
