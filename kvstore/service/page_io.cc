#include "kvstore/service/page_io.h"

#include <bit>
#include <cstring>

namespace lowkey::kvstore {

SpillOutcome& SpillOutcome::operator+=(const SpillOutcome& other) {
  stored += other.stored;
  already_present += other.already_present;
  store_full += other.store_full;
  staging_full += other.staging_full;
  failed += other.failed;
  held.insert(held.end(), other.held.begin(), other.held.end());
  prepared_bytes += other.prepared_bytes;
  prepare_seconds += other.prepare_seconds;
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

uint32_t wanted_slabs(const PageRead& page) {
  uint32_t mask = 0;
  for (size_t i = 0; i < page.slabs.size(); ++i) mask |= uint32_t{!page.slabs[i].empty()} << i;
  return mask;
}

Status check_page(const kernels::PageHeader& header, const PageRead& wanted, const PageOrigin& origin) {
  const auto differs = [](const char* what, const auto& found, const auto& expected) {
    return Error{Code::kDataLoss, fmt::format("page of {} {}, expected {}", what, found, expected)};
  };
  if (header.identity != wanted.identity)
    return differs("identity", header.identity.hex(), wanted.identity.hex());
  if (header.tokens_hash != wanted.tokens_hash) {
    return differs("tokens", fmt::format("{:016x}", header.tokens_hash),
                   fmt::format("{:016x}", wanted.tokens_hash));
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
  if (const int highest = origin.num_levels - 1; header.read_at_least_level != highest) {
    return differs("read level", int{header.read_at_least_level}, highest);
  }
  return {};
}

}  // namespace lowkey::kvstore
