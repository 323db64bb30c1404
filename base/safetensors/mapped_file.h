// A whole file mapped read-only; move-only. Truncated by someone else while it is mapped, it raises SIGBUS on
// access.
#pragma once

#include <filesystem>
#include <span>

#include "base/result.h"

namespace lowkey {

class MappedFile {
 public:
  // Errors: kBadInput naming the file, also when it is empty.
  static Result<MappedFile> open(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

}  // namespace lowkey
