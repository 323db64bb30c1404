#include "worker/model/weight_loader.h"

#include <cstring>

#include "kernels/ops/few_bit_weights.h"
#include "kernels/page/dtype.h"

namespace lowkey::worker {

using kernels::DType;
using kernels::FewBitForm;
using kernels::FewBitMatrix;
using kernels::kWeightBlock;
using kernels::Linear;

int rounded_bits(WeightStorage storage, std::string_view kind) {
  if (storage == WeightStorage::kInt8) return 8;
  if (storage != WeightStorage::kInt4) return 0;
  return kind == kEmbeddingKind || kind == kHeadKind ? 8 : 4;
}

uint64_t matrix_bytes(uint64_t out, uint64_t in, int bits, DType dtype) {
  if (bits == 0) return out * in * kernels::dtype_bytes(dtype);
  const uint64_t pairs = (in + 63) / 64 * ((out + 15) / 16);  // records of kernels/cpu/few_bit_kernels.h
  return pairs * (64 + 128 * static_cast<uint64_t>(bits));
}

std::unique_ptr<Linear> WeightLoader::rows(std::string_view kind, std::span<const RowPart> parts,
                                           int64_t cols, int64_t padded_rows, bool embedding) {
  const Shard all_columns{0, cols};
  const FewBitForm form = form_of(kind, parts, cols, all_columns);
  if (form.bits > 0) return few_bits(kind, form, parts, cols, all_columns, padded_rows);
  std::vector<TensorView> views;
  int64_t total = 0;
  for (const RowPart& part : parts) {
    const auto view = take(reader_.matrix(part.tensor, part.rows, cols));
    if (!view) return nullptr;
    reader_.prefetch(*view, part.shard.first, part.shard.count);
    note_dtype(*view);
    total += part.shard.count;
    views.push_back(*view);
  }
  const int64_t out = std::max(total, padded_rows);
  DType dtype = views[0].dtype;
  const std::byte* data = views[0].data + parts[0].shard.first * views[0].row_bytes();
  if (parts.size() > 1 || out > total) data = stack(parts, views, out, dtype);
  auto packed = embedding ? backend_.pack_embedding(data, dtype, out, cols, cols)
                          : backend_.pack_linear(data, dtype, out, cols, cols);
  for (const TensorView& view : views) reader_.release(view);
  packed_bytes_ += packed->packed_bytes();
  return packed;
}

// In the backend's dtype read in place, with a stride.
std::unique_ptr<Linear> WeightLoader::columns(std::string_view kind, const std::string& tensor, int64_t rows,
                                              int64_t cols, Shard shard) {
  const RowPart whole{tensor, rows, {0, rows}};
  const FewBitForm form = form_of(kind, {&whole, 1}, cols, shard);
  if (form.bits > 0) return few_bits(kind, form, {&whole, 1}, cols, shard, rows);
  const auto view = take(reader_.matrix(tensor, rows, cols));
  if (!view) return nullptr;
  reader_.prefetch(*view, 0, rows);
  note_dtype(*view);
  const std::byte* data = view->data + shard.first * kernels::dtype_bytes(view->dtype);
  auto packed = backend_.pack_linear(data, view->dtype, rows, shard.count, cols);
  reader_.release(*view);
  packed_bytes_ += packed->packed_bytes();
  return packed;
}

DeviceVector WeightLoader::vector(std::span<const RowPart> parts, float offset) {
  std::vector<float> values;
  for (const RowPart& part : parts) {
    const auto view = take(reader_.vector(part.tensor, part.rows));
    if (!view) return nullptr;
    for (int64_t i = 0; i < part.shard.count; ++i)
      values.push_back(kernels::load_element(view->data, view->dtype, part.shard.first + i) + offset);
    reader_.release(*view);
  }
  DeviceVector result = backend_.allocate(values.size() * sizeof(float));
  backend_.upload(std::as_bytes(std::span(values)), result->data());
  packed_bytes_ += result->size();
  return result;
}

void WeightLoader::note_dtype(const TensorView& view) {
  if (view.dtype == DType::kF16 && backend_.dtype() == DType::kBf16) report_.note_cut_halves();
}

namespace {

// Whether a part's columns are whole blocks of the file.
bool whole_blocks(Shard shard) {
  return shard.first % kWeightBlock == 0 && shard.count % kWeightBlock == 0;
}

}  // namespace

FewBitForm WeightLoader::form_of(std::string_view kind, std::span<const RowPart> parts, int64_t cols,
                                 Shard shard) {
  if (storage_ != WeightStorage::kAuto) return {rounded_bits(storage_, kind)};
  if (!backend_.keeps_few_bits() || !whole_blocks(shard)) return {};
  std::optional<FewBitForm> form;
  bool in_blocks = true;  // of the same form, all of them
  for (const RowPart& part : parts) {
    const auto stored = take(reader_.stored_form(part.tensor, part.rows, cols));
    if (!stored || (stored->bits == 0 && !reader_.is_quantized(part.tensor))) return {};
    in_blocks = in_blocks && stored->bits > 0 && stored == form.value_or(*stored);
    form = stored;
  }
  // Blocks of other forms: 8 bits lose little of them, and are half of what the backend's dtype takes.
  return in_blocks ? *form : FewBitForm{8};
}

std::unique_ptr<Linear> WeightLoader::few_bits(std::string_view kind, FewBitForm form,
                                               std::span<const RowPart> parts, int64_t cols, Shard shard,
                                               int64_t padded_rows) {
  int64_t total = 0;
  for (const RowPart& part : parts) total += part.shard.count;
  FewBitMatrix matrix(form, static_cast<int>(std::max(total, padded_rows)), static_cast<int>(shard.count));
  int to = 0;
  for (const RowPart& part : parts) {
    const auto stored = take(reader_.stored_form(part.tensor, part.rows, cols));
    if (!stored) return nullptr;
    const bool as_stored = stored == form && whole_blocks(shard);
    kernels::RoundingError error;
    if (as_stored) {
      for (int64_t row = 0; row < part.shard.count; ++row)
        reader_.read_blocks(part.tensor, part.shard.first + row, shard.first / kWeightBlock, matrix, to++);
    } else {
      const auto view = take(reader_.matrix(part.tensor, part.rows, cols));
      if (!view) return nullptr;
      reader_.prefetch(*view, part.shard.first, part.shard.count);
      for (int64_t row = 0; row < part.shard.count; ++row)
        error +=
            matrix.round_row(to++, view->data, view->dtype, (part.shard.first + row) * cols + shard.first);
      reader_.release(*view);
    }
    report_.add(kind, part.tensor, form.bits, as_stored, error);
  }
  auto packed = backend_.pack_few_bits(matrix);
  packed_bytes_ += packed->packed_bytes();
  return packed;
}

// Copies the parts under each other; mixed dtypes meet as f32.
const std::byte* WeightLoader::stack(std::span<const RowPart> parts, std::span<const TensorView> views,
                                     int64_t rows, DType& dtype) {
  for (const TensorView& view : views)
    if (view.dtype != dtype) dtype = DType::kF32;
  const int64_t cols = views[0].cols;
  const size_t row_bytes = cols * kernels::dtype_bytes(dtype);
  staging_.resize(rows * row_bytes);
  std::byte* to = staging_.data();
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::byte* from = views[i].data + parts[i].shard.first * views[i].row_bytes();
    const size_t elements = parts[i].shard.count * cols;
    if (views[i].dtype == dtype) {
      std::memcpy(to, from, elements * kernels::dtype_bytes(dtype));
    } else {
      for (size_t e = 0; e < elements; ++e)
        kernels::store_element(to, dtype, e, kernels::load_element(from, views[i].dtype, e));
    }
    to += parts[i].shard.count * row_bytes;
  }
  std::memset(to, 0, staging_.data() + staging_.size() - to);
  return staging_.data();
}

}  // namespace lowkey::worker
