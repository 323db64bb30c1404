// The weights of a model folder, mapped: `model.safetensors`, or the files of `model.safetensors.index.json`.
// Nothing is read but headers until a view's bytes are touched; release() gives touched file pages back.
// A file that is truncated by someone else while it is mapped raises SIGBUS, as for any mapped file.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "base/safetensors/mapped_file.h"
#include "base/safetensors/safetensors_header.h"
#include "worker/model/weight_source.h"

namespace lowkey::worker {

class SafetensorsReader final : public WeightSource {
 public:
  // Errors: kBadInput naming the file. Tensors in two files, or listed by the index but absent, are errors.
  static Result<SafetensorsReader> open(const std::filesystem::path& model_dir);

  bool contains(const std::string& tensor) const { return tensors_.contains(tensor); }
  Result<TensorView> matrix(const std::string& tensor, int64_t rows, int64_t cols) const override;
  Result<TensorView> vector(const std::string& tensor, int64_t size) const override;

  // Asks the kernel to read rows [first, first + count) ahead: other rows stay untouched.
  void prefetch(const TensorView& view, int64_t first, int64_t count) const override;
  // Drops the mapped pages that lie wholly in the tensor: they count no longer as this process's memory.
  void release(const TensorView& view) const override;

  uint64_t num_parameters() const override;
  bool norms_count_from_one() const override { return true; }

  // The files themselves, in order of their names.
  size_t num_files() const override { return maps_.size(); }
  const MappedFile& file(size_t i) const { return maps_[i]; }
  const SafetensorsHeader& header(size_t i) const { return *headers_[i]; }

 private:
  struct Location {
    size_t file = 0;
    const TensorEntry* entry = nullptr;
  };

  Status add_file(const std::filesystem::path& path);
  Result<TensorView> view(const std::string& tensor, std::span<const int64_t> shape) const;

  std::filesystem::path index_;  // where a missing tensor should have been: the index or the single file
  std::vector<std::filesystem::path> paths_;
  std::vector<MappedFile> maps_;
  std::vector<std::unique_ptr<SafetensorsHeader>> headers_;  // stable: Locations point into them
  std::unordered_map<std::string, Location> tensors_;
};

}  // namespace lowkey::worker
