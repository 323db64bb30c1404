#include "worker/engine/plan_codec.h"

#include <cstring>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {

std::string identity_bytes(const Hash128& identity) {
  return std::string(reinterpret_cast<const char*>(&identity), sizeof(identity));
}

Result<Hash128> identity_from_bytes(const std::string& bytes) {
  Hash128 identity;
  if (bytes.size() != sizeof(identity)) {
    return Error{
        Code::kInternal, fmt::format("page identity: expected 16 bytes, found {}", bytes.size()), {}};
  }
  std::memcpy(&identity, bytes.data(), sizeof(identity));
  return identity;
}

wire::PlacedPage place_page(const kvstore::PageRef& page, const Hash128& identity, uint64_t first_token,
                            uint64_t tokens_hash) {
  wire::PlacedPage placed;
  for (const kvstore::SlabId slab : page.slabs()) placed.add_slabs(slab);
  placed.set_identity(identity_bytes(identity));
  placed.set_first_token(static_cast<uint32_t>(first_token));
  placed.set_tokens_hash(tokens_hash);
  return placed;
}

Error bad_plan(const std::string& what) {
  return Error{Code::kInternal, "step plan: " + what, {}};
}

Status slab_addresses(const kvstore::PageMemory& memory, std::span<const uint32_t> ids, std::byte** out) {
  for (int slab = 0; slab < static_cast<int>(ids.size()); ++slab) {
    const bool there = ids[slab] != kvstore::kNoSlab;
    if (there && ids[slab] >= memory.slabs(slab).max_slabs())
      return bad_plan("a slab beyond this rank's memory");
    out[slab] = there ? memory.slab_address(slab, ids[slab]) : nullptr;
  }
  return {};
}

}  // namespace lowkey::worker
