#include "base/safetensors/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/unique_fd.h"

namespace lowkey {

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const auto bad = [&](const char* what) {
    return Error{Code::kBadInput, fmt::format("{}: {}: {}", path.string(), what, std::strerror(errno))};
  };
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return bad("expected a readable file");
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return bad("cannot be examined");
  if (!S_ISREG(info.st_mode))
    return Error{Code::kBadInput, fmt::format("{}: expected a file, found something else", path.string())};
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0)
    return Error{Code::kBadInput, fmt::format("{}: expected data, found 0 bytes", path.string())};
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return bad("cannot be mapped");
  // No read-around: it would pull in other ranks' rows of a weight file.
  ::madvise(data, size, MADV_RANDOM);
  return MappedFile({static_cast<const std::byte*>(data), size});
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace lowkey
