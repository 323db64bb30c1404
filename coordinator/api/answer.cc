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

}  // namespace

Answer::Answer(ExchangePtr exchange, AnswerIdentity identity, const GenerationRequest& request,
               const Tokenizer& tokenizer)
    : exchange_(std::move(exchange)),
      identity_(std::move(identity)),
      tokenizer_(tokenizer),
      stream_(request.stream),
      include_usage_(request.include_usage),
      logprobs_(request.logprobs),
      top_logprobs_(request.top_logprobs),
      // A completion goes on from its prompt; a chat answer is a text of its own.
      detokenizer_(tokenizer, true,
                   request.endpoint == Endpoint::kChat ? TextStart::kBeginning : TextStart::kAfterPrompt),
      stop_matcher_(make_matcher(request.stop)) {
  usage_.prompt_tokens = request.prompt.size();
}

Answer::State Answer::add(const wire::TokenEvent& event) {
  if (event.finish() == wire::FINISH_ERROR || event.finish() == wire::FINISH_CANCELLED) {
    error_ = engine_error(event);
    return State::kFailed;
  }
  note_cache(event);
  started_ = started_ || event.tokens_size() > 0;
  for (int i = 0; i < event.tokens_size() && finish_ == Finish::kNone; ++i)
    add_token(event.tokens(i), event, i);
  if (finish_ == Finish::kStop) {
    end(Finish::kStop);
    return event.finish() == wire::FINISH_NONE ? State::kStopped : State::kFinished;
  }
  if (event.finish() != wire::FINISH_NONE) {
    take(stop_matcher_.push(detokenizer_.flush()));
    text_ += stop_matcher_.flush();
    end(event.finish() == wire::FINISH_LENGTH && finish_ == Finish::kNone ? Finish::kLength : Finish::kStop);
    return State::kFinished;
  }
  // With nothing to show yet (half a character, a possible stop string) logprobs wait for their text.
  if (stream_ && (!text_.empty() || !stream_begun_)) write_text();
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
  // What a lost replica knew of the tokens since its first report is lost with it. Where that one was coarse
  // already, so were they all.
  if (cache_.coarse()) cache_.coarse_tokens = usage_.completion_tokens;
  cache_before_ = cache_;
}

void Answer::add_token(int32_t id, const wire::TokenEvent& event, int index) {
  ++usage_.completion_tokens;
  if (logprobs_ && index < event.logprobs_size()) {
    TokenDetail detail;
    detail.token = {tokenizer_.token_bytes(id), event.logprobs(index).logprob()};
    detail.text_offset = characters_;
    if (index < event.top_logprobs_size()) {
      for (const auto& entry : event.top_logprobs(index).entries()) {
        if (detail.top.size() == top_logprobs_) break;
        detail.top.push_back({tokenizer_.token_bytes(entry.token()), entry.logprob()});
      }
    }
    details_.push_back(std::move(detail));
  }
  const std::string piece = detokenizer_.push(id);
  if (logprobs_) characters_ += count_characters(piece);
  take(stop_matcher_.push(piece));
}

void Answer::take(StopMatcher::Output output) {
  text_ += output.text;
  if (output.stopped) finish_ = Finish::kStop;
}

void Answer::end(Finish finish) {
  finish_ = finish;
  const auto* details = logprobs_ ? &details_ : nullptr;
  if (!stream_) {
    HttpResponse response{.body = whole_answer(identity_, text_, details, finish_, usage_, cache_)};
    response.headers.emplace_back("x-request-id", identity_.id);
    exchange_->respond(std::move(response));
    return;
  }
  begin_stream();
  std::string events = text_event(identity_, text_, details, finish_, include_usage_, &cache_);
  if (include_usage_) events += usage_event(identity_, usage_);
  exchange_->write(events + done_event());
  exchange_->finish();
}

void Answer::begin_stream() {
  if (stream_begun_) return;
  stream_begun_ = true;
  HttpResponse head{.content_type = "text/event-stream; charset=utf-8"};
  head.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}, {"x-request-id", identity_.id}};
  exchange_->start_stream(std::move(head));
  if (identity_.endpoint == Endpoint::kChat) exchange_->write(role_event(identity_, include_usage_));
}

void Answer::write_text() {
  begin_stream();
  if (text_.empty()) return;
  exchange_->write(
      text_event(identity_, text_, logprobs_ ? &details_ : nullptr, Finish::kNone, include_usage_, nullptr));
  text_.clear();
  details_.clear();
}

void Answer::fail(const ApiError& error) {
  if (!stream_begun_) {
    HttpResponse response = error_http(error);
    response.headers.emplace_back("x-request-id", identity_.id);
    exchange_->respond(std::move(response));
    return;
  }
  exchange_->write(error_event(error_body(error)));
  exchange_->finish(true);
}

}  // namespace lowkey::coordinator
