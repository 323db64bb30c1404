#include "coordinator/api/answer.h"

#include <algorithm>

#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

StopMatcher make_matcher(const std::vector<std::string>& stops) {
  auto matcher = StopMatcher::create(stops);
  LOWKEY_CHECK(matcher.ok(), "stop strings were checked when the request was read");
  return std::move(matcher).value();
}

Error engine_error(const wire::TokenEvent& event) {
  if (event.finish() == wire::FINISH_CANCELLED)
    return Error{Code::kUnavailable, "The request was cancelled by the replica."};
  const bool known = event.error_code() <= static_cast<uint32_t>(Code::kInternal);
  return Error{known ? static_cast<Code>(event.error_code()) : Code::kInternal,
               event.error().empty() ? "The replica failed." : event.error()};
}

// A completion goes on from its prompt; a chat answer is a text of its own, and so is a prompt of token ids
// with its answer.
TextStart start_of(const GenerationRequest& request, const std::string* sent) {
  const bool own = request.endpoint == Endpoint::kChat ? !request.chat.continue_final_message
                                                       : request.echo && sent == nullptr;
  return own ? TextStart::kBeginning : TextStart::kAfterPrompt;
}

const std::string* text_of(const GenerationRequest& request, size_t prompt) {
  const bool sent = prompt < request.texts.size() && !request.texts[prompt].empty();
  return sent ? &request.texts[prompt] : nullptr;
}

}  // namespace

Answer::Answer(std::shared_ptr<Reply> reply, size_t index, const GenerationRequest& request,
               const Tokenizer& tokenizer)
    : reply_(std::move(reply)),
      index_(index),
      request_(request),
      prompt_(request.prompts[index / request.n]),
      sent_(text_of(request, index / request.n)),
      tokenizer_(tokenizer),
      detokenizer_(tokenizer, request.skip_special_tokens, start_of(request, sent_)),
      stop_matcher_(make_matcher(request.stop)),
      echoed_(!request.echo) {
  usage_.prompt_tokens = prompt_.size();
}

Answer::State Answer::add(const wire::TokenEvent& event) {
  if (event.finish() == wire::FINISH_ERROR || event.finish() == wire::FINISH_CANCELLED) {
    error_ = engine_error(event);
    return State::kFailed;
  }
  note_cache(event);
  add_prompt_details(event);
  const bool finishes = event.finish() != wire::FINISH_NONE;
  if (event.tokens_size() == 0 && !finishes) return State::kOpen;
  started_ = started_ || event.tokens_size() > 0;
  echo();
  for (int i = 0; i < event.tokens_size() && finish_ == Finish::kNone; ++i)
    add_token(event.tokens(i), event, i);
  if (finish_ == Finish::kStop) {
    end(Finish::kStop);
    return finishes ? State::kFinished : State::kStopped;
  }
  if (finishes) {
    take(stop_matcher_.push(detokenizer_.flush()));
    text_ += stop_matcher_.flush();
    const bool length = event.finish() == wire::FINISH_LENGTH || request_.max_tokens == 0u;
    end(length && finish_ == Finish::kNone ? Finish::kLength : Finish::kStop);
    return State::kFinished;
  }
  // With nothing to show yet (half a character, a possible stop string) logprobs wait for their text.
  if (reply_->streams() && (!text_.empty() || !written_)) write_text();
  return State::kOpen;
}

void Answer::note_cache(const wire::TokenEvent& event) {
  if (!started_) {
    usage_.cached_tokens = std::min<uint64_t>(event.cached_tokens(), usage_.prompt_tokens);
    const uint64_t stored = std::min<uint64_t>(event.cached_tokens_store(), usage_.cached_tokens);
    usage_.cached_disk = std::min<uint64_t>(event.cached_tokens_disk(), stored);
    usage_.cached_host = stored - usage_.cached_disk;
  }
  if (!event.has_kv() || event.kv().levels() == 0) return;
  const auto& kv = event.kv();
  cache_ = {.levels = kv.levels(),
            .lowest_levels_read = kv.lowest_levels_read() == 0 ? kv.levels() : kv.lowest_levels_read(),
            .coarse_tokens = kv.coarse_tokens() + cache_before_.coarse_tokens};
  if (cache_before_.levels > 0)
    cache_.lowest_levels_read = std::min(cache_.lowest_levels_read, cache_before_.lowest_levels_read);
}

void Answer::move() {
  // The other one tells anew what this one was asked for: other choices have it from the first of their
  // prompt.
  if (!started_ && index_ % request_.n == 0) prompt_details_.clear();
  // What a lost replica knew of the tokens since its first report is lost with it. Where that one was coarse
  // already, so were they all.
  if (cache_.coarse()) cache_.coarse_tokens = usage_.completion_tokens;
  cache_before_ = cache_;
}

