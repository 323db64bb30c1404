// The body of Backend::compact, one stored vector at a time; vectors may be done in any order, at once.
#pragma once

#include <functional>
#include <span>

#include "kernels/ops/backend.h"
#include "kernels/page/page_codec.h"

namespace lowkey::kernels {

// encode_vector() or a faster version with the same bytes as a result.
using VectorEncoder = std::function<void(const PageLayout&, const VectorLayout&,
                                         std::span<const std::byte* const> head_rows, PageView)>;

// Vector `index` of this side of compaction.to: gathers its heads' kept rows, encodes them page by page, and
// writes what is left to those heads' rows of the tail. Host memory only.
void compact_vector(const Compaction& compaction, Side side, int index, const VectorEncoder& encode);

}  // namespace lowkey::kernels
