// What became of a request, from its routing to its end, for GET /v1/kv/explain. Private to coordinator/api:
// it holds wire messages.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "coordinator/routing/router.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {

// It was sent to a replica: once, again when that one was lost, at most three times.
struct Placement {
  // Of the candidates these are kept, the quickest first.
  static constexpr size_t kMaxCandidates = 16;

  std::string cause;          // empty: the first one; otherwise why it had to move
  uint64_t after_tokens = 0;  // of the answer, that the client had already
  double after_seconds = 0;   // since the request was received
  RoutingDecision decision;
  size_t candidates_left_out = 0;
};

struct RequestStory {
  std::string id;      // the answer's
  std::string tenant;  // whose it is: nobody else is told
  int64_t created = 0;
  TimePoint received{};
  uint64_t prompt_tokens = 0;
  uint64_t answer_tokens = 0;
  double first_token_seconds = -1;  // since received; below 0: none yet
  std::vector<Placement> placements;
  std::optional<wire::KvReport> report;  // the latest
  std::string ended;                     // finish reason, or the error; empty: not yet
  bool failed = false;

  void place(RoutingDecision decision, std::string cause, uint64_t emitted);
};

}  // namespace lowkey::coordinator
