#include "base/gguf/gguf_file.h"

namespace lowkey {

bool is_gguf(const std::filesystem::path& model) {
  std::error_code ec;
  return model.extension() == ".gguf" && std::filesystem::is_regular_file(model, ec);
}

Result<GgufFile> GgufFile::open(const std::filesystem::path& path) {
  LOWKEY_ASSIGN(map, MappedFile::open(path));
  LOWKEY_ASSIGN(header, parse_gguf_header(map.bytes(), path.string()));
  return GgufFile{std::move(map), std::move(header)};
}

}  // namespace lowkey
