#include "kvstore/service/page_landing.h"

#include <cstring>
#include <memory>

#include "base/hash128.h"

namespace lowkey::kvstore {
namespace {

// What goes to a device once all pages of a batch are checked.
struct Landing {
  std::vector<kernels::PageCopies::Piece> pieces;
  std::vector<std::unique_ptr<std::byte[]>> decoded;  // pages of another format, as they are kept
};

// Slab by slab, so that the copy reads what the checksum has just brought into cache.
bool check_and_copy(const FetchedPage& page, bool copy) {
  for (size_t i = 0; i < page.fetched.size(); ++i) {
    if (page.fetched[i].empty()) continue;
    if (slab_checksum(page.fetched[i]) != page.checksums[i]) return false;
    if (copy && page.target[i].data() != page.fetched[i].data())
      std::memcpy(page.target[i].data(), page.fetched[i].data(), page.fetched[i].size());
  }
  return true;
}

void decode(const FetchedPage& page, PageTranscoder& transcoder, Landing* landing) {
  PageTranscoder::Slabs host;
  for (size_t i = 0; i < host.size(); ++i) {
    const size_t bytes = page.target[i].size();
    if (bytes == 0) continue;
    landing->decoded.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
    host[i] = {landing->decoded.back().get(), bytes};
    landing->pieces.push_back({page.target[i].data(), host[i].data(), bytes});
  }
  transcoder.restore(page.fetched, host);
}

bool land_one(const FetchedPage& page, const SpillFormat& format, Landing* landing) {
  PageTranscoder* const transcoder = format.transcoder.get();
  if (!check_and_copy(page, !transcoder && !format.device)) return false;
  if (!format.device) {
    if (transcoder) transcoder->restore(page.fetched, page.target);
    return true;
  }
  if (transcoder) {
    decode(page, *transcoder, landing);
    return true;
  }
  for (size_t i = 0; i < page.fetched.size(); ++i) {
    // An upload only reads the host's side.
    auto* from = const_cast<std::byte*>(page.fetched[i].data());
    if (!page.fetched[i].empty())
      landing->pieces.push_back({page.target[i].data(), from, page.fetched[i].size()});
  }
  return true;
}

}  // namespace

std::vector<bool> land(std::span<const FetchedPage> pages, const SpillFormat& format,
                       const std::function<bool(bool last_good)>& go_on) {
  std::vector<bool> good;
  Landing landing;
  for (const FetchedPage& page : pages) {
    if (!go_on(good.empty() || good.back())) break;
    good.push_back(land_one(page, format, &landing));
  }
  if (!landing.pieces.empty() && !format.device->upload(landing.pieces)) good.assign(good.size(), false);
  return good;
}

}  // namespace lowkey::kvstore
