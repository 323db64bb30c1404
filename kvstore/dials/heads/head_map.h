// The dial `heads`: which KV heads of a rank form one stored vector.
#pragma once

#include "base/result.h"

namespace lowkey::kvstore {

// Stored vector v of this rank holds local heads v * join .. v * join + join - 1; it is vector first_vector +
// v of the whole model.
struct HeadMap {
  int join = 1;
  int num_heads = 0;  // local
  int first_vector = 0;
  int num_vectors() const { return num_heads / join; }
};

// `join` as in Recipe (0: all local heads). Errors: kUsage when ranks do not divide the KV heads, or `join`
// does not divide a rank's.
Result<HeadMap> make_head_map(int join, int num_kv_heads, int rank, int num_ranks);

}  // namespace lowkey::kvstore
