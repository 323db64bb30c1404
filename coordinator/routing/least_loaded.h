// Which replica gets a request.
#pragma once

#include <cstdint>
#include <map>

namespace lowkey::coordinator {

struct Replica;

// The replica that can serve, takes `tokens` (prompt + answer) and has the fewest requests of ours in flight;
// of equals the one least loaded by its own last report, then the next one after `last`. -1: none.
// `excluded`: a replica that has just failed this request; -1: none.
int least_loaded(const std::map<int, Replica>& replicas, uint64_t tokens, int last, int excluded = -1);

}  // namespace lowkey::coordinator
