#include "kernels/cpu/head_maps.h"

#include <algorithm>

#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/scratch.h"

namespace lowkey::kernels {
namespace {

constexpr size_t kMaxKept = 1024;  // banks with maps: of a few layouts of the largest models

bool needs_map(const VectorLayout& vector) {
  return vector.decode != kNoNumbers || vector.num_heads > 1 || simd::has_static_scale(vector);
}

// Row j of D: [head_dim], times the feature's static scale.
void decode_row(const PageLayout& layout, const VectorLayout& vector, int head, int j, float* row) {
  const int dim = layout.head_dim, first = (head - vector.head) * dim;
  const float* decode = layout.numbers_at(vector.decode);
  const float scale = simd::has_static_scale(vector) ? layout.numbers_at(vector.scale)[j] : 1.0f;
  if (decode == nullptr) {
    std::fill_n(row, dim, 0.0f);
    if (j >= first && j < first + dim) row[j - first] = scale;
    return;
  }
  const float* source = decode + static_cast<size_t>(j) * vector.input_dim + first;
  for (int i = 0; i < dim; ++i) row[i] = source[i] * scale;
}

const float* mean_of(const PageLayout& layout, const VectorLayout& vector, int head) {
  const float* mean = layout.numbers_at(vector.mean);
  return mean == nullptr ? nullptr : mean + (head - vector.head) * layout.head_dim;
}

}  // namespace

void HeadMaps::clear() {
  used_.clear();
  layouts_.clear();
  std::erase_if(banks_, [](const Bank& bank) { return bank.layout_id == 0; });
  if (banks_.size() > kMaxKept) banks_.clear();  // of layouts that are no more, most of them
}

int HeadMaps::add(const PageLayout& layout, int bank) {
  for (size_t i = 0; i < used_.size(); ++i) {
    if (layouts_[i] == &layout && banks_[used_[i]].bank == bank) return static_cast<int>(i);
  }
  size_t found = 0;
  while (found < banks_.size() &&
         (layout.id == 0 || banks_[found].layout_id != layout.id || banks_[found].bank != bank))
    ++found;
  const bool added = found == banks_.size();
  if (added) {
    banks_.push_back({.layout_id = layout.id, .bank = bank});
    banks_[found].heads.resize(layout.num_kv_heads);
    banks_[found].memory.resize(layout.num_kv_heads);
  }
  for (int head = 0; head < layout.num_kv_heads; ++head) {
    refer(banks_[found], layout, head);
    if (added) fill(banks_[found], layout, head);
  }
  used_.push_back(static_cast<int>(found));
  layouts_.push_back(&layout);
  return static_cast<int>(used_.size()) - 1;
}

// What points into the layout: a copy of the one that was filled in may have come since.
void HeadMaps::refer(Bank& bank, const PageLayout& layout, int head) {
  const VectorLayout& key = layout.vector(bank.bank, Side::kKey, head);
  const VectorLayout& value = layout.vector(bank.bank, Side::kValue, head);
  HeadMap& map = bank.heads[head];
  map.head = {&layout, &key, &value};
  map.key_mean = mean_of(layout, key, head);
  map.value_mean = mean_of(layout, value, head);
}

void HeadMaps::fill(Bank& bank, const PageLayout& layout, int head) {
  HeadMap& map = bank.heads[head];
  const VectorLayout &key = *map.head.key, &value = *map.head.value;
  const int key_stride = simd::tile_stride(key.dim), value_stride = simd::tile_stride(layout.head_dim);
  const size_t key_floats = needs_map(key) ? static_cast<size_t>(layout.head_dim) * key_stride : 0;
  const size_t value_floats = needs_map(value) ? static_cast<size_t>(value.dim) * value_stride : 0;
  std::vector<float>& memory = bank.memory[head];
  memory.assign(key_floats + value_floats, 0.0f);
  if (needs_map(key)) {
    map.key = memory.data();
    std::vector<float> row(layout.head_dim);
    for (int j = 0; j < key.dim; ++j) {
      decode_row(layout, key, head, j, row.data());
      for (int i = 0; i < layout.head_dim; ++i) memory[static_cast<size_t>(i) * key_stride + j] = row[i];
    }
  }
  if (needs_map(value)) {
    map.value = memory.data() + key_floats;
    for (int j = 0; j < value.dim; ++j)
      decode_row(layout, value, head, j, memory.data() + key_floats + static_cast<size_t>(j) * value_stride);
  }
}

}  // namespace lowkey::kernels
