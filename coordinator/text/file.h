// Reads the text files of a model folder.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/result.h"

namespace lowkey::coordinator {

// The largest tokenizer.json files in use are about 35 MB.
inline constexpr uint64_t kMaxTextFileBytes = 256ull << 20;

// Empty when the file does not exist.
Result<std::optional<std::string>> read_text_file(const std::filesystem::path& path);

}  // namespace lowkey::coordinator
