#include "worker/model/safetensors_reader.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <utility>

#include "worker/model/json_fields.h"

namespace lowkey::worker {

namespace {

constexpr uint64_t kMaxIndexBytes = 64 << 20;  // the largest published ones have about 10 MB

// The file names of the index, each once, sorted. Names may not leave the folder.
Result<std::set<std::string>> read_index(const std::filesystem::path& path,
                                         std::vector<std::pair<std::string, std::string>>& where) {
  LOWKEY_ASSIGN(index, read_json_object(path, kMaxIndexBytes));
  JsonFields fields(index, path.string());
  const auto* map = fields.child("weight_map");
  LOWKEY_TRY(fields.status());
  if (map == nullptr || map->empty()) {
    fields.fail("weight_map", "tensor names with their files");
    return fields.status().error();
  }
  std::set<std::string> files;
  for (const auto& [tensor, value] : *map) {
    const std::string file = value.is_string() ? std::string(value.get_string()) : "";
    if (file.empty() || std::filesystem::path(file).filename() != file || file == "." || file == "..")
      return Error{Code::kBadInput,
                   fmt::format("{}: tensor '{}': expected a file name in this folder, found {}",
                               path.string(), std::string(tensor), describe(&value))};
    files.insert(file);
    where.emplace_back(tensor, file);
  }
  return files;
}

std::optional<kernels::DType> float_dtype(const std::string& name) {
  if (name == "F32") return kernels::DType::kF32;
  if (name == "F16") return kernels::DType::kF16;
  if (name == "BF16") return kernels::DType::kBf16;
  return std::nullopt;
}

std::pair<uintptr_t, uintptr_t> page_range(const std::byte* data, size_t bytes, bool inner) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = begin + bytes;
  if (inner) return {(begin + page - 1) / page * page, end / page * page};
  return {begin / page * page, (end + page - 1) / page * page};
}

}  // namespace

Result<SafetensorsReader> SafetensorsReader::open(const std::filesystem::path& model_dir) {
  SafetensorsReader reader;
  reader.index_ = model_dir / "model.safetensors";
  std::error_code ec;
  if (std::filesystem::exists(reader.index_, ec)) {
    LOWKEY_TRY(reader.add_file(reader.index_));
    return reader;
  }
  const std::filesystem::path index = model_dir / "model.safetensors.index.json";
  if (!std::filesystem::exists(index, ec))
    return Error{Code::kBadInput,
                 fmt::format("{}: expected model.safetensors or model.safetensors.index.json, found neither",
                             model_dir.string())};
  reader.index_ = index;
  std::vector<std::pair<std::string, std::string>> where;
  LOWKEY_ASSIGN(files, read_index(index, where));
  for (const std::string& file : files) LOWKEY_TRY(reader.add_file(model_dir / file));
  for (const auto& [tensor, file] : where) {
    const auto found = reader.tensors_.find(tensor);
    if (found == reader.tensors_.end() || reader.paths_[found->second.file].filename() != file)
      return Error{Code::kBadInput,
                   fmt::format("{}: tensor '{}': expected in {}, found {}", index.string(), tensor, file,
                               found == reader.tensors_.end()
                                   ? "in no file"
                                   : "in " + reader.paths_[found->second.file].filename().string())};
  }
  return reader;
}

Status SafetensorsReader::add_file(const std::filesystem::path& path) {
  LOWKEY_ASSIGN(map, MappedFile::open(path));
  LOWKEY_ASSIGN(header, parse_safetensors_header(map.bytes(), path.string()));
  headers_.push_back(std::make_unique<SafetensorsHeader>(std::move(header)));
  for (const TensorEntry& entry : headers_.back()->tensors) {
    const auto [it, fresh] = tensors_.try_emplace(entry.name, Location{paths_.size(), &entry});
    if (!fresh)
      return Error{Code::kBadInput, fmt::format("{}: tensor '{}': expected in one file, found in {} too",
                                                path.string(), entry.name, paths_[it->second.file].string())};
  }
  paths_.push_back(path);
  maps_.push_back(std::move(map));
  return {};
}

Result<TensorView> SafetensorsReader::view(const std::string& tensor, std::span<const int64_t> shape) const {
  const auto found = tensors_.find(tensor);
  if (found == tensors_.end())
    return Error{Code::kBadInput, fmt::format("{}: tensor '{}': expected shape {}, found nothing",
                                              index_.string(), tensor, format_shape(shape))};
  const auto& [file, entry] = found->second;
  const auto bad = [&, path = paths_[file].string()](std::string_view expected, std::string_view is) {
    return Error{Code::kBadInput,
                 fmt::format("{}: tensor '{}': expected {}, found {}", path, tensor, expected, is)};
  };
  if (!std::ranges::equal(entry->shape, shape))
    return bad("shape " + format_shape(shape), format_shape(entry->shape));
  const auto dtype = float_dtype(entry->dtype);
  if (!dtype) return bad("dtype F32, F16 or BF16", entry->dtype);
  return TensorView{.data = maps_[file].bytes().data() + headers_[file]->data_begin + entry->begin,
                    .dtype = *dtype,
                    .rows = shape.size() == 2 ? shape[0] : 1,
                    .cols = shape.back()};
}

Result<TensorView> SafetensorsReader::matrix(const std::string& tensor, int64_t rows, int64_t cols) const {
  return view(tensor, std::array{rows, cols});
}

Result<TensorView> SafetensorsReader::vector(const std::string& tensor, int64_t size) const {
  return view(tensor, std::array{size});
}

void SafetensorsReader::prefetch(const TensorView& view, int64_t first, int64_t count) const {
  const auto [begin, end] = page_range(view.data + first * view.row_bytes(), count * view.row_bytes(), false);
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

void SafetensorsReader::release(const TensorView& view) const {
  const auto [begin, end] = page_range(view.data, view.rows * view.row_bytes(), true);
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

uint64_t SafetensorsReader::num_parameters() const {
  uint64_t total = 0;
  for (const auto& [name, location] : tensors_) {
    uint64_t elements = 1;
    for (const int64_t extent : location.entry->shape) elements *= static_cast<uint64_t>(extent);
    total += elements;
  }
  return total;
}

}  // namespace lowkey::worker
