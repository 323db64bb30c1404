// Files and folders of segments as the system has them: whole reads and writes, locks, names. Errors are
// outcomes.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lowkey::kvstore {

enum class DiskOutcome { kDone, kMiss, kFull, kCorrupt, kFailed };
DiskOutcome disk_outcome(int error);  // of an errno: no space, or something else

bool read_fully(int fd, std::span<std::byte> into, uint64_t offset);
bool write_fully(int fd, std::span<iovec> parts, uint64_t offset);  // `parts` are used up

// The lock on a folder. Empty: somebody else has it; an error where there is nothing to lock.
Result<UniqueFd> try_lock(const std::filesystem::path& folder);

std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder);  // none where it is not
uint64_t file_bytes(const std::filesystem::path& path);                              // 0 where it is not

// Segments are named by number; empty: another file.
std::optional<uint64_t> segment_number(const std::string& file_name);

}  // namespace lowkey::kvstore
