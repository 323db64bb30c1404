// What `lowkey inspect` prints of one recipe, resolved for a model.
#pragma once

#include <array>
#include <span>
#include <string>

#include "kvstore/recipe/resolve.h"

namespace lowkey::cli {

// Sequence lengths that tables are about.
inline constexpr std::array<uint64_t, 4> kInspectLengths = {512, 2048, 8192, 32768};

// The five dials in words; bytes per token, bits per element and ratio to plain bf16 with 1, 2, ... levels;
// and what K and V of every layer and head keep. `ranks`: the cache of every rank of a replica. `profile`:
// where the profile came from; empty: there is none. At most 100 columns wide.
std::string describe_recipe(std::span<const kvstore::ResolvedCache> ranks, const std::string& profile);

// Contiguous bytes of one page, layer and side in one level, the smallest there are: what a kernel reads in
// one go.
uint64_t smallest_piece(const kvstore::ResolvedCache& cache);

}  // namespace lowkey::cli
