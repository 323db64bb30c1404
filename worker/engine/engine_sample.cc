// The tokens of a step: what decides on each, drawn together, told one by one. An answer whose grammar is not
// ready keeps its logits and waits beside the steps of the others.
#include <algorithm>

#include "base/trace.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/engine.h"

namespace lowkey::worker {

using monitoring::Metric;

namespace {

// Of a step's time, how much longer it may take for grammars that are not ready: what comes a little late
// need not miss a whole step.
constexpr int kGrammarShare = 10;

}  // namespace

// Tokens that end the answer.
std::vector<int32_t> Engine::end_tokens(const Sequence& sequence) const {
  std::vector<int32_t> ends = sequence.sampling.stop_token_ids;
  const std::vector<int32_t>& eos = model_.config().eos_token_ids;
  if (!sequence.sampling.ignore_eos) ends.insert(ends.end(), eos.begin(), eos.end());
  return ends;
}

// Tokens that nothing but their logits decides on: where those lie on a device, they need not come here.
std::vector<kernels::TokenDraw> Engine::plan_draws(const Schedule& schedule) const {
  std::vector<kernels::TokenDraw> draws;
  if (!executor_.can_draw()) return draws;
  int32_t row = 0;
  for (const ScheduledSequence& scheduled : schedule.sequences) {
    const Sequence& sequence = *scheduled.sequence;
    const SamplingParams& sampling = sequence.sampling;
    const bool may_end = sequence.generated() >= sampling.min_tokens || end_tokens(sequence).empty();
    const bool rules = sequence.grammar || sampling.has_penalties() || !sampling.bias.empty() || !may_end;
    const bool tops = sampling.logprobs && sampling.top_logprobs > 0;
    if (scheduled.wants_logits() && !scheduled.all_logits && !rules && !tops) {
      kernels::TokenDraw& draw = draws.emplace_back(draw_of(sampling, sequence.tokens.size()));
      draw.row = row;
      draw.logprob = sampling.logprobs;
    }
    row += static_cast<int32_t>(scheduled.num_logits());
  }
  return draws;
}

void Engine::choose_tokens(const Step& step) {
  if (step.schedule.sequences.empty()) return;
  const TraceSpan span("sample", {"sequences", static_cast<int64_t>(step.schedule.sequences.size())});
  const TimePoint now = Clock::now();
  const Deadline wait(now + (now - step.start) / kGrammarShare);
  choices_.clear();
  draws_.clear();
  size_t row = 0;
  for (const ScheduledSequence& scheduled : step.schedule.sequences) {
    Choice& choice = choices_.emplace_back();
    row += scheduled.num_logits();
    if (!scheduled.wants_logits()) continue;
    if (const kernels::DrawnToken* drawn = executor_.drawn(row - 1)) {
      settle(*scheduled.sequence, *drawn, &choice);
      continue;
    }
    choice = choose(*scheduled.sequence, executor_.logits(row - 1), wait);
    if (!choice.draw) continue;
    choice.draw->row = static_cast<int32_t>(row - 1);
    draws_.push_back(*choice.draw);
  }
  auto drawn = executor_.draw(executor_.logits(), draws_).begin();
  for (size_t i = 0; i < choices_.size(); ++i)
    if (choices_[i].draw) settle(*step.schedule.sequences[i].sequence, *drawn++, &choices_[i]);
}

// Where an answer has a grammar it ends where that lets it, whatever min_tokens says once nothing else can
// come. A token below 0: the answer is complete, and the model has no token that ends it.
Engine::Choice Engine::choose(Sequence& sequence, std::span<float> logits, Deadline wait) {
  const SamplingParams& sampling = sequence.sampling;
  const size_t position = sequence.tokens.size();
  LogitRules rules{.counts = &sequence.counts};
  bool may_end = sequence.generated() >= sampling.min_tokens;
  std::vector<int32_t> ends;  // where they matter
  if (sequence.grammar || !may_end) ends = end_tokens(sequence);
  std::shared_ptr<const grammar::AllowedTokens> allowed;
  if (sequence.grammar) {
    const auto found = grammars_.allowed(sequence.grammar, wait);
    if (!found) return {.waits = true};
    if (!found->ok()) return {.token = found->error()};
    allowed = found->value();
    rules.allowed = &allowed->tokens;
    const bool complete = allowed->tokens.empty();
    if (complete && !allowed->can_end)
      return {.token = Error{Code::kInternal, "the model's vocabulary cannot go on as the schema wants", {}}};
    if (complete && ends.empty()) return {.token = SampledToken{.token = -1}};
    may_end = allowed->can_end && (may_end || complete);
    if (may_end) rules.ends = ends;
  }
  if (!may_end) rules.forbidden = ends;
  const bool has_rules = rules.change(sampling);
  // Log-probabilities are those of the logits before they are changed.
  if (sampling.logprobs && (has_rules || sampling.top_logprobs > 0))
    return {.token = sample(logits, sampling, position, rules)};
  if (has_rules) {
    if (!is_distribution(logits)) return {.token = not_numbers(position)};
    rules.apply(sampling, logits);
  }
  Choice choice{.draw = draw_of(sampling, position), .has_rules = has_rules};
  choice.draw->logprob = sampling.logprobs;
  return choice;
}

void Engine::settle(const Sequence& sequence, const kernels::DrawnToken& drawn, Choice* choice) const {
  const size_t position = sequence.tokens.size();
  if (drawn.token < 0) {
    choice->token = choice->has_rules ? nothing_allowed(position) : not_numbers(position);
  } else {
    choice->token = SampledToken{.token = drawn.token, .logprob = drawn.logprob};
  }
}

void Engine::tell_token(Sequence& sequence, const Result<SampledToken>& sampled, wire::TokenEvents* events) {
  wire::TokenEvent& event = *events->add_events();
  event.set_request_id(sequence.request_id);
  const bool first = !std::exchange(sequence.reported, true);
  if (first) report_first(sequence, &event);
  if (sampled.ok()) {
    append(sequence, *sampled, &event);
  } else {
    event.set_finish(wire::FINISH_ERROR);
    event.set_error(sampled.error().message);
    event.set_error_code(static_cast<uint32_t>(sampled.error().code));
  }
  const bool last = event.finish() != wire::FINISH_NONE;
  if (first || last)
    sequence.report.to_wire(sequence.prompt_tokens, memory_.layout().num_levels, event.mutable_kv());
  if (last) finish(sequence);
}

void Engine::append(Sequence& sequence, const SampledToken& sampled, wire::TokenEvent* event) {
  const SamplingParams& sampling = sequence.sampling;
  const int32_t token = sampled.token;
  if (sampling.max_tokens == 0) return event->set_finish(wire::FINISH_LENGTH);  // the prompt alone was wanted
  if (token < 0) return event->set_finish(wire::FINISH_STOP);
  sequence.tokens.push_back(token);
  if (sampling.has_penalties()) sequence.counts.add(token);
  event->add_tokens(token);
  if (sampling.logprobs) add_logprobs(sampled, event->mutable_logprobs(), event->mutable_top_logprobs());
  metrics_.add(Metric::kGenerationTokens);
  const std::vector<int32_t> ends = end_tokens(sequence);
  if (std::ranges::find(ends, token) != ends.end()) {
    event->set_finish(wire::FINISH_STOP);
  } else if (sequence.generated() >= sampling.max_tokens ||
             static_cast<int>(sequence.tokens.size()) >= model_.config().max_positions) {
    event->set_finish(wire::FINISH_LENGTH);
  } else if (sequence.grammar) {
    grammars_.push(sequence.grammar, token);
  }
}

// Answers whose grammars are ready by now; those that have waited too long end, alone.
void Engine::resume_parked() {
  if (parked_.empty()) return;
  wire::TokenEvents events;
  std::erase_if(parked_, [&](uint64_t id) {
    Sequence* sequence = scheduler_.find(id);
    if (sequence == nullptr || !sequence->parked) return true;
    const Duration waited = Clock::now() - sequence->parked->since;
    Choice choice = choose(*sequence, sequence->parked->logits, Deadline::in({}));
    if (choice.waits && waited < options_.grammar_wait) return false;
    if (choice.waits) {
      choice.token = Error{Code::kDeadlineExceeded,
                           fmt::format("what the schema allows next was not known within {:.1f} s",
                                       seconds(options_.grammar_wait)),
                           {}};
    }
    if (choice.draw)
      settle(*sequence, executor_.draw(sequence->parked->logits, {&*choice.draw, 1})[0], &choice);
    metrics_.observe(Metric::kGrammarWaitSeconds, seconds(waited));
    sequence->parked.reset();
    tell_token(*sequence, *choice.token, &events);
    return true;
  });
  if (events.events_size() > 0) emit(events);
}

}  // namespace lowkey::worker
