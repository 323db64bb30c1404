#include "coordinator/routing/prefix_scan.h"

#include "coordinator/routing/router_index.h"
#include "kvstore/page/page_identity.h"

namespace lowkey::coordinator {
namespace {

// Where a replica's run of pages goes on: on its device, in stores, or nowhere.
struct Walk {
  enum class On { kDevice, kStore, kNothing };
  const PageSet* device = nullptr;
  On on = On::kDevice;
  PrefixRun run;
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

PrefixScan scan_prefix(const RouterIndex& index, const CacheKey& key, std::span<const int> replicas,
                       std::string_view salt, std::span<const int32_t> tokens) {
  PrefixScan scan;
  scan.runs.resize(replicas.size());
  if (key.page_tokens == 0 || tokens.empty()) return scan;
  std::vector<Walk> walks(replicas.size());
  for (size_t i = 0; i < replicas.size(); ++i)
    walks[i].device = index.pages({Holder::Kind::kDevice, replicas[i]});

  const size_t pages = (tokens.size() - 1) / key.page_tokens;
  Hash128 page = kvstore::root_identity(key.model_fingerprint, key.layout_fingerprint, salt);
  size_t going = walks.size();
  for (size_t i = 0; i < pages && going > 0; ++i) {
    page = kvstore::chain_hash(page, tokens.subspan(i * key.page_tokens, key.page_tokens));
    int stored = -1;  // not looked up yet
    for (Walk& walk : walks) {
      if (walk.on == Walk::On::kNothing) continue;
      if (walk.on == Walk::On::kDevice && walk.device && walk.device->contains(page)) {
        ++walk.run.device;
        continue;
      }
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

}  // namespace lowkey::coordinator
