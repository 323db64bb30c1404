// Answers that a JSON schema constrains, from a model that knows nothing of JSON.
#include <gtest/gtest.h>

#include <atomic>
#include <boost/json.hpp>
#include <condition_variable>
#include <mutex>
#include <random>

#include "base/grammar/json_schema.h"
#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

using Tokens = std::vector<int32_t>;

// Token 0 ends; the others are printable ASCII, and a character of two bytes.
TokenTexts texts() {
  TokenTexts texts(CacheReadingModel::kVocab);
  for (int id = 1; id < 96; ++id) texts[id] = std::string(1, static_cast<char>(31 + id));
  texts[96] = "é";
  return texts;
}

std::string text_of(const Tokens& tokens) {
  std::string text;
  for (const int32_t token : tokens) text += texts()[token];
  return text;
}

EngineReplicaOptions options(int ranks = 1) {
  EngineReplicaOptions options = reading_replica(ranks);
  options.engine.token_texts = [] { return texts(); };
  return options;
}

wire::SamplingParams sampling_of(const std::string& schema, uint64_t seed, int max_tokens = 300) {
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_temperature(1);
  sampling.set_seed(seed);
  sampling.set_max_tokens(max_tokens);
  sampling.set_json_schema(schema);
  return sampling;
}

wire::Submit request(uint64_t id, const wire::SamplingParams& sampling, const Tokens& emitted = {}) {
  Tokens prompt;
  for (int i = 0; i < 20; ++i) prompt.push_back(1 + static_cast<int32_t>((id / 100 * 7 + i * 5) % 90));
  return submit_of(id, prompt, sampling, emitted);
}

const std::string kPerson = R"({"type":"object","properties":{"name":{"type":"string","maxLength":8},
    "age":{"type":"integer","minimum":0,"maximum":130},"tags":{"type":"array","items":{"enum":["x","yy"]},"maxItems":3}},
    "required":["name","age"]})";

TEST(GrammarEngine, RandomAnswersSatisfyTheSchema) {
  EngineReplica replica(options(2));
  for (int seed = 0; seed < 40; ++seed)
    ASSERT_TRUE(replica.try_submit(request(1 + seed, sampling_of(kPerson, seed))).ok());
  replica.run();
  std::set<std::string> different;
  for (int seed = 0; seed < 40; ++seed) {
    const Answer& answer = replica.answer(1 + seed);
    ASSERT_EQ(answer.finish, wire::FINISH_STOP) << answer.error;
    EXPECT_EQ(answer.tokens.back(), 0);
    const std::string text = text_of(answer.tokens);
    different.insert(text);
    const auto value = boost::json::parse(text).as_object();
    EXPECT_LE(value.at("name").as_string().size(), 2 * 8u) << text;
    EXPECT_TRUE(value.at("age").as_int64() >= 0 && value.at("age").as_int64() <= 130) << text;
    if (const auto* tags = value.if_contains("tags")) {
      EXPECT_LE(tags->as_array().size(), 3u);
      for (const auto& tag : tags->as_array()) EXPECT_TRUE(tag == "x" || tag == "yy") << text;
    }
  }
  EXPECT_GT(different.size(), 35u);
  EXPECT_GT(replica.metric(0, "lowkey_grammar_masks_total", "cached"), 0);
  EXPECT_GT(replica.metric(0, "lowkey_grammar_masks_total", "computed"), 0);
}

TEST(GrammarEngine, GoesOnElsewhereWithTheSameTokens) {
  for (const uint64_t seed : {3, 4}) {
    wire::SamplingParams sampling = sampling_of(kPerson, seed);
    sampling.set_frequency_penalty(0.5);
    EngineReplica whole(options());
    ASSERT_TRUE(whole.try_submit(request(1, sampling)).ok());
    whole.run();
    const Tokens expected = whole.answer(1).tokens;
    ASSERT_GT(expected.size(), 8u);
    for (const size_t emitted : {size_t{1}, expected.size() / 2, expected.size() - 1}) {
      EngineReplica replica(options());
      const Tokens begun(expected.begin(), expected.begin() + emitted);
      ASSERT_TRUE(replica.try_submit(request(2, sampling, begun)).ok());
      replica.run();
      EXPECT_EQ(replica.answer(2).tokens, Tokens(expected.begin() + emitted, expected.end()));
      EXPECT_EQ(replica.answer(2).finish, wire::FINISH_STOP);
    }
  }
}

