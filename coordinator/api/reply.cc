#include "coordinator/api/reply.h"

#include <algorithm>

namespace lowkey::coordinator {

Reply::Reply(ExchangePtr exchange, AnswerIdentity identity, const GenerationRequest& request)
    : exchange_(std::move(exchange)),
      identity_(std::move(identity)),
      stream_(request.stream),
      include_usage_(request.include_usage),
      n_(request.n),
      choices_(request.choices()),
      begun_(request.choices()),
      open_(request.choices()) {}

void Reply::begin_stream() {
  if (stream_begun_) return;
  stream_begun_ = true;
  HttpResponse head{.content_type = "text/event-stream; charset=utf-8"};
  head.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}, {"x-request-id", identity_.id}};
  exchange_->start_stream(std::move(head));
}

void Reply::begin_choice(size_t index) {
  begin_stream();
  if (begun_[index]) return;
  begun_[index] = true;
  if (identity_.endpoint == Endpoint::kChat) exchange_->write(role_event(identity_, index, include_usage_));
}

void Reply::write(const std::string& events) {
  exchange_->write(events);
}

// The prompt counts once, however many choices go on from it.
void Reply::add(size_t index, const Usage& usage, const CacheUse& cache) {
  usage_.completion_tokens += usage.completion_tokens;
  if (index % n_ == 0) {
    usage_.prompt_tokens += usage.prompt_tokens;
    usage_.cached_tokens += usage.cached_tokens;
    usage_.cached_host += usage.cached_host;
    usage_.cached_disk += usage.cached_disk;
  }
  if (cache.levels == 0) return;
  cache_.lowest_levels_read = cache_.levels == 0
                                  ? cache.lowest_levels_read
                                  : std::min(cache_.lowest_levels_read, cache.lowest_levels_read);
  cache_.levels = cache.levels;
  cache_.coarse_tokens += cache.coarse_tokens;
}

void Reply::end_choice(ChoiceText choice, const Usage& usage, const CacheUse& cache) {
  const size_t index = choice.index;
  add(index, usage, cache);
  std::string events;
  if (stream_) {
    begin_choice(index);
    events = text_event(identity_, choice, include_usage_, &cache);
  } else {
    choices_[index] = std::move(choice);
  }
  if (--open_ > 0) {
    if (stream_) exchange_->write(events);
    return;
  }
  if (!stream_) {
    HttpResponse response{.body = whole_answer(identity_, choices_, usage_, cache_)};
    response.headers.emplace_back("x-request-id", identity_.id);
    exchange_->respond(std::move(response));
    return;
  }
  if (include_usage_) events += usage_event(identity_, usage_);
  exchange_->write(events + done_event());
  exchange_->finish();
}

void Reply::fail(const ApiError& error) {
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
