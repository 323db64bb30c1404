// The beginning of a page's way to a store: what was copied out of the cache becomes what is stored.
#pragma once

#include "kvstore/service/page_io.h"
#include "kvstore/service/spill_format.h"
#include "kvstore/service/transfer_buffers.h"

namespace lowkey::kvstore {

// Whether a page has to go through stage() at all.
bool needs_staging(const PageWrite& page, const SpillFormat& format);

enum class Staged { kReady, kNoMemory, kUnfit };

// Leaves the levels that are spilled, transcodes them into one of `buffers` where there is a transcoder, and
// completes the header with their checksums. kUnfit: a page without all its levels cannot be
// transcoded, and one that did not arrive from its device cannot be read.
Staged stage(PageWrite& page, const SpillFormat& format, TransferBuffers& buffers);

}  // namespace lowkey::kvstore
