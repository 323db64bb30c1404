// One answer on its way: tokens in, text out. Detokenizes, cuts at stop strings, collects logprobs, and
// writes the OpenAI objects onto the exchange, whole at the end or as server-sent events. I/O thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/api/answer_json.h"
#include "coordinator/api/api_error.h"
#include "coordinator/http/exchange.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_matcher.h"

namespace lowkey::wire {
class TokenEvent;
}

namespace lowkey::coordinator {

class Tokenizer;

class Answer {
 public:
  enum class State {
    kOpen,
    kFinished,  // the engine said so
    kStopped,   // a stop string was found: the engine is still running
    kFailed,    // the engine reported an error; not answered yet: see error()
  };

  // `request.prompt` is set. The tokenizer outlives this.
  Answer(ExchangePtr exchange, AnswerIdentity identity, const GenerationRequest& request,
         const Tokenizer& tokenizer);

  State add(const wire::TokenEvent& event);
  // The rest comes from another replica, which knows the tokens so far.
  void move();
  // Ends it: a response with the error's status, or, when the stream has begun, an error event and the
  // connection's end.
  void fail(const ApiError& error);

  bool started() const { return started_; }  // a token has arrived
  const Usage& usage() const { return usage_; }
  const std::string& id() const { return identity_.id; }
  Finish finish() const { return finish_; }
  const std::optional<Error>& error() const { return error_; }

 private:
  void add_token(int32_t id, const wire::TokenEvent& event, int index);
  void take(StopMatcher::Output output);
  void end(Finish finish);
  void note_cache(const wire::TokenEvent& event);
  void begin_stream();
  void write_text();  // what has come since the last event

  ExchangePtr exchange_;
  AnswerIdentity identity_;
  const Tokenizer& tokenizer_;
  bool stream_, include_usage_, logprobs_;
  uint32_t top_logprobs_;
  StreamDetokenizer detokenizer_;
  StopMatcher stop_matcher_;
  Usage usage_;
  CacheUse cache_;
  CacheUse cache_before_;             // of the replicas that it came from before
  std::string text_;                  // not written yet
  std::vector<TokenDetail> details_;  // not written yet
  uint64_t characters_ = 0;           // of all text so far, withheld text included
  bool started_ = false;
  bool stream_begun_ = false;
  Finish finish_ = Finish::kNone;
  std::optional<Error> error_;
};

}  // namespace lowkey::coordinator
