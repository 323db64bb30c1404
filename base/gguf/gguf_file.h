// A GGUF file, mapped, with its header.
#pragma once

#include <filesystem>

#include "base/gguf/gguf_header.h"
#include "base/safetensors/mapped_file.h"

namespace lowkey {

bool is_gguf(const std::filesystem::path& model);  // a file, not a folder

struct GgufFile {
  // Errors: as MappedFile::open() and parse_gguf_header().
  static Result<GgufFile> open(const std::filesystem::path& path);

  MappedFile map;
  GgufHeader header;
};

}  // namespace lowkey
