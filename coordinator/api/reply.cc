#include "coordinator/api/reply.h"

#include <algorithm>
#include <memory>

namespace lowkey::coordinator {

namespace {

// Log-probabilities that are written on the I/O thread: about a microsecond each.
constexpr size_t kMostInline = 4096;

size_t logprobs_in(const std::vector<ChoiceText>& choices) {
  size_t count = 0;
  for (const ChoiceText& choice : choices)
    if (choice.details)
      for (const TokenDetail& detail : *choice.details) count += 1 + detail.top.size();
  return count;
}

}  // namespace

Reply::Reply(ExchangePtr exchange, AnswerIdentity identity, const GenerationRequest& request,
             Elsewhere elsewhere)
    : exchange_(std::move(exchange)),
      identity_(std::move(identity)),
      elsewhere_(std::move(elsewhere)),
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
  if (!stream_) return respond();
  if (include_usage_) events += usage_event(identity_, usage_);
  exchange_->write(events + done_event());
  exchange_->finish();
}

void Reply::respond() {
  const bool here = !elsewhere_ || logprobs_in(choices_) <= kMostInline;
  const auto choices = std::make_shared<const std::vector<ChoiceText>>(std::move(choices_));
  const auto make = [choices, identity = identity_, usage = usage_, cache = cache_] {
    HttpResponse response{.body = whole_answer(identity, *choices, usage, cache)};
    response.headers.emplace_back("x-request-id", identity.id);
    return response;
  };
  const auto done = [exchange = exchange_](HttpResponse response) { exchange->respond(std::move(response)); };
  if (here || !elsewhere_(make, done)) done(make());
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
