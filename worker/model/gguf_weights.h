// The weights of a GGUF file, mapped: llama.cpp's names and orders become those of transformers.
#pragma once

#include <boost/json/object.hpp>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/gguf/gguf_header.h"
#include "base/safetensors/mapped_file.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_source.h"

namespace lowkey::worker {

bool is_gguf(const std::filesystem::path& model);  // a file, not a folder

struct GgufFile {
  static Result<GgufFile> open(const std::filesystem::path& path);

  MappedFile map;
  GgufHeader header;
};

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
  TensorView decoded(const GgufTensor& tensor, int64_t rows, int64_t cols, int heads) const;

  std::filesystem::path path_;
  GgufFile file_;
  bool post_norms_ = false;
  int heads_ = 0, kv_heads_ = 0;  // 0: rows of this architecture lie as in transformers
  mutable std::map<const std::byte*, std::vector<std::byte>> decoded_;
};

}  // namespace lowkey::worker