TEST(GrammarEngine, PreemptionAndBatchMatesChangeNothing) {
  std::vector<Tokens> alone;
  for (int i = 0; i < 12; ++i) {
    EngineReplica replica(options());
    ASSERT_TRUE(
        replica.try_submit(request(100 * i + 1, sampling_of(R"({"type":"array","minItems":20})", i, 100)))
            .ok());
    replica.run();
    alone.push_back(replica.answer(100 * i + 1).tokens);
  }
  EngineReplicaOptions tight = options();
  tight.kv_bytes = 24 << 10;
  tight.engine.scheduler.ladder = false;
  EngineReplica replica(tight);
  for (int i = 0; i < 12; ++i)
    ASSERT_TRUE(
        replica.try_submit(request(100 * i + 1, sampling_of(R"({"type":"array","minItems":20})", i, 100)))
            .ok());
  replica.run();
  EXPECT_GT(replica.metric(0, "lowkey_num_preemptions_total"), 0);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(replica.answer(100 * i + 1).tokens, alone[i]);
}

TEST(GrammarEngine, HowAnswersEnd) {
  EngineReplica replica(options());
  const std::string pair = R"({"type":"array","items":{"enum":[1]},"minItems":2,"maxItems":2})";
  wire::SamplingParams sampling = sampling_of(pair, 1);
  ASSERT_TRUE(replica.try_submit(request(1, sampling)).ok());
  sampling.set_max_tokens(3);
  ASSERT_TRUE(replica.try_submit(request(2, sampling)).ok());
  sampling.set_max_tokens(100);
  sampling.set_ignore_eos(true);  // nothing can follow, and no token may end it
  ASSERT_TRUE(replica.try_submit(request(3, sampling)).ok());
  sampling.set_ignore_eos(false);
  sampling.set_min_tokens(90);
  ASSERT_TRUE(replica.try_submit(request(4, sampling)).ok());
  sampling.set_json_schema(R"({"type":)");
  ASSERT_TRUE(replica.try_submit(request(5, sampling)).ok());
  sampling.set_json_schema(R"({"const":"ü"})");
  ASSERT_TRUE(replica.try_submit(request(6, sampling)).ok());
  replica.run();
  EXPECT_EQ(replica.answer(1).finish, wire::FINISH_STOP);
  EXPECT_EQ(boost::json::parse(text_of(replica.answer(1).tokens)), boost::json::parse("[1,1]"));
  EXPECT_EQ(replica.answer(2).finish, wire::FINISH_LENGTH);
  EXPECT_EQ(replica.answer(2).tokens.size(), 3u);
  EXPECT_EQ(replica.answer(3).finish, wire::FINISH_STOP);
  EXPECT_NE(replica.answer(3).tokens.back(), 0);
  EXPECT_EQ(replica.answer(4).finish, wire::FINISH_STOP) << "complete is complete";
  EXPECT_EQ(replica.answer(5).finish, wire::FINISH_ERROR);
  EXPECT_EQ(replica.answer(5).error_code, static_cast<uint32_t>(Code::kInvalidArgument));
  EXPECT_EQ(replica.answer(6).finish, wire::FINISH_ERROR) << "the vocabulary has no such character";
}

// A vocabulary that is read while a latch is closed: until then no grammar is ready.
class Latch {
 public:
  TokenTexts wait() {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [&] { return open_; });
    return texts();
  }
  void open() {
    {
      std::lock_guard lock(mutex_);
      open_ = true;
    }
    opened_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = false;
};

std::vector<Tokens> answers_of(EngineReplica& replica, int count) {
  std::vector<Tokens> answers;
  for (int i = 0; i < count; ++i) answers.push_back(replica.answer(1 + i).tokens);
  return answers;
}

// 16 answers wait for their grammar from their first token on; one without a grammar goes through all of its
// tokens meanwhile. Then they are what they would have been.
TEST(GrammarEngine, NobodyElseWaitsForAGrammar) {
  for (const int ranks : {1, 2}) {
    EngineReplica undisturbed(options(ranks));
    for (int i = 0; i < 16; ++i)
      ASSERT_TRUE(undisturbed.try_submit(request(1 + i, sampling_of(kPerson, i))).ok());
    undisturbed.run();
    const auto latch = std::make_shared<Latch>();
    EngineReplicaOptions late = options(ranks);
    late.engine.token_texts = [latch] { return latch->wait(); };
    EngineReplica replica(late);
    for (int i = 0; i < 16; ++i)
      ASSERT_TRUE(replica.try_submit(request(1 + i, sampling_of(kPerson, i))).ok());
    wire::SamplingParams plain = EngineReplica::greedy();
    plain.set_max_tokens(200);
    plain.set_ignore_eos(true);
    ASSERT_TRUE(replica.try_submit(request(100, plain)).ok());
    replica.run_until(100);
    EXPECT_EQ(replica.answer(100).tokens.size(), 200u);
    for (int i = 0; i < 16; ++i) EXPECT_TRUE(replica.answer(1 + i).tokens.empty());
    latch->open();
    replica.run();
    EXPECT_EQ(answers_of(replica, 16), answers_of(undisturbed, 16));
    EXPECT_GE(replica.metric(0, "lowkey_grammar_wait_seconds_count"), 16);
  }
}

