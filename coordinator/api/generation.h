// What the coordinator knows of requests while it answers them. Private to coordinator/api.
#pragma once

#include <cstdint>
#include <map>
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

// One HTTP request. Its choices are generations of their own.
struct Call {
  TimePoint received = Clock::now();
  ExchangePtr exchange;
  Endpoint endpoint;
  std::string tenant;
  GenerationRequest request;
  uint64_t seed = 0;             // of its draws, where the request brings none
  std::shared_ptr<Reply> reply;  // once something of it is submitted
  std::vector<uint64_t> open;    // its generations that have not ended
  // By prompt: what its first choice was told of its tokens, once that has begun.
  std::map<size_t, std::vector<TokenDetail>> prompt_details;

  Call(ExchangePtr client, Endpoint kind, std::string who)
      : exchange(std::move(client)), endpoint(kind), tenant(std::move(who)) {}
};

// One choice. The first one of a prompt computes it; the others wait for that, and find its pages in the
// cache.
struct Generation {
  // Of a request's number on the wire: its low bits count how often it was submitted, so that what a replica
  // still says about an earlier time is not taken for the answer.
  static constexpr int kAttemptBits = 2;

  uint64_t id = 0;
  std::shared_ptr<Call> call;
  size_t index = 0;  // of the choice in the reply
  Admission::Ticket ticket;
  uint64_t max_tokens = 0;
  std::unique_ptr<Answer> answer;  // once submitted
  std::vector<uint64_t> waiting;   // generations that begin with its first token
  std::shared_ptr<RequestStory> story;
  std::vector<int32_t> emitted;  // tokens of the answer so far
  int replica = -1;              // that answers it now
  uint32_t attempt = 0;
  bool refused = false;      // by a replica that was full
  bool resubmitted = false;  // after it was lost before its first token
  bool continued = false;    // after that
  TimePoint submitted{};
  TimePoint last_token{};

  Generation(std::shared_ptr<Call> of, Admission::Ticket place)
      : call(std::move(of)), ticket(std::move(place)) {}

  // Sets max_tokens, where prompt and answer may have `limit` tokens together; an error when they do not fit.
  std::optional<ApiError> fit(uint64_t limit);
  const std::vector<int32_t>& prompt() const { return call->request.prompts[index / call->request.n]; }
  uint64_t wire_id() const { return id << kAttemptBits | attempt; }
  bool started() const { return answer && answer->started(); }
  bool first_of_prompt() const { return index % call->request.n == 0; }
  std::vector<int32_t> tokens() const;  // prompt and answer so far
  std::string salt() const;
  wire::Submit submit() const;
};

}  // namespace lowkey::coordinator
