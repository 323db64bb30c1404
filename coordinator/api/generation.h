// One request while the coordinator answers it. Private to coordinator/api.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "coordinator/admission/admission.h"
#include "coordinator/api/answer.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/generation_request.h"
#include "coordinator/api/request_story.h"
#include "coordinator/http/exchange.h"

namespace lowkey::coordinator {

struct Generation {
  // Of a request's number on the wire: its low bits count how often it was submitted, so that what a replica
  // still says about an earlier time is not taken for the answer.
  static constexpr int kAttemptBits = 2;

  uint64_t id = 0;
  TimePoint received = Clock::now();
  ExchangePtr exchange;
  Admission::Ticket ticket;
  Endpoint endpoint;
  std::string tenant;
  GenerationRequest request;
  uint64_t max_tokens = 0;
  uint64_t seed = 0;               // of its draws, where the request brings none
  std::unique_ptr<Answer> answer;  // once submitted
  std::shared_ptr<RequestStory> story;
  std::vector<int32_t> emitted;  // tokens of the answer so far
  int replica = -1;              // that answers it now
  uint32_t attempt = 0;
  bool resubmitted = false;  // after it was lost before its first token
  bool continued = false;    // after that
  TimePoint submitted{};
  TimePoint last_token{};

  Generation(ExchangePtr client, Admission::Ticket place, Endpoint kind, std::string who)
      : exchange(std::move(client)), ticket(std::move(place)), endpoint(kind), tenant(std::move(who)) {}

  // Sets max_tokens, where prompt and answer may have `limit` tokens together; an error when they do not fit.
  std::optional<ApiError> fit(uint64_t limit);
  uint64_t wire_id() const { return id << kAttemptBits | attempt; }
  bool started() const { return answer && answer->started(); }
  std::vector<int32_t> tokens() const;  // prompt and answer so far
  std::string salt() const;
  wire::Submit submit() const;
};

}  // namespace lowkey::coordinator
