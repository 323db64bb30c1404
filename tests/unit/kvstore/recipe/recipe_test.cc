#include "kvstore/recipe/recipe.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include <fstream>

#include "tests/support/temp_folder.h"

namespace lowkey::kvstore {
namespace {

using kernels::Quantizer;
using kernels::ScaleAxis;

std::string refusal(const std::string& yaml) {
  const auto recipe = parse_recipe("name: x\n" + yaml, "r.yaml");
  if (recipe.ok()) return "accepted";
  EXPECT_EQ(recipe.error().code, Code::kBadInput);
  EXPECT_EQ(recipe.error().message.find('\n'), std::string::npos) << "one line";
  return recipe.error().message;
}

#define EXPECT_REFUSED(yaml, text) EXPECT_NE(refusal(yaml).find(text), std::string::npos) << refusal(yaml)

Recipe parsed(const std::string& yaml) {
  auto recipe = parse_recipe("name: x\n" + yaml, "r.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.error().message;
  return recipe.ok() ? *recipe : Recipe{};
}

Recipe file(const std::string& name) {
  auto recipe = read_recipe(LOWKEY_SOURCE_DIR "/recipes/" + name + ".yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.error().message;
  return recipe.ok() ? *recipe : Recipe{};
}

TEST(Recipe, ExactIsBuiltInAndEqualsItsFile) {
  for (const Recipe& recipe : {*read_recipe(""), file("exact")}) {
    EXPECT_EQ(recipe.name, "exact");
    EXPECT_EQ(recipe.key.quantizer, Quantizer::kFull);
    EXPECT_EQ(recipe.value.quantizer, Quantizer::kFull);
    EXPECT_EQ(recipe.page_tokens, 32);
    EXPECT_EQ(recipe.sink_tokens, 0);
    EXPECT_EQ(recipe.levels, std::vector<double>{1.0});
    EXPECT_FALSE(recipe.needs_profile());
    EXPECT_FALSE(recipe.has_archive());
  }
}

TEST(Recipe, Q8) {
  const Recipe recipe = file("q8");
  EXPECT_EQ(recipe.name, "q8");
  EXPECT_EQ(recipe.key.quantizer, Quantizer::kEmbedded);
  EXPECT_EQ(recipe.key.width, 8);
  EXPECT_EQ(recipe.value.width, 8);
  EXPECT_EQ(recipe.sink_tokens, 4);
}

TEST(Recipe, EveryDialMayBeWrittenOut) {
  const Recipe recipe = parsed(
      "layers: {share: none}\nheads: {join: all}\ntokens: {keep: all}\n"
      "features: {basis: trained, keep: 0.5, allocate: uniform, site: post, source: profile, value: {keep: "
      "0.75}}\n"
      "bits: {quantizer: embedded, width: 8, axis: token, group: 16, scale: profile, value: {width: 4}}\n"
      "hot: {sink: 2, recent: 0}\nprofile: p\n"
      "stream: {levels: [0.25, 0.5, 1], spill: all, prefill: encoded, page_tokens: 64}\n");
  EXPECT_EQ(recipe.join, 0);
  EXPECT_EQ(recipe.key.basis, BasisKind::kTrained);
  EXPECT_EQ(recipe.key.keep, 0.5);
  EXPECT_EQ(recipe.value.keep, 0.75);
  EXPECT_EQ(recipe.key.width, 8);
  EXPECT_EQ(recipe.value.width, 4);
  EXPECT_EQ(recipe.page_tokens, 64);
  EXPECT_EQ(recipe.sink_tokens, 2);
  EXPECT_EQ(recipe.levels, (std::vector<double>{0.25, 0.5, 1}));
  EXPECT_EQ(recipe.profile_stem(), "p");
  EXPECT_FALSE(recipe.tokens.has_value());
}

TEST(Recipe, OneSideMayDifferWhereverItStands) {
  const Recipe recipe = parsed(
      "bits:\n  key: {axis: channel}\n  quantizer: affine\n  width: 2\n  group: 16\n  value: {axis: token, "
      "width: 4}\n");
  EXPECT_EQ(recipe.key.quantizer, Quantizer::kAffine);
  EXPECT_EQ(recipe.key.axis, ScaleAxis::kChannel);
  EXPECT_EQ(recipe.key.width, 2);
  EXPECT_EQ(recipe.value.axis, ScaleAxis::kToken);
  EXPECT_EQ(recipe.value.width, 4);
  EXPECT_EQ(recipe.value.scale_span, 16);
  const Recipe half = parsed("bits: {value: {width: 4}}\n");
  EXPECT_EQ(half.key.quantizer, Quantizer::kFull);
  EXPECT_EQ(half.value.quantizer, Quantizer::kEmbedded);
}

TEST(Recipe, TokensAreChosenOnce) {
  const Recipe recipe = parsed(
      "tokens: {score: snap, budget: {heavy: 0.2, recent: 0.1, shape: pyramid, delta: 5}, when: prefill_end, "
      "then: drop}\n"
      "stream: {prefill: exact}\n");
  ASSERT_TRUE(recipe.tokens.has_value());
  EXPECT_EQ(recipe.tokens->score, TokenScore::kWindowSum);
  EXPECT_EQ(recipe.tokens->heavy, 0.2);
  EXPECT_EQ(recipe.tokens->recent, 0.1);
  EXPECT_EQ(recipe.tokens->pyramid_delta, 5);
  EXPECT_TRUE(recipe.has_archive());
  EXPECT_EQ(recipe.recent_block, recipe.page_tokens) << "page by page unless flush says otherwise";
}

TEST(Recipe, APyramidFallsFromLayerToLayerAndKeepsItsMean) {
  const TokenDial dial{.heavy = 0.25, .shape = BudgetShape::kPyramid, .pyramid_delta = 7};
  EXPECT_NEAR(dial.heavy_of_bank(0, 32), 0.464, 0.001);  // the paper's figures for 32 layers
  EXPECT_NEAR(dial.heavy_of_bank(31, 32), 0.036, 0.001);
  double sum = 0;
  for (int bank = 0; bank < 32; ++bank) sum += dial.heavy_of_bank(bank, 32);
  EXPECT_NEAR(sum / 32, 0.25, 1e-12);
}

TEST(Recipe, UnknownKeysAreErrorsWithTheirLineAndWhatIsAllowed) {
  EXPECT_REFUSED(
      "\nbit: {width: 8}\n",
      "r.yaml:3: unknown key 'bit'; known: name, layers, heads, tokens, features, bits, hot, stream");
  EXPECT_REFUSED("bits:\n  width: 8\n  widht: 4\n",
                 "r.yaml:4: unknown key 'widht' in bits; known: quantizer, width");
  EXPECT_REFUSED("bits: {width: 8, key: {sink: 4}}\n",
                 "unknown key 'sink' in bits: key; known: quantizer, width");
  EXPECT_REFUSED("tokens: {score: h2o, budget: {hevay: 0.2}}\n",
                 "unknown key 'hevay' in tokens: budget; known: heavy");
  EXPECT_REFUSED("bits: {width: 8}\nbits: {width: full}\n", "r.yaml:3: key 'bits' appears twice");
}

TEST(Recipe, WhatIsKnownAndNotServedIsRefusedByNameWithTheReason) {
  EXPECT_REFUSED("layers: {share: profile}\n", "layers: share: 'profile' is not served: a searched map");
  EXPECT_REFUSED("layers: {merge: {slerp: 0.6}}\n", "layers: merge: '{slerp: 0.6}' is not served");
  EXPECT_REFUSED("tokens: {score: keyformer}\n", "'keyformer' is not served: attention has no observer");
  EXPECT_REFUSED("tokens: {score: h2o, when: step}\n",
                 "tokens: when: 'step' is not served: tokens are chosen once");
  EXPECT_REFUSED("tokens: {score: h2o, then: {merge: 1}}\n", "tokens: then: expected drop");
  EXPECT_REFUSED("tokens: {choose: [a]}\n", "tokens: choose: '[a]' is not served");
  EXPECT_REFUSED("features: {site: pre}\n",
                 "features: site: 'pre' is not served: keys are stored after RoPE");
  EXPECT_REFUSED("features: {source: sequence}\n",
                 "'sequence' is not served: bases of a prompt are side tensors");
  EXPECT_REFUSED("features: {basis: mse}\n", "features: basis: 'mse' is not served");
  EXPECT_REFUSED("bits: {quantizer: codebook, width: 2}\n",
                 "'codebook' is not served: codebooks need coupled channels");
  EXPECT_REFUSED("bits: {outliers: 0.01}\n", "bits: outliers: '0.01' is not served");
  EXPECT_REFUSED("bits: {by_class: {a: 4}}\n", "bits: by_class:");
  EXPECT_REFUSED("hot: {recent: 64}\n", "hot: recent: '64' is not served: an exact window that slides");
  EXPECT_REFUSED("hot: {flush: slide}\n", "hot: flush: 'slide' is not served");
}

TEST(Recipe, DialsThatExcludeEachOtherAreRefusedWithTheRule) {
  const struct {
    const char* yaml;
    const char* line;
  } cases[] = {
      {"features: {keep: 0.5}\n", "r.yaml:2: features: keep: the identity basis has no unimportant features"},
      {"features: {basis: pca, keep: 0.5, allocate: per_head}\nbudget: b\nbits: {width: auto}\n",
       "allocates features and bits"},
      {"features: {basis: pca, allocate: per_head}\n", "spreads one keep below 1"},
      {"features: {basis: pca, keep: 0.5, allocate: per_head, value: {keep: 0.4}}\n",
       "spreads one keep below 1"},
      {"features: {key: {basis: pca}, value: {basis: trained}}\n",
       "found pca for keys and trained for values"},
      {"bits: {width: auto}\nbudget: 4x\n",
       "r.yaml:2: bits: width: auto: bits are allocated to features by importance"},
      {"features: {basis: trained}\nbits: {width: auto}\n",
       "expected a budget of the profile (budget: 4x), found none"},
      {"features: {basis: trained, keep: 0.5}\nbits: {width: auto}\nbudget: 4x\n", "keep must be 1"},
      {"features: {basis: trained}\nbits: {quantizer: affine, width: auto, axis: token, group: 16}\nbudget: "
       "4x\n",
       "priced for embedded codes"},
      {"budget: 4x\n", "r.yaml:2: budget: only width: auto and allocate: per_head take a budget"},
      {"profile: p\n", "profile: the identity basis takes none"},
      {"bits: {width: full, quantizer: embedded}\n", "nothing is quantized at width: full"},
      {"bits: {quantizer: embedded}\n", "bits: width: expected one, found none"},
      {"bits: {width: 4, axis: channel}\n", "scales per channel are affine"},
      {"bits: {width: 4, group: 32}\n", "groups of 16 features, found 32"},
      {"bits: {width: 4, scale: online}\n", "embedded cells are static"},
      {"bits: {quantizer: affine, width: 2}\n", "affine codes need an axis and a group"},
      {"bits: {quantizer: affine, width: 2, axis: channel, group: 24}\n",
       "complete together: expected a divisor"},
      {"bits: {quantizer: affine, width: 2, axis: token, group: 16, scale: profile}\n",
       "carry the minimum and step"},
      {"bits: {quantizer: affine, width: 2, axis: token, group: 16}\nstream: {levels: [0.5, 1]}\n",
       "r.yaml:3: stream: levels: only embedded codes are cut between bits"},
      {"stream: {levels: [0.5, 1]}\n", "only a basis orders the features"},
      {"tokens: {score: h2o}\n", "so its pages are its own: expected stream: {prefill: exact}"},
      {"tokens: {score: h2o}\nheads: {join: 2}\nstream: {prefill: exact}\n", "heads cannot be joined"},
      {"tokens: {keep: all, score: h2o}\n", "keep: all leaves nothing to score"},
      {"tokens: {budget: {heavy: 0.1}}\n", "expected keep: all or a score"},
      {"tokens: {score: h2o, budget: {heavy: 0.8}}\nstream: {prefill: exact}\n",
       "found 1.05 in the first layer"},
      {"tokens: {score: h2o, budget: {heavy: 0, recent: 0}}\nstream: {prefill: exact}\n",
       "expected some tokens"},
      {"tokens: {score: h2o, budget: {delta: 3}}\nstream: {prefill: exact}\n",
       "delta is the slope of shape: pyramid"},
      {"hot: {flush: 128}\n", "r.yaml:2: hot: flush: a window longer than the incomplete page needs"},
      {"hot: {flush: 100}\nstream: {prefill: exact}\n", "expected whole pages of 32 tokens, found 100"},
      {"hot: {sink: 4}\nstream: {prefill: exact}\n", "hot: sink: with prefill: exact"},
      {"bits: {width: 8}\nstream: {prefill: exact, levels: [0.5, 1]}\n", "there is nothing to cut"},
  };
  for (const auto& [yaml, line] : cases) EXPECT_REFUSED(yaml, line) << yaml;
}

TEST(Recipe, BadValuesAndBadFilesAreOneClearLine) {
  EXPECT_NE(parse_recipe("bits: {width: 8}\n", "r.yaml").error().message.find("name: expected one"),
            std::string::npos);
  EXPECT_REFUSED("hot: {sink: many}\n",
                 "r.yaml:2: hot: sink: expected a whole number from 0 to 4096, found 'many'");
  EXPECT_REFUSED("hot: {sink: 33}\n", "at most one page (32 tokens), found 33");
  EXPECT_REFUSED("stream: {page_tokens: 20}\n", "expected a multiple of 16, found 20");
  EXPECT_REFUSED("stream: {levels: [0.5, 0.25]}\n", "expected up to 3 ascending shares that end with 1");
  EXPECT_REFUSED("stream: {levels: 4}\n", "stream: levels: expected a whole number from 2 to 3, found '4'");
  EXPECT_REFUSED("bits: {width: 8}\nstream: {levels: 2}\n",
                 "r.yaml:3: stream: levels: their number alone needs");
  EXPECT_REFUSED("budget: 4x\nfeatures: {basis: pca}\nbits: {width: auto}\nstream: {levels: [0.5, 1]}\n",
                 "r.yaml:5: stream: levels: with width: auto the budget says");
  EXPECT_REFUSED("stream: {levels: [x]}\n", "stream: levels: expected a number from 0.01 to 1, found 'x'");
  EXPECT_REFUSED("features: {keep: 1.5}\n", "features: keep: expected a number from 0.01 to 1, found '1.5'");
  EXPECT_REFUSED("features: {keep: .nan}\n", "expected a number");
  EXPECT_REFUSED("bits: {width: 9}\n", "bits: width: expected full, auto or 0 to 8, found '9'");
  EXPECT_REFUSED("bits: {key: {width: [1]}}\n",
                 "bits: key: width: expected full, auto or 0 to 8, found '[1]'");
  EXPECT_REFUSED("heads: {join: some}\n", "heads: join: expected a whole number from 1 to 64, found 'some'");
  EXPECT_REFUSED("layers: {share: [none]}\n", "layers: share: expected one of none, model, found '[none]'");
  EXPECT_REFUSED("profile: ../secrets\n", "profile: expected a word");
  EXPECT_REFUSED("bits: 8\n", "r.yaml:2: bits: expected a map of quantizer");
  EXPECT_REFUSED("bits: [x\n", "r.yaml:");
  EXPECT_REFUSED("? [a]\n: b\n", "a key must be a word");
  EXPECT_NE(parse_recipe("", "r.yaml").error().message.find("expected a map of name"), std::string::npos);
  EXPECT_EQ(read_recipe("/nonexistent/r.yaml").error().message,
            "/nonexistent/r.yaml: expected a recipe file such as recipes/q8.yaml, found nothing there");
  EXPECT_EQ(read_recipe("/dev/zero").error().message,
            "/dev/zero: expected a recipe file such as recipes/q8.yaml, found something else");
  const testing::TempFolder folder;
  const auto large = folder.path() / "large.yaml";
  std::ofstream(large) << "name: x\n" << std::string(1 << 20, '#');
  EXPECT_EQ(read_recipe(large).error().message,
            large.string() +
                ": expected a recipe file such as recipes/q8.yaml, found one of more than 65536 bytes");
}

TEST(Recipe, ByteChangesNeverCrash) {
  std::mt19937 random(5);
  for (const auto& entry : std::filesystem::directory_iterator(LOWKEY_SOURCE_DIR "/recipes")) {
    std::ifstream in(entry.path());
    std::ostringstream text;
    text << in.rdbuf();
    for (int round = 0; round < 300; ++round) {
      std::string changed = text.str();
      for (int changes = 1 + random() % 4; changes > 0; --changes)
        changed[random() % changed.size()] = "0123456789.-{}[],: \n\t&*!#ax\x80"[random() % 29];
      const auto recipe = parse_recipe(changed, "r.yaml");
      if (!recipe.ok()) {
        EXPECT_EQ(recipe.error().message.find('\n'), std::string::npos) << recipe.error().message;
      }
    }
  }
  EXPECT_FALSE(parse_recipe("name: " + std::string(20000, '['), "r.yaml").ok());
}

TEST(Recipe, WhatIsSpilledMayBeLess) {
  EXPECT_EQ(parsed("stream: {spill: all}\n").spill_levels, 0);
  const Recipe some = parsed("bits: {width: 8}\nstream: {levels: [0.25, 0.5, 1], spill: 2}\n");
  EXPECT_EQ(some.spill_levels, 2);
  EXPECT_EQ(some.spilled, nullptr);
  const Recipe recoded = file("exact-spill-4x");
  ASSERT_NE(recoded.spilled, nullptr);
  EXPECT_EQ(recoded.spilled->name, "lowkey-4x");
  EXPECT_FALSE(recoded.needs_profile());

  EXPECT_REFUSED("stream: {levels: [0.25, 1],\n  spill: none}\n",
                 "r.yaml:3: stream: spill: expected all, a number of levels or {recipe: FILE}, found 'none'");
  EXPECT_REFUSED("stream: {spill: 0}\n", "stream: spill: expected all, a number of levels");
  EXPECT_REFUSED("stream: {spill: {file: x}}\n", "unknown key 'file' in stream: spill; known: recipe");
  EXPECT_REFUSED("bits: {width: 8}\nstream: {levels: [0.5, 1], spill: 3}\n",
                 "stream: spill: expected at most the 2 of stream: levels, found 3");
  EXPECT_REFUSED("stream: {prefill: exact, spill: 1}\n", "stream: spill: with prefill: exact");
  EXPECT_REFUSED("stream: {spill: {recipe: nowhere.yaml}}\n",
                 "r.yaml:2: stream: spill: recipe: nowhere.yaml: expected a recipe file");
}

TEST(Recipe, ASpillRecipeFitsThePagesItIsMadeFrom) {
  testing::TempFolder folder;
  const auto write = [&](const std::string& name, const std::string& yaml) {
    std::ofstream(folder.path() / name) << "name: " << name << "\n" << yaml;
    return folder.path() / name;
  };
  write("q8", "bits: {width: 8}\n");
  write("sink", "bits: {width: 8}\nhot: {sink: 4}\n");
  write("long", "bits: {width: 8}\nstream: {page_tokens: 64}\n");
  write("late", "bits: {width: 8}\nstream: {prefill: exact}\n");
  write("other", "stream: {spill: {recipe: q8}}\n");
  write("wrong", "bits: {widht: 8}\n");
  const auto refusal_of = [&](const std::string& name) {
    const auto recipe = read_recipe(write("hot", "stream: {spill: {recipe: " + name + "}}\n"));
    return recipe.ok() ? "accepted" : recipe.error().message;
  };
  EXPECT_EQ(refusal_of("q8"), "accepted") << "beside the file that names it";
  const auto expect = [&](const std::string& name, const std::string& text) {
    EXPECT_NE(refusal_of(name).find(text), std::string::npos) << refusal_of(name);
  };
  expect("sink", "hot:2: stream: spill: recipe: sink: hot: sink: expected 0, as in the pages");
  expect("long", "recipe: long: stream: page_tokens: expected 32");
  expect("late", "recipe: late: it chooses tokens or encodes them late");
  expect("other", "other:2: stream: spill: this is what another recipe's pages are spilled in: expected all");
  expect("hot", "expected all");  // itself
  expect("wrong", "wrong:2: unknown key 'widht'");
}

}  // namespace
}  // namespace lowkey::kvstore
