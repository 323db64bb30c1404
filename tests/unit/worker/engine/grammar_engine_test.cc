// Answers that a JSON schema constrains, from a model that knows nothing of JSON.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>

#include "base/grammar/json_schema.h"
#include "tests/unit/worker/engine/cache_reading_model.h"
#include "tests/unit/worker/engine/engine_replica.h"

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
  EngineReplicaOptions options;
  options.ranks = ranks;
  options.spec.page_tokens = 16;
  options.model = [](int rank, int n) { return std::make_unique<CacheReadingModel>(rank, n); };
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
  wire::Submit submit;
  submit.set_request_id(id);
  for (int i = 0; i < 20; ++i) submit.add_prompt(1 + (id / 100 * 7 + i * 5) % 90);
  submit.mutable_emitted()->Add(emitted.begin(), emitted.end());
  *submit.mutable_sampling() = sampling;
  return submit;
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

TEST(GrammarEngine, WithoutAVocabularyItIsRefused) {
  EngineReplicaOptions bare = options();
  bare.engine.token_texts = nullptr;
  EngineReplica replica(bare);
  EXPECT_EQ(replica.try_submit(request(1, sampling_of("{}", 1))).error().param, "response_format");
}

}  // namespace
}  // namespace lowkey::worker
