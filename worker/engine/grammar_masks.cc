#include "worker/engine/grammar_masks.h"

#include <algorithm>

#include "base/grammar/json_schema.h"
#include "base/log.h"

namespace lowkey::worker {

using monitoring::Metric;

// A compiled schema, shared by answers.
struct GrammarMasks::Kept {
  std::string schema;
  grammar::TokenGrammar grammar;
  bool broken = false;  // an exception may have left it in pieces
};

class GrammarMasks::Answer {
 public:
  std::string schema;
  // Under the mutex of GrammarMasks.
  std::vector<int32_t> tokens;  // not followed yet
  bool queued = false;
  bool awaited = false;           // allowed() has come too early
  std::optional<Allowed> result;  // behind all tokens

  // Of the thread.
  std::shared_ptr<Kept> kept;
  grammar::TokenGrammar::Cursor cursor;
};

GrammarMasks::GrammarMasks(ReadTokenTexts read_texts, std::function<void()> on_ready,
                           monitoring::Metrics& metrics)
    : read_texts_(std::move(read_texts)), on_ready_(std::move(on_ready)), metrics_(metrics) {
  if (available()) thread_ = std::thread([this] { work(); });
}

GrammarMasks::~GrammarMasks() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  arrived_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<GrammarMasks::Answer> GrammarMasks::begin(std::string schema,
                                                          std::span<const int32_t> emitted) {
  auto answer = std::make_shared<Answer>();
  answer->schema = std::move(schema);
  answer->tokens.assign(emitted.begin(), emitted.end());
  enqueue(answer);
  return answer;
}

void GrammarMasks::push(const std::shared_ptr<Answer>& answer, int32_t token) {
  {
    std::lock_guard lock(mutex_);
    answer->tokens.push_back(token);
    answer->result.reset();
  }
  enqueue(answer);
}

void GrammarMasks::enqueue(const std::shared_ptr<Answer>& answer) {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(answer->queued, true)) return;
    queue_.push_back(answer);
  }
  arrived_.notify_one();
}

std::optional<GrammarMasks::Allowed> GrammarMasks::allowed(const std::shared_ptr<Answer>& answer,
                                                           Deadline deadline) {
  std::unique_lock lock(mutex_);
  ready_.wait_until(lock, deadline.at(), [&] { return answer->result.has_value(); });
  answer->awaited = !answer->result.has_value();
  return answer->result;
}

void GrammarMasks::work() {
  for (;;) {
    std::shared_ptr<Answer> answer;
    {
      std::unique_lock lock(mutex_);
      arrived_.wait(lock, [&] { return stopped_ || !queue_.empty(); });
      if (stopped_) return;
      answer = queue_.front().lock();
      queue_.pop_front();
    }
    if (answer) serve(answer);
  }
}

void GrammarMasks::serve(const std::shared_ptr<Answer>& answer) {
  std::vector<int32_t> tokens;
  {
    std::lock_guard lock(mutex_);
    tokens.swap(answer->tokens);
    answer->queued = false;
  }
  Allowed result = try_compute(*answer, tokens);
  bool awaited = false;
  {
    std::lock_guard lock(mutex_);
    if (!answer->tokens.empty()) return;  // it is queued again
    answer->result.emplace(std::move(result));
    awaited = std::exchange(answer->awaited, false);
  }
  ready_.notify_all();
  if (awaited) on_ready_();
}

// Exceptions end here: no answer, whatever its schema, ends the process.
GrammarMasks::Allowed GrammarMasks::try_compute(Answer& answer, std::span<const int32_t> tokens) {
  std::string why;
  try {
    return compute(answer, tokens);
  } catch (const std::exception& e) {
    why = e.what();
  }
  spdlog::error("the grammar of a request: {}", why);
  if (answer.kept) {
    answer.kept->broken = true;
    std::erase(kept_, answer.kept);
  }
  return Error{Code::kInternal, "the tokens that the schema allows could not be computed: " + why, {}};
}

GrammarMasks::Allowed GrammarMasks::compute(Answer& answer, std::span<const int32_t> tokens) {
  if (!answer.kept) {
    LOWKEY_TRY(read_vocabulary());
    LOWKEY_ASSIGN(kept, grammar_of(answer.schema));
    answer.kept = std::move(kept);
    answer.cursor = answer.kept->grammar.start();
  }
  if (answer.kept->broken)
    return Error{Code::kInternal, "the tokens that the schema allows could not be computed", {}};
  grammar::TokenGrammar& grammar = answer.kept->grammar;
  for (const int32_t token : tokens) {
    const bool known = token >= 0 && static_cast<size_t>(token) < texts_.size();
    if (!known || !grammar.advance(answer.cursor, texts_[token]))
      return Error{Code::kInternal, fmt::format("token {} does not fit the schema", token), {}};
  }
  const TimePoint begin = Clock::now();
  bool computed = false;
  auto allowed = grammar.allowed(answer.cursor, &computed);
  if (computed) metrics_.observe(Metric::kGrammarMaskSeconds, seconds(Clock::now() - begin));
  metrics_.add(Metric::kGrammarMasks, 1, {{"source", computed ? "computed" : "cached"}});
  if (allowed == nullptr)
    return Error{Code::kInvalidArgument, "the schema is too ambiguous for this model's vocabulary",
                 "response_format"};
  return allowed;
}

Status GrammarMasks::read_vocabulary() {
  if (trie_) return {};
  const TimePoint begin = Clock::now();
  LOWKEY_ASSIGN(texts, read_texts_());
  texts_ = std::move(texts);
  trie_ = std::make_shared<const grammar::TokenTrie>(texts_);
  spdlog::info("texts of {} tokens read for grammars in {:.2f} s", texts_.size(),
               seconds(Clock::now() - begin));
  return {};
}

Result<std::shared_ptr<GrammarMasks::Kept>> GrammarMasks::grammar_of(const std::string& schema) {
  const auto same = [&](const auto& kept) { return kept->schema == schema; };
  if (const auto found = std::ranges::find_if(kept_, same); found != kept_.end()) {
    kept_.splice(kept_.begin(), kept_, found);
    return kept_.front();
  }
  LOWKEY_ASSIGN(automaton, grammar::compile_json_schema(schema));
  kept_.push_front(std::make_shared<Kept>(Kept{schema, grammar::TokenGrammar(std::move(automaton), trie_)}));
  if (kept_.size() > kMaxKept) kept_.pop_back();
  return kept_.front();
}

}  // namespace lowkey::worker
