// The weights of a GGUF file, mapped: llama.cpp's names and orders become those of transformers.
#pragma once

#include <boost/json/object.hpp>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/gguf/gguf_file.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_source.h"

namespace lowkey::worker {

// config.json as transformers would have it, out of the metadata: what ModelConfig::read() checks as any
// other. Errors: kBadInput naming `name` (the file) and key.
Result<boost::json::object> gguf_config(const GgufFile& file, const std::string& name);

// Views of F32, F16 and BF16 tensors lie in the file; quantized ones, and those whose rows llama.cpp
// reorders, are decoded into memory that release() gives back. Thread rule: one thread.
class GgufWeights final : public WeightSource {
 public:
  static Result<std::unique_ptr<GgufWeights>> open(const std::filesystem::path& file,
                                                   const ModelConfig& config);

  Result<TensorView> matrix(const std::string& tensor, int64_t rows, int64_t cols) const override;
  Result<TensorView> vector(const std::string& tensor, int64_t size) const override;
  Result<kernels::FewBitForm> stored_form(const std::string& tensor, int64_t rows,
                                          int64_t cols) const override;
  bool is_quantized(const std::string& tensor) const override;
  void read_blocks(const std::string& tensor, int64_t row, int64_t first_block, kernels::FewBitMatrix& to,
                   int to_row) const override;
  void prefetch(const TensorView& view, int64_t first, int64_t count) const override;
  void release(const TensorView& view) const override;
  uint64_t num_parameters() const override;
  size_t num_files() const override { return 1; }
  bool norms_count_from_one() const override { return false; }  // llama.cpp has added the 1

 private:
  GgufWeights(std::filesystem::path path, GgufFile file) : path_(std::move(path)), file_(std::move(file)) {}
  Result<const GgufTensor*> find(const std::string& tensor, std::span<const int64_t> shape) const;
  // Heads of q or k whose rows llama.cpp has interleaved; 0: none.
  int interleaved_heads(const std::string& tensor) const;
  // The file's row of row `row` of `rows`, where `heads` are interleaved.
  static int64_t stored_row(int64_t row, int64_t rows, int heads);
  TensorView decoded(const GgufTensor& tensor, int64_t rows, int64_t cols, int heads) const;

  std::filesystem::path path_;
  GgufFile file_;
  bool post_norms_ = false;
  int heads_ = 0, kv_heads_ = 0;  // 0: rows of this architecture lie as in transformers
  mutable std::map<const std::byte*, std::vector<std::byte>> decoded_;
};

}  // namespace lowkey::worker
