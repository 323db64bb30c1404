#include "worker/model/random_model.h"

#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <set>

#include "tests/support/replica.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/model/safetensors_reader.h"

namespace lowkey::testing {
namespace {

TEST(Shape, NamedAndListed) {
  const auto shape = worker::parse_shape("135M,layers=2,tied=0,family=qwen2");
  ASSERT_TRUE(shape.ok()) << shape.error().message;
  EXPECT_EQ(shape->num_layers, 2);
  EXPECT_EQ(shape->hidden_size, 576);
  EXPECT_FALSE(shape->tie_word_embeddings);
  EXPECT_EQ(shape->family, worker::Family::kQwen2);
  EXPECT_EQ(worker::parse_shape("hidden=96,heads=6")->num_heads, 6);
  EXPECT_EQ(worker::parse_shape("tiny,share=2,layers=3")->kv_producer, (std::vector{0, 0, 2}));
  EXPECT_EQ(worker::parse_shape("tiny,family=gemma2,window=9,layers=3")->windows, (std::vector{9, 0, 9}));
}

TEST(Shape, Refusals) {
  for (const char* text : {"", "7B", "tiny,135M", "layers", "layers=", "layers=0", "layers=2x", "depth=3",
                           "tied=yes", "family=gpt2", "vocab=259", "tiny,,layers=2"}) {
    const auto shape = worker::parse_shape(text);
    ASSERT_FALSE(shape.ok()) << text;
    EXPECT_EQ(shape.error().code, Code::kUsage) << text;
  }
}

// Greedy text of random weights must wander, or speed work on it would measure one cache line of the
// vocabulary.
TEST(RandomModel, LoadsAndWanders) {
  for (const char* text :
       {"tiny", "tiny,family=qwen2,tied=0,layers=3", "tiny,layers=5,share=2", "tiny,family=mistral,window=40",
        "tiny,family=qwen3", "tiny,family=phi3,window=50,tied=0", "tiny,family=gemma,layers=4",
        "tiny,family=gemma2,window=40,layers=4", "tiny,family=gemma3,window=40,layers=7"}) {
    TempFolder folder;
    const auto shape = worker::parse_shape(text);
    ASSERT_TRUE(shape.ok());
    const auto written = worker::write_random_model(*shape, 1, folder.path() / "m");
    ASSERT_TRUE(written.ok()) << written.error().message;
    auto replica = Replica::load(folder.path() / "m", {.tp = 2, .dtype = kernels::DType::kBf16});
    ASSERT_TRUE(replica.ok()) << replica.error().message;
    const std::vector<int32_t> prompt = {10, 20, 30};
    const auto tokens = replica.value()->greedy(0, prompt, 64);
    ASSERT_TRUE(tokens.ok());
    EXPECT_GT(std::set(tokens->begin(), tokens->end()).size(), 20u) << text;
    EXPECT_EQ(std::ranges::count(*tokens, 0), 0) << "end of text";
    const auto logits = replica.value()->step(1, prompt);
    double squares = 0;
    for (const float x : logits->back()) squares += double{x} * x;
    EXPECT_NEAR(std::sqrt(squares / logits->back().size()), 2.5, 1.0) << text;
  }
}

TEST(RandomModel, SeedDecidesTheBytes) {
  TempFolder folder;
  const auto shape = worker::parse_shape("tiny");
  const auto fingerprint = [&](const char* name, uint64_t seed) {
    EXPECT_TRUE(worker::write_random_model(*shape, seed, folder.path() / name).ok());
    return worker::model_fingerprint(folder.path() / name).value();
  };
  const Hash128 a = fingerprint("a", 1), b = fingerprint("b", 1), c = fingerprint("c", 2);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

TEST(RandomModel, DoesNotOverwriteAndRefusesNonsense) {
  TempFolder folder;
  std::ofstream(folder.path() / "precious") << "x";
  const auto shape = worker::parse_shape("tiny");
  const auto status = worker::write_random_model(*shape, 1, folder.path());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kUsage);
  const auto odd = worker::write_random_model(*worker::parse_shape("heads=5"), 1, folder.path() / "m");
  ASSERT_FALSE(odd.ok());
  EXPECT_EQ(odd.error().code, Code::kUsage);
  EXPECT_NE(odd.error().message.find("expected a divisor of num_attention_heads 5, found 2"),
            std::string::npos)
      << odd.error().message;
}

TEST(Fingerprint, NoticesConfigHeaderAndContent) {
  TempFolder folder;
  const auto dir = folder.path() / "m";
  ASSERT_TRUE(worker::write_random_model(*worker::parse_shape("tiny"), 1, dir).ok());
  const Hash128 before = worker::model_fingerprint(dir).value();
  const auto patch = [&](const char* file, std::streamoff at, char byte) {
    std::fstream out(dir / file, std::ios::in | std::ios::out | std::ios::binary);
    out.seekg(at);
    const char old = static_cast<char>(out.get());
    out.seekp(at);
    out.put(byte);
    return old;
  };
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(dir / "model.safetensors"));
  const char last = patch("model.safetensors", size - 1, '\x01');
  EXPECT_NE(worker::model_fingerprint(dir).value(), before);
  patch("model.safetensors", size - 1, last);
  EXPECT_EQ(worker::model_fingerprint(dir).value(), before);
  std::filesystem::remove(dir / "generation_config.json");  // sampling defaults are not the model
  EXPECT_EQ(worker::model_fingerprint(dir).value(), before);
  patch("config.json", static_cast<std::streamoff>(std::filesystem::file_size(dir / "config.json")) - 1, ' ');
  EXPECT_NE(worker::model_fingerprint(dir).value(), before);
}

TEST(Fingerprint, IsCheap) {
  const std::clock_t begin = std::clock();  // of computing: who waits for a core may
  ASSERT_TRUE(worker::model_fingerprint(demo_model()).ok());
  EXPECT_LT(std::clock() - begin, CLOCKS_PER_SEC / 20);
}

}  // namespace
}  // namespace lowkey::testing
