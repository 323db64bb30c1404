// What goes back to the client of one request: the answers of all its choices, whole when the last of them
// has ended, or as one stream of server-sent events. I/O thread only.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "coordinator/api/answer_json.h"
#include "coordinator/api/api_error.h"
#include "coordinator/http/exchange.h"

namespace lowkey::coordinator {

class Reply {
 public:
  // Runs `make` on another thread, and `done` with what it made on this one. False: not now, neither is
  // called.
  using Elsewhere =
      std::function<bool(std::function<HttpResponse()> make, std::function<void(HttpResponse)> done)>;

  // `request.prompts` is set. A whole answer with very many log-probabilities is written `elsewhere`, where
  // that is given: nobody's tokens, and no peer, should wait for it.
  Reply(ExchangePtr exchange, AnswerIdentity identity, const GenerationRequest& request,
        Elsewhere elsewhere = {});

  const AnswerIdentity& identity() const { return identity_; }
  bool streams() const { return stream_; }
  bool include_usage() const { return include_usage_; }

  void begin_stream();              // once; a chat's choice begins with begin_choice()
  void begin_choice(size_t index);  // of a stream
  void write(const std::string& events);
  // Of a stream `choice` holds what is not written yet.
  void end_choice(ChoiceText choice, const Usage& usage, const CacheUse& cache);
  // Ends all: a response with the error's status, or, when the stream has begun, an error event and the
  // connection's end.
  void fail(const ApiError& error);

 private:
  void add(size_t index, const Usage& usage, const CacheUse& cache);
  void respond();

  ExchangePtr exchange_;
  AnswerIdentity identity_;
  Elsewhere elsewhere_;
  bool stream_, include_usage_;
  size_t n_;
  std::vector<ChoiceText> choices_;
  std::vector<bool> begun_;  // of the choices of a stream
  size_t open_;
  bool stream_begun_ = false;
  Usage usage_;
  CacheUse cache_;
};

}  // namespace lowkey::coordinator
