// Where a model's weights come from: a Hugging Face folder (safetensors_reader.h) or a GGUF file
// (gguf_weights.h). Tensors go by the names that transformers gives them.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/result.h"
#include "kernels/ops/few_bit_weights.h"
#include "kernels/page/dtype.h"

namespace lowkey::worker {

struct ModelConfig;

// A weight tensor; valid while its source lives, or until release() where the source says so.
struct TensorView {
  const std::byte* data = nullptr;
  kernels::DType dtype = kernels::DType::kF32;
  int64_t rows = 0;  // 1 for a vector
  int64_t cols = 0;

  size_t row_bytes() const { return static_cast<size_t>(cols) * kernels::dtype_bytes(dtype); }
};

class WeightSource {
 public:
  // Errors: kBadInput naming the file.
  static Result<std::unique_ptr<WeightSource>> open(const std::filesystem::path& model,
                                                    const ModelConfig& config);
  virtual ~WeightSource() = default;

  // The tensor, checked: kBadInput naming file, tensor, expected and found shape or dtype.
  virtual Result<TensorView> matrix(const std::string& tensor, int64_t rows, int64_t cols) const = 0;
  virtual Result<TensorView> vector(const std::string& tensor, int64_t size) const = 0;
  // The form of a matrix that the file holds in blocks as FewBitMatrix has them; 0 bits: it does not. Errors
  // as matrix().
  virtual Result<kernels::FewBitForm> stored_form(const std::string& tensor, int64_t rows,
                                                  int64_t cols) const;
  // Whether the file holds it in few bits, in blocks of whatever form.
  virtual bool is_quantized(const std::string& tensor) const;
  // Blocks of one row, from `first_block` on as many as `to` has, into its row `to_row`. REQUIRES:
  // stored_form() says so.
  virtual void read_blocks(const std::string& tensor, int64_t row, int64_t first_block,
                           kernels::FewBitMatrix& to, int to_row) const;
  // Rows [first, first + count) will be read; others stay untouched.
  virtual void prefetch(const TensorView& view, int64_t first, int64_t count) const = 0;
  // Nothing of the tensor will be read any more.
  virtual void release(const TensorView& view) const = 0;

  virtual uint64_t num_parameters() const = 0;  // elements of all tensors
  virtual size_t num_files() const = 0;
  // Whether Gemma's norm weights count from 1, as transformers has them.
  virtual bool norms_count_from_one() const = 0;
};

}  // namespace lowkey::worker
