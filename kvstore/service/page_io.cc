#include "kvstore/service/page_io.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace lowkey::kvstore {

SpillOutcome& SpillOutcome::operator+=(const SpillOutcome& other) {
  stored += other.stored;
  already_present += other.already_present;
  store_full += other.store_full;
  staging_full += other.staging_full;
  failed += other.failed;
  if (reason.empty()) reason = other.reason;
  return *this;
}

Result<kernels::PageHeader> parse_page_header(std::string_view bytes) {
  kernels::PageHeader header;
  if (bytes.size() != sizeof(header)) {
    return Error{Code::kInvalidArgument,
                 fmt::format("page header of {} bytes, expected {}", bytes.size(), sizeof(header))};
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.version != kernels::kPageFormatVersion) {
    return Error{Code::kDataLoss, fmt::format("page format version {}, expected {}", header.version,
                                              kernels::kPageFormatVersion)};
  }
  if (const uint64_t sum = header.compute_checksum(); sum != header.header_checksum) {
    return Error{Code::kDataLoss,
                 fmt::format("page header checksum {:016x}, computed {:016x}", header.header_checksum, sum)};
  }
  if (header.levels_present >> kernels::kMaxLevels != 0 || header.has_sink > 1) {
    return Error{Code::kDataLoss, fmt::format("page header with levels {:#x}, sink {}", header.levels_present,
                                              header.has_sink)};
  }
  return header;
}

std::string_view page_header_bytes(const kernels::PageHeader& header) {
  return {reinterpret_cast<const char*>(&header), sizeof(header)};
}

Result<Hash128> parse_hash128(std::string_view bytes) {
  Hash128 hash;
  if (bytes.size() != sizeof(hash)) {
    return Error{Code::kInvalidArgument,
                 fmt::format("identity of {} bytes, expected {}", bytes.size(), sizeof(hash))};
  }
  std::memcpy(&hash, bytes.data(), sizeof(hash));
  return hash;
}

std::string hash128_bytes(const Hash128& hash) {
  return std::string(reinterpret_cast<const char*>(&hash), sizeof(hash));
}

int num_slabs(const kernels::PageHeader& header) {
  return std::popcount(header.levels_present) + (header.has_sink ? 1 : 0);
}

Status check_page(const kernels::PageHeader& header, const PageRead& wanted, const PageOrigin& origin) {
  const auto differs = [](const char* what, const auto& found, const auto& expected) {
    return Error{Code::kDataLoss, fmt::format("page of {} {}, expected {}", what, found, expected)};
  };
  if (header.identity != wanted.identity) {
    return differs("identity", header.identity.hex(), wanted.identity.hex());
  }
  if (header.model_fingerprint != origin.model_fingerprint) {
    return differs("model", header.model_fingerprint.hex(), origin.model_fingerprint.hex());
  }
  if (header.layout_fingerprint != origin.layout_fingerprint) {
    return differs("layout", header.layout_fingerprint.hex(), origin.layout_fingerprint.hex());
  }
  if (header.rank != origin.rank || header.num_ranks != origin.num_ranks) {
    return differs("rank", fmt::format("{}/{}", header.rank, header.num_ranks),
                   fmt::format("{}/{}", origin.rank, origin.num_ranks));
  }
  const int slabs = static_cast<int>(std::ranges::count_if(wanted.slabs, [](auto& s) { return !s.empty(); }));
  if (num_slabs(header) != slabs) return differs("slab count", num_slabs(header), slabs);
  if (header.read_at_least_level != 0) return differs("read level", int{header.read_at_least_level}, 0);
  return {};
}

}  // namespace lowkey::kvstore
