// One choice of a reply on its way: tokens in, text out. Detokenizes, cuts at stop strings, collects
// logprobs, and hands the OpenAI objects to the reply, whole at the end or as server-sent events. I/O thread
// only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/api/answer_json.h"
#include "coordinator/api/reply.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_matcher.h"

namespace lowkey::wire {
class TokenEvent;
class TokenLogprob;
class TopLogprobs;
}  // namespace lowkey::wire

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

  // The tokenizer outlives this, and so does the request.
  Answer(std::shared_ptr<Reply> reply, size_t index, const GenerationRequest& request,
         const Tokenizer& tokenizer);

  State add(const wire::TokenEvent& event);
  // The rest comes from another replica, which knows the tokens so far.
  void move();
  // Log-probabilities of the prompt, for other choices of it.
  const std::vector<TokenDetail>& prompt_details() const { return prompt_details_; }
  void set_prompt_details(std::vector<TokenDetail> details) { prompt_details_ = std::move(details); }

  bool started() const { return started_; }  // a token has arrived
  const Usage& usage() const { return usage_; }
  Finish finish() const { return finish_; }
  const std::optional<Error>& error() const { return error_; }

 private:
  TokenDetail detail(int32_t id, const wire::TokenLogprob& logprob, const wire::TopLogprobs* top) const;
  void add_prompt_details(const wire::TokenEvent& event);
  void echo();
  void echo_details();
  void add_prompt_token(size_t i, uint64_t text_offset);
  void add_token(int32_t id, const wire::TokenEvent& event, int index);
  void take(StopMatcher::Output output);
  void end(Finish finish);
  void note_cache(const wire::TokenEvent& event);
  void write_text();  // what has come since the last event
  ChoiceText take_text(Finish finish);

  std::shared_ptr<Reply> reply_;
  size_t index_;
  const GenerationRequest& request_;
  const std::vector<int32_t>& prompt_;
  const std::string* sent_;  // the prompt, where it was a text that is echoed; else null
  const Tokenizer& tokenizer_;
  StreamDetokenizer detokenizer_;
  StopMatcher stop_matcher_;
  Usage usage_;
  CacheUse cache_;
  CacheUse cache_before_;                    // of the replicas that it came from before
  std::vector<TokenDetail> prompt_details_;  // from the prompt's second token on
  std::string text_;                         // not written yet
  std::vector<TokenDetail> details_;         // not written yet
  uint64_t characters_ = 0;                  // of all text so far, withheld text included
  bool started_ = false;
  bool echoed_ = false;
  bool written_ = false;  // something of its stream
  Finish finish_ = Finish::kNone;
  std::optional<Error> error_;
};

}  // namespace lowkey::coordinator
