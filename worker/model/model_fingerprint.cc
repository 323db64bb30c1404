#include <algorithm>
#include <array>
#include <span>

#include "worker/model/gguf_weights.h"
#include "worker/model/json_fields.h"
#include "worker/model/model_config.h"
#include "worker/model/safetensors_reader.h"

namespace lowkey::worker {

namespace {

// Per tensor: enough to tell any two trainings apart, few enough to read at once from a cold disk (the 1B
// shape: 147 tensors, 2.4 MB of 2.5 GB).
constexpr uint64_t kBlocks = 4;
constexpr uint64_t kBlockBytes = 4096;

Hash128 hash_tensor(std::span<const std::byte> data, Hash128 hash) {
  if (data.size() <= kBlocks * kBlockBytes) return hash128(data, hash);
  for (uint64_t block = 0; block < kBlocks; ++block) {
    const uint64_t offset = (data.size() - kBlockBytes) / (kBlocks - 1) * block;
    hash = hash128(data.subspan(offset, kBlockBytes), hash);
  }
  return hash;
}

Hash128 hash_file(const MappedFile& map, const SafetensorsHeader& header, Hash128 hash) {
  hash = hash128(map.bytes().first(header.data_begin), hash);
  for (const TensorEntry& tensor : header.tensors) {
    const auto data = map.bytes().subspan(header.data_begin + tensor.begin, tensor.end - tensor.begin);
    hash = hash_tensor(data, hash);
  }
  return hash;
}

// The metadata whole, in front of the first tensor's bytes.
Hash128 hash_gguf(const GgufFile& file) {
  uint64_t data_begin = file.map.bytes().size();
  for (const auto& [name, tensor] : file.header.tensors) data_begin = std::min(data_begin, tensor.begin);
  Hash128 hash = hash128(file.map.bytes().first(data_begin));
  for (const auto& [name, tensor] : file.header.tensors)
    hash = hash_tensor(file.map.bytes().subspan(tensor.begin, tensor.end - tensor.begin), hash);
  return hash;
}

}  // namespace

Result<Hash128> model_fingerprint(const std::filesystem::path& model_dir) {
  if (is_gguf(model_dir)) {
    LOWKEY_ASSIGN(file, GgufFile::open(model_dir));
    return hash_gguf(file);
  }
  LOWKEY_ASSIGN(config, read_text_file(model_dir / "config.json", 1 << 20));
  LOWKEY_ASSIGN(reader, SafetensorsReader::open(model_dir));
  Hash128 hash = hash128(config);
  for (size_t file = 0; file < reader.num_files(); ++file)
    hash = hash_file(reader.file(file), reader.header(file), hash);
  return hash;
}

Hash128 held_fingerprint(const Hash128& fingerprint, const ModelConfig& config) {
  Hash128 held = fingerprint;
  if (config.weights != WeightStorage::kAuto) {
    const std::array<WeightStorage, 1> storage{config.weights};
    held = hash128(std::as_bytes(std::span(storage)), held);
  }
  if (config.limited) {
    const std::array<int32_t, 1> positions{config.max_positions};
    held = hash128(std::as_bytes(std::span(positions)), held);
  }
  return held;
}

}  // namespace lowkey::worker
