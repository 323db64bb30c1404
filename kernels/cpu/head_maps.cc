#include "kernels/cpu/head_maps.h"

#include <algorithm>

#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/scratch.h"

namespace lowkey::kernels {
namespace {

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

int HeadMaps::add(const PageLayout& layout, int bank) {
  for (int i = 0; i < count_; ++i) {
    if (banks_[i].layout == &layout && banks_[i].bank == bank) return i;
  }
  if (count_ == static_cast<int>(banks_.size())) banks_.emplace_back();
  Bank& added = banks_[count_];
  added.layout = &layout;
  added.bank = bank;
  added.heads.resize(layout.num_kv_heads);
  added.memory.resize(layout.num_kv_heads);
  return count_++;
}

void HeadMaps::fill(int index, int head) {
  Bank& bank = banks_[index];
  const PageLayout& layout = *bank.layout;
  const VectorLayout& key = layout.vector(bank.bank, Side::kKey, head);
  const VectorLayout& value = layout.vector(bank.bank, Side::kValue, head);
  HeadMap& map = bank.heads[head];
  map = {.head = {&layout, &key, &value},
         .key_mean = mean_of(layout, key, head),
         .value_mean = mean_of(layout, value, head)};
  const int key_stride = simd::tile_stride(key.dim), value_stride = simd::tile_stride(layout.head_dim);
  const size_t key_floats = needs_map(key) ? static_cast<size_t>(layout.head_dim) * key_stride : 0;
  const size_t value_floats = needs_map(value) ? static_cast<size_t>(value.dim) * value_stride : 0;
  std::vector<float>& memory = bank.memory[head];
  memory.assign(key_floats + value_floats + layout.head_dim, 0.0f);
  float* row = memory.data() + key_floats + value_floats;  // scratch
  if (needs_map(key)) {
    map.key = memory.data();
    for (int j = 0; j < key.dim; ++j) {
      decode_row(layout, key, head, j, row);
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
