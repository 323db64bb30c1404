#include "kvstore/dials/heads/head_map.h"

#include <spdlog/fmt/fmt.h>

namespace lowkey::kvstore {

Result<HeadMap> make_head_map(int join, int num_kv_heads, int rank, int num_ranks) {
  if (num_kv_heads % num_ranks != 0)
    return Error{Code::kUsage,
                 fmt::format("{} ranks must divide the model's {} KV heads", num_ranks, num_kv_heads), "tp"};
  const int local = num_kv_heads / num_ranks;
  const int joined = join == 0 ? local : join;
  if (local % joined != 0)
    return Error{
        Code::kUsage,
        fmt::format("heads: join: expected a divisor of the {} KV heads of a rank, found {} (a stored vector "
                    "cannot span ranks)",
                    local, joined),
        "recipe"};
  return HeadMap{.join = joined, .num_heads = local, .first_vector = rank * local / joined};
}

}  // namespace lowkey::kvstore
