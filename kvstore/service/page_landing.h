// The end of pages' way from a store: into place, if their bytes are what the headers say.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kvstore/service/spill_format.h"

namespace lowkey::kvstore {

// One fetched page.
struct FetchedPage {
  std::array<uint64_t, kernels::kMaxSlabs> checksums{};
  PageTranscoder::ConstSlabs fetched;  // empty: not fetched
  PageTranscoder::Slabs target;  // empty: not wanted; without a transcoder of the same sizes, or the same
};

// Checks the slabs of page after page and writes the targets where they are not what was fetched into; on a
// device in one batch, which has ended on return. Element i: page i is in place; shorter than `pages` when
// `go_on(good)`, asked before every further page with what became of the last one, said no.
std::vector<bool> land(std::span<const FetchedPage> pages, const SpillFormat& format,
                       const std::function<bool(bool last_good)>& go_on);

}  // namespace lowkey::kvstore
