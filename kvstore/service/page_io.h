// Pages on their way to and from a store, and what may be believed of them. Plain data.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash128.h"
#include "base/result.h"
#include "kernels/ops/page_copies.h"
#include "kernels/page/page_header.h"

namespace lowkey::kvstore {

// A complete page of this rank. The bytes stay as they are until `keep_alive` is let go, which may be after
// the outcome was reported: a transfer that was given up can still be reading them.
struct PageWrite {
  kernels::PageHeader header;
  std::array<std::span<const std::byte>, kernels::kMaxSlabs> slabs;  // levels, then the sink; empty: none
  std::shared_ptr<void> keep_alive;
  bool checksummed = true;  // false: the header lacks its checksums, and spill() makes them off this thread
  // Not null: the bytes are on their way from a device; to be waited for off this thread. Not checksummed
  // then.
  std::shared_ptr<kernels::CopyTicket> arriving;
};

// Memory of a page to be filled from a store; of a device, where the pages are there (SpillFormat::device).
// Written only between restore() and its `done`, and to be believed only where that says so. A slab that is
// not wanted is empty: some levels of a page can be fetched, and others later.
struct PageRead {
  Hash128 identity;  // rank slice mixed in
  std::array<std::span<std::byte>, kernels::kMaxSlabs> slabs;
  uint64_t tokens_hash = 0;  // PageHeader::tokens_hash, which must be this
};

struct RestoreOptions {
  bool gaps = false;  // goes on behind a page that cannot be had; otherwise it ends there
};

enum class PageSource : uint8_t {  // as in wire::RestoreResult
  kNone = 0,                       // not in place
  kHost = 1,
  kDisk = 2,
};

// What became of one restore.
struct RestoreReport {
  std::vector<PageSource> sources;  // one per page asked for
  size_t restored = 0;              // the leading run that is in place
  uint64_t bytes = 0;               // of the pages in place, as they travelled
  double seconds = 0;               // from the lookup to the last byte in place
  bool lossy = false;               // came back through a spill format that rounds: coarse at all levels
  std::string reason;               // why the first page that is not in place is not; empty: all are
};

// The pages of one spill(), by what became of them.
struct SpillOutcome {
  size_t stored = 0;
  size_t already_present = 0;
  size_t store_full = 0;
  size_t staging_full = 0;  // too much in flight: not even asked
  size_t failed = 0;
  std::vector<Hash128> held;    // identities of those stored and already_present, as they were handed over
  uint64_t prepared_bytes = 0;  // of slabs as they were handed over, checksummed or transcoded by spill()
  double prepare_seconds = 0;   // that it took, one core
  std::string reason;           // of the failures; may be empty

  SpillOutcome& operator+=(const SpillOutcome& other);
};

// Whose pages a reader accepts.
struct PageOrigin {
  Hash128 model_fingerprint;
  Hash128 layout_fingerprint;
  uint16_t rank = 0;
  uint16_t num_ranks = 1;
  uint8_t num_levels = 1;  // of the layout: what the page's ancestors must have been read at
};

// One message names at most this many pages (a prompt of 131072 tokens in pages of 32).
inline constexpr int kMaxPagesPerMessage = 4096;

// The 128 bytes of a header as they travel. Refuses another size (kInvalidArgument), another format version
// or a checksum that does not match (kDataLoss).
Result<kernels::PageHeader> parse_page_header(std::string_view bytes);
std::string_view page_header_bytes(const kernels::PageHeader& header);

Result<Hash128> parse_hash128(std::string_view bytes);  // 16 bytes, as stored by hash128_bytes()
std::string hash128_bytes(const Hash128& hash);

// Number of slabs that the header speaks of: its levels and the sink.
int num_slabs(const kernels::PageHeader& header);

// Bit i: slab i is wanted.
uint32_t wanted_slabs(const PageRead& page);

// Whether a page found in a store is the one wanted; which of its slabs are there, and of which size, is the
// reader's to check. kDataLoss with what differs.
Status check_page(const kernels::PageHeader& header, const PageRead& wanted, const PageOrigin& origin);

}  // namespace lowkey::kvstore
