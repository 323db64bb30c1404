#include "kernels/page/page_header.h"

#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace lowkey::kernels {

uint64_t PageHeader::compute_checksum() const {
  PageHeader copy;
  std::memcpy(static_cast<void*>(&copy), this,
              sizeof(copy));  // padding included, if a compiler ever adds any
  copy.header_checksum = 0;
  return XXH3_64bits(&copy, sizeof(copy));
}

}  // namespace lowkey::kernels
