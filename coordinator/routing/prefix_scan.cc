#include "coordinator/routing/prefix_scan.h"

#include "coordinator/routing/pages_under_way.h"
#include "coordinator/routing/router_index.h"
#include "kvstore/page/page_identity.h"

namespace lowkey::coordinator {
namespace {

// Where a replica's run of pages goes on: on its device, in stores, or nowhere.
struct Walk {
  enum class On { kDevice, kStore, kNothing };
  const PageSet* device = nullptr;
  const PagesUnderWay::Counts* under_way = nullptr;
  On on = On::kDevice;
  PrefixRun run;

  // Goes on with a page on its device.
  bool take(const Hash128& page) {
    if (on != On::kDevice) return false;
    const bool there = device && device->contains(page);
    if (!there && !(under_way && under_way->contains(page))) return false;
    ++run.device;
    run.under_way += there ? 0 : 1;
    return true;
  }
};

// Notes which stores have the page. False: none.
bool in_store(const RouterIndex& index, const CacheKey& key, const Hash128& page,
              std::map<int, uint32_t>& in_stores) {
  const Hash128 slice = kvstore::rank_identity(page, 0, static_cast<int>(key.num_ranks));
  bool found = false;
  for (const auto& [rank, pages] : index.stores()) {
    if (!pages->contains(slice)) continue;
    ++in_stores[rank];
    found = true;
  }
  return found;
}

}  // namespace

PrefixScan scan_prefix(const RouterIndex& index, const PagesUnderWay& under_way, const CacheKey& key,
                       std::span<const int> replicas, std::string_view salt,
                       std::span<const int32_t> tokens) {
  PrefixScan scan;
  scan.runs.resize(replicas.size());
  if (key.page_tokens == 0 || tokens.empty()) return scan;
  std::vector<Walk> walks(replicas.size());
  for (size_t i = 0; i < replicas.size(); ++i)
    walks[i] = {.device = index.pages({Holder::Kind::kDevice, replicas[i]}),
                .under_way = under_way.of(replicas[i])};

  const size_t pages = (tokens.size() - 1) / key.page_tokens;
  Hash128 page = kvstore::root_identity(key.model_fingerprint, key.layout_fingerprint, salt);
  size_t going = walks.size();
  for (size_t i = 0; i < pages && going > 0; ++i) {
    page = kvstore::chain_hash(page, tokens.subspan(i * key.page_tokens, key.page_tokens));
    int stored = -1;  // not looked up yet
    for (Walk& walk : walks) {
      if (walk.on == Walk::On::kNothing || walk.take(page)) continue;
      if (stored < 0) stored = in_store(index, key, page, scan.in_stores) ? 1 : 0;
      walk.on = stored ? Walk::On::kStore : Walk::On::kNothing;
      if (stored)
        ++walk.run.store;
      else
        --going;
    }
  }
  for (size_t i = 0; i < walks.size(); ++i) scan.runs[i] = walks[i].run;
  return scan;
}

std::vector<Hash128> pages_to_find(const CacheKey& key, std::string_view salt,
                                   std::span<const int32_t> tokens) {
  if (key.page_tokens == 0 || tokens.empty()) return {};
  std::vector<Hash128> pages((tokens.size() - 1) / key.page_tokens);
  Hash128 page = kvstore::root_identity(key.model_fingerprint, key.layout_fingerprint, salt);
  for (size_t i = 0; i < pages.size(); ++i)
    page = pages[i] = kvstore::chain_hash(page, tokens.subspan(i * key.page_tokens, key.page_tokens));
  return pages;
}

}  // namespace lowkey::coordinator
