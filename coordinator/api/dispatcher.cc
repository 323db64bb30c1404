#include "coordinator/api/dispatcher.h"

#include <spdlog/spdlog.h>

#include <random>
#include <utility>

#include "coordinator/api/explainer.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/served_model.h"
#include "coordinator/membership/membership.h"
#include "coordinator/routing/router.h"

namespace lowkey::coordinator {

using transport::MessageType;

namespace {

std::string hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

}  // namespace

uint64_t random_bits() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

bool Dispatcher::place(Generation& generation, int excluded, const std::string& cause) {
  const std::vector<int32_t> tokens = generation.tokens();
  const std::string salt = generation.salt();
  RoutingRequest request{.tokens = tokens,
                         .total_tokens = generation.prompt().size() + generation.max_tokens,
                         .salt = salt,
                         .min_levels = generation.call->request.min_levels,
                         .excluded = excluded};
  const std::string body = generation.submit().SerializeAsString();
  for (size_t attempt = 0; attempt <= membership_.replicas().size(); ++attempt) {
    RoutingDecision decision = router_.choose(request);
    if (decision.replica < 0) return false;
    const Replica& replica = *membership_.find(decision.replica);
    if (const Status sent = replica.leader->send(MessageType::kSubmit, body); !sent.ok()) {
      spdlog::warn("request {} could not be sent to replica {}: {}", generation.id, replica.id,
                   sent.error().message);
      request.excluded = replica.id;
      continue;
    }
    generation.replica = replica.id;
    generation.submitted = Clock::now();
    membership_.note_submitted(replica.id);
    router_.note_submitted(generation.id, decision);
    if (!generation.answer) open_answer(generation, replica);
    generation.story->place(std::move(decision), cause, generation.emitted.size());
    return true;
  }
  return false;
}

std::shared_ptr<Reply> Dispatcher::new_reply(const Generation& generation, const Replica& replica) const {
  const Call& call = *generation.call;
  const auto& peer = replica.leader->peer();
  AnswerIdentity identity{
      .endpoint = call.endpoint,
      .id = (call.endpoint == Endpoint::kChat ? "chatcmpl-" : "cmpl-") + hex(id_prefix_) + hex(generation.id),
      .created = std::chrono::duration_cast<std::chrono::seconds>(
                     std::chrono::system_clock::now().time_since_epoch())
                     .count(),
      .model = model_.id,
      // Changes when answers may: weights or cache format.
      .system_fingerprint = "fp_" + hex(peer.model_fingerprint.lo ^ peer.layout_fingerprint.lo).substr(4)};
  return std::make_shared<Reply>(call.exchange, std::move(identity), call.request, elsewhere_);
}

void Dispatcher::open_answer(Generation& generation, const Replica& replica) {
  Call& call = *generation.call;
  if (!call.reply) call.reply = new_reply(generation, replica);
  const AnswerIdentity& identity = call.reply->identity();
  auto story = std::make_shared<RequestStory>();
  // The first choice is the request to whoever asks; the others are told apart by their numbers.
  story->id = generation.index == 0 ? identity.id : fmt::format("{}-{}", identity.id, generation.index);
  story->tenant = call.tenant;
  story->created = identity.created;
  story->received = call.received;
  story->prompt_tokens = generation.prompt().size();
  explainer_.remember(generation.story = std::move(story));
  generation.answer = std::make_unique<Answer>(call.reply, generation.index, call.request, *model_.tokenizer);
  if (!generation.first_of_prompt())
    generation.answer->set_prompt_details(call.prompt_details[generation.index / call.request.n]);
}

void Dispatcher::note_started(const Generation& generation) {
  router_.note_started(generation.id);
}

void Dispatcher::cancel(const Generation& generation) const {
  const Replica* replica = membership_.find(generation.replica);
  if (!replica || !replica->leader) return;
  wire::Cancel message;
  message.set_request_id(generation.wire_id());
  const Status sent = replica->leader->send(MessageType::kCancel, message.SerializeAsString());
  if (!sent.ok()) spdlog::warn("cancel of request {}: {}", generation.id, sent.error().message);
}

void Dispatcher::release(Generation& generation) {
  router_.note_started(generation.id);
  membership_.note_ended(std::exchange(generation.replica, -1));
}

}  // namespace lowkey::coordinator
