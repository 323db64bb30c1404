// A GGUF file, mapped, with its header.
#pragma once

#include <filesystem>
#include <string>

#include "base/gguf/gguf_header.h"
#include "base/safetensors/mapped_file.h"

namespace lowkey {

// A file that begins as GGUF files do, or is called *.gguf; behind a link, too, whatever its target is
// called.
bool is_gguf(const std::filesystem::path& model);
// What a model is called: its folder, or its file without ".gguf", as the path names them: links are not
// followed.
std::string model_name(const std::filesystem::path& model);

struct GgufFile {
  // Errors: as MappedFile::open() and parse_gguf_header(); kBadInput for one of several parts of a model.
  static Result<GgufFile> open(const std::filesystem::path& path);

  MappedFile map;
  GgufHeader header;
};

}  // namespace lowkey
