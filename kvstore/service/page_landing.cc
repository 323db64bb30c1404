#include "kvstore/service/page_landing.h"

#include <cstring>

#include "base/hash128.h"

namespace lowkey::kvstore {

// Slab by slab, so that the copy reads what the checksum has just brought into cache.
bool land(const FetchedPage& page, PageTranscoder* transcoder) {
  for (size_t i = 0; i < page.fetched.size(); ++i) {
    if (page.fetched[i].empty()) continue;
    if (slab_checksum(page.fetched[i]) != page.checksums[i]) return false;
    if (!transcoder && page.target[i].data() != page.fetched[i].data())
      std::memcpy(page.target[i].data(), page.fetched[i].data(), page.fetched[i].size());
  }
  if (transcoder) transcoder->restore(page.fetched, page.target);
  return true;
}

}  // namespace lowkey::kvstore
