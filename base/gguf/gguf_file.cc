#include "base/gguf/gguf_file.h"

#include <array>
#include <fstream>
#include <string_view>

namespace lowkey {
namespace {

constexpr std::string_view kExtension = ".gguf", kMagic = "GGUF";

}  // namespace

bool is_gguf(const std::filesystem::path& model) {
  std::error_code ec;
  if (!std::filesystem::is_regular_file(model, ec)) return false;
  if (model.extension() == kExtension) return true;
  std::array<char, kMagic.size()> start{};
  std::ifstream file(model, std::ios::binary);
  return file.read(start.data(), start.size()) && std::string_view(start.data(), start.size()) == kMagic;
}

std::string model_name(const std::filesystem::path& model) {
  std::error_code ec;
  std::filesystem::path path = std::filesystem::absolute(model, ec).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // "folder/"
  const bool file = path.extension() == kExtension && std::filesystem::is_regular_file(path, ec);
  return (file ? path.stem() : path.filename()).string();
}

Result<GgufFile> GgufFile::open(const std::filesystem::path& path) {
  LOWKEY_ASSIGN(map, MappedFile::open(path));
  LOWKEY_ASSIGN(header, parse_gguf_header(map.bytes(), path.string()));
  if (const int64_t parts = header.integer("split.count").value_or(1); parts > 1)
    return Error{
        Code::kBadInput,
        fmt::format("{}: 'split.count': expected one whole file (llama-gguf-split --merge makes it), "
                    "found one of {}",
                    path.string(), parts)};
  return GgufFile{std::move(map), std::move(header)};
}

}  // namespace lowkey
