// Weights from their files into a backend's memory: rows and columns of one rank, in the backend's dtype or
// rounded to few bits.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/ops/backend.h"
#include "worker/model/decoder_weights.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_report.h"
#include "worker/model/weight_source.h"

namespace lowkey::worker {

// Some rows of some tensors, as they lie under each other in one packed matrix.
struct RowPart {
  std::string tensor;
  int64_t rows = 0;  // of the whole tensor
  Shard shard;       // those wanted
};

inline constexpr std::string_view kEmbeddingKind = "embedding", kHeadKind = "head";

// Bits that matrices of a kind are rounded to; 0: none.
int rounded_bits(WeightStorage storage, std::string_view kind);
// Of [out, in] in few bits with the padding of the CPU's records, or (0 bits) in `dtype`.
uint64_t matrix_bytes(uint64_t out, uint64_t in, int bits, kernels::DType dtype);

// Loads and packs. The first error is kept in status() and makes later calls return null. Owns the one
// staging buffer, reused over all layers.
class WeightLoader {
 public:
  WeightLoader(const WeightSource& reader, WeightStorage storage, kernels::Backend& backend)
      : reader_(reader), storage_(storage), backend_(backend) {}

  const Status& status() const { return status_; }
  uint64_t packed_bytes() const { return packed_bytes_; }
  const WeightReport& report() const { return report_; }

  // The parts stacked, then zero rows up to `padded_rows`. `kind` as in WeightReport.
  std::unique_ptr<kernels::Linear> rows(std::string_view kind, std::span<const RowPart> parts, int64_t cols,
                                        int64_t padded_rows = 0, bool embedding = false);
  // Columns `shard` of a [rows, cols] tensor.
  std::unique_ptr<kernels::Linear> columns(std::string_view kind, const std::string& tensor, int64_t rows,
                                           int64_t cols, Shard shard);
  // Elements of the parts (rows counted as elements), one after the other, as f32, plus `offset`.
  DeviceVector vector(std::span<const RowPart> parts, float offset = 0);
  DeviceVector vector(const std::string& tensor, int64_t size, float offset = 0) {
    const RowPart whole{tensor, size, {0, size}};
    return vector({&whole, 1}, offset);
  }
  // Gemma scales by 1 + weight, as transformers keeps it.
  DeviceVector norm(const std::string& tensor, int64_t size, bool gemma) {
    return vector(tensor, size, gemma && reader_.norms_count_from_one() ? 1.0f : 0.0f);
  }

 private:
  template <class T>
  std::optional<T> take(Result<T> result) {
    if (!status_.ok()) return std::nullopt;
    if (result.ok()) return std::move(result).value();
    status_ = result.error();
    return std::nullopt;
  }
  // How to hold the parts' columns `shard`; 0 bits: in the backend's dtype.
  kernels::FewBitForm form_of(std::string_view kind, std::span<const RowPart> parts, int64_t cols,
                              Shard shard);
  std::unique_ptr<kernels::Linear> few_bits(std::string_view kind, kernels::FewBitForm form,
                                            std::span<const RowPart> parts, int64_t cols, Shard shard,
                                            int64_t padded_rows);
  void note_dtype(const TensorView& view);
  const std::byte* stack(std::span<const RowPart> parts, std::span<const TensorView> views, int64_t rows,
                         kernels::DType& dtype);

  const WeightSource& reader_;
  const WeightStorage storage_;
  kernels::Backend& backend_;
  Status status_;
  std::vector<std::byte> staging_;
  uint64_t packed_bytes_ = 0;
  WeightReport report_;
};

}  // namespace lowkey::worker
