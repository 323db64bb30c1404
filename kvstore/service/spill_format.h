// What of a page goes to a store, in which form, and where it lies in between.
#pragma once

#include <memory>

#include "kernels/ops/page_copies.h"
#include "kvstore/service/page_transcoder.h"

namespace lowkey::kvstore {

struct SpillFormat {
  int levels = kernels::kMaxLevels;            // the first so many, at most
  std::shared_ptr<PageTranscoder> transcoder;  // null: as it is. Used by the byte thread alone
  kernels::PageCopies* device = nullptr;       // pages lie on a device, and are written through this
};

}  // namespace lowkey::kvstore
