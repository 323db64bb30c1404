// The end of a page's way from a store: into place, if its bytes are what the header says.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kvstore/service/page_transcoder.h"

namespace lowkey::kvstore {

// One fetched page.
struct FetchedPage {
  std::array<uint64_t, kernels::kMaxSlabs> checksums{};
  PageTranscoder::ConstSlabs fetched;  // empty: not fetched
  PageTranscoder::Slabs target;  // empty: not wanted; without a transcoder of the same sizes, or the same
};

// Checks the slabs and writes the target where it is not what was fetched into. False when a checksum does
// not match.
bool land(const FetchedPage& page, PageTranscoder* transcoder);

}  // namespace lowkey::kvstore