TEST(GrammarEngine, WaitingAnswersCanGiveWayAndBeCancelled) {
  const auto latch = std::make_shared<Latch>();
  EngineReplicaOptions tight = options();
  tight.engine.token_texts = [latch] { return latch->wait(); };
  tight.kv_bytes = 24 << 10;
  tight.engine.scheduler.ladder = false;
  EngineReplica replica(tight);
  wire::SamplingParams plain = EngineReplica::greedy();
  plain.set_max_tokens(100);
  plain.set_ignore_eos(true);
  ASSERT_TRUE(replica.try_submit(request(500, plain)).ok());
  for (int i = 0; i < 6; ++i)
    ASSERT_TRUE(replica.try_submit(request(100 * i + 1, sampling_of(kPerson, i, 90))).ok());
  for (int i = 0; i < 20; ++i) replica.step();
  replica.engine().cancel(101);
  replica.run_until(500);
  EXPECT_EQ(replica.answer(101).finish, wire::FINISH_CANCELLED);
  EXPECT_GT(replica.metric(0, "lowkey_num_preemptions_total"), 0);
  latch->open();
  replica.run();
  for (int i = 0; i < 6; ++i) {
    if (i == 1) continue;
    EngineReplica alone(options());
    ASSERT_TRUE(alone.try_submit(request(100 * i + 1, sampling_of(kPerson, i, 90))).ok());
    alone.run();
    EXPECT_EQ(replica.answer(100 * i + 1).tokens, alone.answer(100 * i + 1).tokens);
  }
}

TEST(GrammarEngine, WhoWaitsTooLongEndsAlone) {
  const auto latch = std::make_shared<Latch>();
  EngineReplicaOptions late = options();
  late.engine.token_texts = [latch] { return latch->wait(); };
  late.engine.grammar_wait = std::chrono::milliseconds(20);
  EngineReplica replica(late);
  ASSERT_TRUE(replica.try_submit(request(1, sampling_of(kPerson, 1))).ok());
  wire::SamplingParams plain = EngineReplica::greedy();
  plain.set_max_tokens(50);
  plain.set_ignore_eos(true);
  ASSERT_TRUE(replica.try_submit(request(100, plain)).ok());
  replica.run();
  latch->open();
  EXPECT_EQ(replica.answer(1).finish, wire::FINISH_ERROR);
  EXPECT_EQ(replica.answer(1).error_code, static_cast<uint32_t>(Code::kDeadlineExceeded))
      << replica.answer(1).error;
  EXPECT_EQ(replica.answer(100).finish, wire::FINISH_LENGTH);
  EXPECT_EQ(replica.answer(100).tokens.size(), 50u);
}

TEST(GrammarEngine, ExceptionsEndOneAnswer) {
  const auto calls = std::make_shared<std::atomic<int>>(0);
  EngineReplicaOptions failing = options();
  failing.engine.token_texts = [calls] {
    if (++*calls == 1) throw std::bad_alloc();
    return texts();
  };
  EngineReplica replica(failing);
  ASSERT_TRUE(replica.try_submit(request(1, sampling_of(kPerson, 1))).ok());
  replica.run();
  EXPECT_EQ(replica.answer(1).finish, wire::FINISH_ERROR);
  EXPECT_EQ(replica.answer(1).error_code, static_cast<uint32_t>(Code::kInternal));
  ASSERT_TRUE(replica.try_submit(request(2, sampling_of(kPerson, 1))).ok());
  replica.run();
  EXPECT_EQ(replica.answer(2).finish, wire::FINISH_STOP);
}

TEST(GrammarEngine, WithoutAVocabularyItIsRefused) {
  EngineReplicaOptions bare = options();
  bare.engine.token_texts = nullptr;
  EngineReplica replica(bare);
  EXPECT_EQ(replica.try_submit(request(1, sampling_of("{}", 1))).error().param, "response_format");
}

}  // namespace
}  // namespace lowkey::worker
