#include "kvstore/tier/disk/segment_file.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

namespace lowkey::kvstore {

namespace fs = std::filesystem;

bool read_fully(int fd, std::span<std::byte> into, uint64_t offset) {
  while (!into.empty()) {
    const ssize_t n = ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    into = into.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return true;
}

bool write_fully(int fd, std::span<iovec> parts, uint64_t offset) {
  while (!parts.empty()) {
    ssize_t n = ::pwritev(fd, parts.data(), static_cast<int>(parts.size()), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    offset += static_cast<uint64_t>(n);
    for (; !parts.empty() && n >= static_cast<ssize_t>(parts[0].iov_len); parts = parts.subspan(1)) {
      n -= static_cast<ssize_t>(parts[0].iov_len);
    }
    if (n > 0) {
      parts[0].iov_base = static_cast<std::byte*>(parts[0].iov_base) + n;
      parts[0].iov_len -= static_cast<size_t>(n);
    }
  }
  return true;
}

DiskOutcome disk_outcome(int error) {
  return error == ENOSPC || error == EDQUOT || error == EFBIG ? DiskOutcome::kFull : DiskOutcome::kFailed;
}

Result<UniqueFd> try_lock(const fs::path& folder) {
  UniqueFd fd(::open((folder / "lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
  if (!fd) fd = UniqueFd(::open((folder / "lock").c_str(), O_RDONLY | O_CLOEXEC));  // a read-only disk
  if (!fd) {
    return Error{Code::kUsage,
                 fmt::format("--disk: cannot open {}/lock: {}", folder.string(), std::strerror(errno)),
                 "disk"};
  }
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return UniqueFd();
  return fd;
}

// An iterator's own ++ throws.
std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    entries.push_back(at->path());
  }
  return entries;
}

uint64_t file_bytes(const fs::path& path) {
  std::error_code error;
  const uint64_t bytes = fs::file_size(path, error);
  return error ? 0 : bytes;
}

std::optional<uint64_t> segment_number(const std::string& name) {
  constexpr std::string_view kPrefix = "segment-";
  if (!name.starts_with(kPrefix) || name.size() != kPrefix.size() + 16) return std::nullopt;
  uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), number, 16);
  return error == std::errc() && end == name.data() + name.size() ? std::optional(number) : std::nullopt;
}

}  // namespace lowkey::kvstore
