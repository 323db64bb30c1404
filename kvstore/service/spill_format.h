// What of a page goes to a store, and in which form.
#pragma once

#include <memory>

#include "kvstore/service/page_transcoder.h"

namespace lowkey::kvstore {

struct SpillFormat {
  int levels = kernels::kMaxLevels;            // the first so many, at most
  std::shared_ptr<PageTranscoder> transcoder;  // null: as it is. Used by the byte thread alone
};

}  // namespace lowkey::kvstore
