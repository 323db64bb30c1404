// What makes two pages the same page: the tokens up to its end, the model, the layout, the salt, and the rank
// slice.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/hash128.h"

namespace lowkey::kvstore {

// The parent of a sequence's first page. `salt` separates users that must not share pages; empty: shared by
// all.
Hash128 root_identity(const Hash128& model_fingerprint, const Hash128& layout_fingerprint,
                      std::string_view salt);

// H(parent || tokens): the identity of the page with these tokens after the prefix `parent`.
Hash128 chain_hash(const Hash128& parent, std::span<const int32_t> tokens);

// XXH64 of a page's own tokens: a page from a store, whose tokens are not there to be compared, is accepted
// by its identity and by this, which has another algorithm and no parent.
uint64_t tokens_hash(std::span<const int32_t> tokens);

// The key of one rank's slice of a page in a store: ranks, and replicas of another TP degree, never share
// bytes.
Hash128 rank_identity(const Hash128& identity, int rank, int num_ranks);

}  // namespace lowkey::kvstore