TokenDetail Answer::detail(int32_t id, const wire::TokenLogprob& logprob,
                           const wire::TopLogprobs* top) const {
  TokenDetail detail;
  detail.token = {tokenizer_.token_bytes(id), logprob.logprob()};
  if (top == nullptr) return detail;
  for (const auto& entry : top->entries()) {
    if (detail.top.size() == request_.top_logprobs) break;
    detail.top.push_back({tokenizer_.token_bytes(entry.token()), entry.logprob()});
  }
  return detail;
}

void Answer::add_prompt_details(const wire::TokenEvent& event) {
  for (int i = 0; i < event.prompt_logprobs_size(); ++i) {
    const auto* top = i < event.prompt_top_logprobs_size() ? &event.prompt_top_logprobs(i) : nullptr;
    prompt_details_.push_back(detail(event.prompt_logprobs(i).token(), event.prompt_logprobs(i), top));
  }
}

// The prompt before the first token of the answer: as it was sent, or as its tokens read.
void Answer::echo() {
  if (std::exchange(echoed_, true)) return;
  if (sent_ != nullptr) {
    if (request_.logprobs) echo_details();
    characters_ = count_characters(*sent_);
    text_ += *sent_;
    return;
  }
  for (size_t i = 0; i < prompt_.size(); ++i) {
    if (request_.logprobs) add_prompt_token(i, characters_);
    const std::string piece = detokenizer_.push(prompt_[i]);
    if (request_.logprobs) characters_ += count_characters(piece);
    text_ += piece;
  }
}

// Where the tokens of a text lie in it: what they read as, one behind the other, without those that the
// tokenizer has put there.
void Answer::echo_details() {
  StreamDetokenizer pieces(tokenizer_, false);
  size_t at = 0, offset = 0;
  for (size_t i = 0; i < prompt_.size(); ++i) {
    add_prompt_token(i, offset);
    const std::string piece = pieces.push(prompt_[i]);
    if (tokenizer_.is_special(prompt_[i]) && sent_->compare(at, piece.size(), piece) != 0) continue;
    const std::string_view read = std::string_view(*sent_).substr(at, piece.size());
    offset += count_characters(read);
    at += read.size();
  }
}

void Answer::add_prompt_token(size_t i, uint64_t text_offset) {
  const bool scored = i > 0 && i <= prompt_details_.size();
  TokenDetail of = scored ? prompt_details_[i - 1] : TokenDetail{};
  if (!scored) of.token.bytes = tokenizer_.token_bytes(prompt_[i]);
  of.scored = scored;
  of.text_offset = text_offset;
  details_.push_back(std::move(of));
}

void Answer::add_token(int32_t id, const wire::TokenEvent& event, int index) {
  if (request_.max_tokens == 0u) return;  // the prompt alone was wanted
  ++usage_.completion_tokens;
  if (request_.logprobs && index < event.logprobs_size()) {
    const auto* top = index < event.top_logprobs_size() ? &event.top_logprobs(index) : nullptr;
    details_.push_back(detail(id, event.logprobs(index), top));
    details_.back().text_offset = characters_;
  }
  // What ended the answer is no part of its text, unless that is wanted.
  const bool ends = event.finish() == wire::FINISH_STOP && index + 1 == event.tokens_size();
  const std::string piece = ends && !request_.include_stop ? std::string() : detokenizer_.push(id);
  if (request_.logprobs) characters_ += count_characters(piece);
  // Stop strings do not begin before min_tokens either.
  if (usage_.completion_tokens <= request_.min_tokens) {
    text_ += piece;
  } else {
    take(stop_matcher_.push(piece));
  }
}

void Answer::take(StopMatcher::Output output) {
  text_ += output.text;
  if (!output.stopped) return;
  if (request_.include_stop) text_ += request_.stop[output.which];
  finish_ = Finish::kStop;
}

ChoiceText Answer::take_text(Finish finish) {
  ChoiceText choice{.index = index_, .text = std::exchange(text_, {}), .details = {}, .finish = finish};
  if (request_.logprobs) choice.details = std::exchange(details_, {});
  return choice;
}

void Answer::end(Finish finish) {
  finish_ = finish;
  reply_->end_choice(take_text(finish), usage_, cache_);
}

void Answer::write_text() {
  written_ = true;
  reply_->begin_choice(index_);
  if (text_.empty()) return;
  reply_->write(text_event(reply_->identity(), take_text(Finish::kNone), reply_->include_usage(), nullptr));
}

}  // namespace lowkey::coordinator
