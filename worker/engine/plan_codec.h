// Identities, pages and slabs as they travel in plans and commands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/hash128.h"
#include "base/result.h"
#include "kvstore/page/page_pool.h"

namespace lowkey::wire {
class PlacedPage;
}

namespace lowkey::worker {

std::string identity_bytes(const Hash128& identity);            // 16 bytes
Result<Hash128> identity_from_bytes(const std::string& bytes);  // kInternal unless 16 bytes

wire::PlacedPage place_page(const kvstore::PageRef& page, const Hash128& identity, uint64_t first_token,
                            uint64_t tokens_hash);

Error bad_plan(const std::string& what);

// Where slabs lie on this rank; null for those that are not there, or not meant. Errors: a bad plan.
Status slab_addresses(const kvstore::PageMemory& memory, std::span<const uint32_t> ids, std::byte** out);

}  // namespace lowkey::worker
