// Which tokens may come next in answers that have a grammar, computed beside the step: a thread of its own
// compiles schemas, follows the tokens and walks through the vocabulary while the model computes. What is not
// ready when the step samples is told of when it is: the answer waits, and nobody else. Grammars are kept and
// shared by the requests that have the same one.
//
// What is allowed depends on the schema and the answer's tokens alone.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/grammar/token_grammar.h"
#include "base/result.h"
#include "monitoring/metrics.h"

namespace lowkey::worker {

// The bytes that each token adds to a text, by its id; empty for those that an answer with a grammar never
// has.
using TokenTexts = std::vector<std::string>;
using ReadTokenTexts = std::function<Result<TokenTexts>()>;

class GrammarMasks {
 public:
  static constexpr size_t kMaxKept = 16;  // grammars that nobody uses; each holds at most about 60 MB

  // `read_texts` is called on the thread, for the first request that has a grammar. Empty: there are none.
  // `on_ready`, on the thread: what allowed() did not know is known.
  GrammarMasks(ReadTokenTexts read_texts, std::function<void()> on_ready, monitoring::Metrics& metrics);
  ~GrammarMasks();

  bool available() const { return static_cast<bool>(read_texts_); }

  // The grammar of one answer. Made by begin(), used by the step thread, let go of at any time.
  class Answer;
  // Any thread. `emitted`: tokens that the answer has already.
  std::shared_ptr<Answer> begin(std::string schema, std::span<const int32_t> emitted);
  // Step thread: a token was sampled.
  void push(const std::shared_ptr<Answer>& answer, int32_t token);
  // Step thread: what may come next, waited for to the deadline. Nothing: it is not known yet; on_ready will
  // be called. Errors: of the schema, of the vocabulary.
  using Allowed = Result<std::shared_ptr<const grammar::AllowedTokens>>;
  std::optional<Allowed> allowed(const std::shared_ptr<Answer>& answer, Deadline deadline);

 private:
  struct Kept;
  void work();
  void serve(const std::shared_ptr<Answer>& answer);
  Allowed try_compute(Answer& answer, std::span<const int32_t> tokens);
  Allowed compute(Answer& answer, std::span<const int32_t> tokens);
  Status read_vocabulary();
  Result<std::shared_ptr<Kept>> grammar_of(const std::string& schema);
  void enqueue(const std::shared_ptr<Answer>& answer);

  const ReadTokenTexts read_texts_;
  const std::function<void()> on_ready_;
  monitoring::Metrics& metrics_;

  // Of the thread.
  TokenTexts texts_;
  std::shared_ptr<const grammar::TokenTrie> trie_;
  std::list<std::shared_ptr<Kept>> kept_;  // used last first

  std::mutex mutex_;
  std::condition_variable arrived_, ready_;
  std::deque<std::weak_ptr<Answer>> queue_;  // each answer at most once
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace lowkey::worker
