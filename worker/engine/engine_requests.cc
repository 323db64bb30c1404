// What other threads ask of an engine: requests in, cancels, restores' answers, and how it is doing.
#include <algorithm>
#include <numeric>

#include "base/bytes.h"
#include "kvstore/page/page_identity.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

namespace {

Error invalid(const char* param, const std::string& message) {
  return Error{Code::kInvalidArgument, message, param};
}

}  // namespace

Status Engine::submit(const wire::Submit& request) {
  LOWKEY_ASSIGN(sequence, admit(request));
  {
    std::lock_guard lock(inbox_->mutex);
    const EngineState& state = inbox_->state;
    if (state.broken) return Error{Code::kUnavailable, "the replica has lost a step and is going down", {}};
    if (state.draining) return Error{Code::kUnavailable, "the replica is draining", {}};
    if (inbox_->submitted.size() + state.waiting >= options_.max_waiting) {
      return Error{Code::kResourceExhausted,
                   fmt::format("the engine's queue of {} requests is full", options_.max_waiting),
                   {}};
    }
    if (!inbox_->live.insert(request.request_id()).second) {
      return invalid("request_id", fmt::format("request {} is running already", request.request_id()));
    }
    sequence->id = inbox_->next_sequence_id++;
    inbox_->submitted.push_back(std::move(sequence));
  }
  inbox_->arrived.notify_one();
  return {};
}

Result<std::unique_ptr<Sequence>> Engine::admit(const wire::Submit& request) {
  auto sequence = std::make_unique<Sequence>();
  LOWKEY_ASSIGN(sampling, SamplingParams::from_wire(request.sampling(), model_.config().vocab_size));
  sequence->request_id = request.request_id();
  sequence->tokens.assign(request.prompt().begin(), request.prompt().end());
  sequence->prompt_tokens = request.prompt_size();
  sequence->tokens.insert(sequence->tokens.end(), request.emitted().begin(), request.emitted().end());
  sequence->emitted_before = request.emitted_size();
  sequence->sampling = std::move(sampling);
  sequence->priority = request.priority();
  // A stream that goes on has told them already.
  if (sequence->emitted_before > 0) sequence->sampling.prompt_logprobs = false;
  const int levels = memory_.layout().num_levels;
  const int wanted = static_cast<int>(std::min<uint32_t>(request.min_levels(), levels + 1));
  sequence->min_levels = std::clamp(std::max(wanted, options_.min_levels), 1, levels);
  sequence->exact_only = wanted > levels;
  const ModelConfig& config = model_.config();
  if (request.prompt().empty()) return invalid("prompt", "prompt: expected at least one token, found none");
  for (size_t i = 0; i < sequence->tokens.size(); ++i) {
    const int32_t token = sequence->tokens[i];
    if (token >= 0 && token < config.vocab_size) continue;
    const char* param = i < static_cast<size_t>(sequence->prompt_tokens) ? "prompt" : "emitted";
    return invalid(param,
                   fmt::format("{}: expected token ids below {}, found {}", param, config.vocab_size, token));
  }
  if (sequence->sampling.has_penalties()) {
    sequence->counts.add_prompt(std::span(sequence->tokens).first(sequence->prompt_tokens));
    for (const int32_t token : request.emitted()) sequence->counts.add(token);
  }
  if (sequence->emitted_before > 0 && sequence->emitted_before >= sequence->sampling.max_tokens) {
    return invalid("emitted", fmt::format("emitted: expected fewer than max_tokens {}, found {}",
                                          sequence->sampling.max_tokens, sequence->emitted_before));
  }
  const uint64_t total = uint64_t(request.prompt_size()) + sequence->sampling.max_tokens;
  if (total > static_cast<uint64_t>(config.max_positions)) {
    return invalid("max_tokens",
                   fmt::format("the model's context is {} tokens; the prompt has {} and max_tokens is {}",
                               config.max_positions, request.prompt_size(), sequence->sampling.max_tokens));
  }
  if (!fits(request.prompt_size(), sequence->sampling.max_tokens)) {
    return invalid(
        "max_tokens",
        fmt::format("{} tokens (prompt {} + max_tokens {}) need {} of KV cache; the whole of {} "
                    "holds at most {} tokens",
                    total, request.prompt_size(), sequence->sampling.max_tokens,
                    format_bytes(memory_.peak_bytes(request.prompt_size(), sequence->sampling.max_tokens)),
                    format_bytes(memory_.capacity_bytes()), memory_.max_sequence_tokens()));
  }
  sequence->window = config.widest_window();
  sequence->page_tokens = memory_.layout().page_tokens;
  if (const std::string& schema = sequence->sampling.json_schema; !schema.empty()) {
    if (!grammars_.available()) return invalid("response_format", "this replica has no grammars");
    sequence->grammar = grammars_.begin(
        schema, std::span(sequence->tokens).subspan(static_cast<size_t>(sequence->prompt_tokens)));
  }
  const ExecutorOptions& identity = options_.executor;
  sequence->root =
      kvstore::root_identity(identity.model_fingerprint, identity.layout_fingerprint, request.salt());
  return sequence;
}

// Under a window a sequence never holds more than what is inside it, and what a step completes.
bool Engine::fits(uint64_t prompt, uint64_t generated) const {
  const int window = model_.config().widest_window(), page_tokens = memory_.layout().page_tokens;
  if (window == 0) return memory_.fits(prompt, generated);
  const size_t most = pages_of_window(window, options_.scheduler.step_tokens, page_tokens) * page_tokens;
  return memory_.fits(std::min<uint64_t>(prompt + generated, most), 0);
}

void Engine::cancel(uint64_t request_id) {
  {
    std::lock_guard lock(inbox_->mutex);
    if (!inbox_->live.contains(request_id)) return;
    inbox_->cancelled.push_back(request_id);
  }
  inbox_->arrived.notify_one();
}

void Engine::cancel_all() {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->cancelled.assign(inbox_->live.begin(), inbox_->live.end());
  }
  inbox_->arrived.notify_one();
}

void Engine::drain() {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->state.draining = true;
    inbox_->woken = true;
  }
  inbox_->arrived.notify_one();
}

void Engine::on_restore_result(int rank, const wire::RestoreResult& result) {
  inbox_->answer(rank, result);
}

void Engine::resync_prefixes() {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->resync = true;
  }
  inbox_->arrived.notify_one();
}

EngineState Engine::state() const {
  std::lock_guard lock(inbox_->mutex);
  EngineState state = inbox_->state;
  state.waiting += static_cast<uint32_t>(inbox_->submitted.size());
  for (const auto& sequence : inbox_->submitted) state.queued_prompt_tokens += sequence->tokens.size();
  return state;
}

void Engine::describe_cache(wire::CacheIdentity* out) const {
  const kernels::PageLayout& layout = memory_.layout();
  out->set_model_fingerprint(identity_bytes(options_.executor.model_fingerprint));
  out->set_layout_fingerprint(identity_bytes(options_.executor.layout_fingerprint));
  out->set_page_tokens(layout.page_tokens);
  out->set_num_levels(layout.num_levels);
  out->set_num_ranks(num_ranks_);
}

uint64_t Engine::page_bytes(int levels) const {
  const auto& bytes = memory_.layout().slab_bytes;
  return std::accumulate(bytes.begin(), bytes.begin() + levels, uint64_t{0});
}

}  // namespace lowkey::worker
