// Byte sizes as users write them: "512MiB", "2GiB", "1000000"; and as we print them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lowkey {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

// Accepts a non-negative number, optionally followed by B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB,
// TiB.
Result<uint64_t> parse_bytes(std::string_view text);
std::string format_bytes(uint64_t bytes);  // "512 MiB", "1.5 GiB", "17 B"

}  // namespace lowkey
