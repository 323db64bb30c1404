#include "coordinator/text/file.h"

#include <fstream>

namespace lowkey::coordinator {

Result<std::optional<std::string>> read_text_file(const std::filesystem::path& path) {
  const auto bad = [&](const std::string& problem) {
    return Error{Code::kBadInput, fmt::format("{}: {}", path.string(), problem), {}};
  };
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::optional<std::string>();
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return bad("expected a readable file: " + error.message());
  if (bytes > kMaxTextFileBytes) {
    return bad(fmt::format("expected at most {} bytes, found {}", kMaxTextFileBytes, bytes));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(bytes, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(bytes))) return bad("cannot be read");
  return std::optional(std::move(text));
}

}  // namespace lowkey::coordinator
