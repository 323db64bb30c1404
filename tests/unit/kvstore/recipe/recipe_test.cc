#include "kvstore/recipe/recipe.h"

#include <gtest/gtest.h>

namespace lowkey::kvstore {
namespace {

using kernels::Quantizer;

std::string refusal(const std::string& yaml) {
  const auto spec = parse_recipe(yaml, "r.yaml");
  if (spec.ok()) return "accepted";
  EXPECT_EQ(spec.error().code, Code::kBadInput);
  return spec.error().message;
}

#define EXPECT_REFUSED(yaml, text) EXPECT_NE(refusal(yaml).find(text), std::string::npos) << refusal(yaml)

TEST(Recipe, ExactIsBuiltInAndEqualsItsFile) {
  const auto builtin = read_recipe("");
  const auto file = read_recipe(std::string(LOWKEY_SOURCE_DIR) + "/recipes/exact.yaml");
  ASSERT_TRUE(file.ok()) << file.error().message;
  for (const auto* spec : {&*builtin, &*file}) {
    EXPECT_EQ(spec->recipe, "exact");
    EXPECT_EQ(spec->quantizer, Quantizer::kFull);
    EXPECT_EQ(spec->page_tokens, 32);
    EXPECT_EQ(spec->sink_tokens, 0);
  }
}

TEST(Recipe, Q8) {
  const auto spec = read_recipe(std::string(LOWKEY_SOURCE_DIR) + "/recipes/q8.yaml");
  ASSERT_TRUE(spec.ok()) << spec.error().message;
  EXPECT_EQ(spec->recipe, "q8");
  EXPECT_EQ(spec->quantizer, Quantizer::kEmbedded);
  EXPECT_EQ(spec->bits, 8);
  EXPECT_EQ(spec->sink_tokens, 4);
}

TEST(Recipe, EveryDialMayBeWrittenOut) {
  const auto spec = parse_recipe(
      "name: all\nlayers: {share: none}\nheads: {join: 1}\ntokens: {keep: all}\n"
      "features: {basis: identity, keep: 1.0}\nbits: {quantizer: embedded, width: 8, axis: token}\n"
      "hot: {sink: 2, recent: 0}\nstream: {levels: [1.0], spill: all, prefill: encoded, page_tokens: 64}\n",
      "r.yaml");
  ASSERT_TRUE(spec.ok()) << spec.error().message;
  EXPECT_EQ(spec->page_tokens, 64);
  EXPECT_EQ(spec->sink_tokens, 2);
}

TEST(Recipe, UnknownKeysAreErrorsWithTheirLine) {
  EXPECT_REFUSED("name: x\n\nbit: {width: 8}\n", "r.yaml:3: unknown key 'bit'");
  EXPECT_REFUSED("name: x\nbits:\n  width: 8\n  widht: 4\n",
                 "r.yaml:4: unknown key 'widht' in bits; known: quantizer");
  EXPECT_REFUSED("name: x\nbits: {width: 8}\nbits: {width: full}\n",
                 "r.yaml:3: the recipe: key 'bits' appears twice");
}

TEST(Recipe, WhatCannotBeServedIsRefusedByNameWithTheReason) {
  EXPECT_REFUSED("name: x\nbits: {width: 4}\n",
                 "r.yaml:2: bits: width: '4' is not supported: widths served so far");
  EXPECT_REFUSED("name: x\nfeatures: {basis: trained, keep: 0.40}\n",
                 "features: basis: 'trained' is not supported");
  EXPECT_REFUSED("name: x\ntokens: {score: h2o}\n",
                 "tokens: score: 'h2o' is not supported: only whole sequences");
  EXPECT_REFUSED("name: x\nhot: {recent: 64}\n", "boundary records");
  EXPECT_REFUSED("name: x\nstream: {levels: [0.5, 1.0]}\n", "stream: levels: '[0.5, 1.0]' is not supported");
  EXPECT_REFUSED("name: x\nlayers: {merge: {slerp: 0.6}}\n", "layers: merge:");
  EXPECT_REFUSED("name: x\nbits: {width: full, quantizer: embedded}\n", "nothing is quantized");
}

TEST(Recipe, BadValuesAndBadFilesAreOneClearLine) {
  EXPECT_REFUSED("bits: {width: 8}\n", "name: expected one");
  EXPECT_REFUSED("name: x\nhot: {sink: many}\n",
                 "r.yaml:2: hot: sink: expected a whole number from 0 to 4096, found 'many'");
  EXPECT_REFUSED("name: x\nhot: {sink: 33}\n", "at most one page (32 tokens), found 33");
  EXPECT_REFUSED("name: x\nstream: {page_tokens: 20}\n", "expected a multiple of 16, found 20");
  EXPECT_REFUSED("name: x\nbits: 8\n", "r.yaml:2: bits: expected a map of");
  EXPECT_REFUSED("name: [x\n", "r.yaml:");
  EXPECT_REFUSED("", "expected a map of dials");
  EXPECT_REFUSED("? [a]\n: b\n", "a key must be a word");
  EXPECT_EQ(read_recipe("/nonexistent/r.yaml").error().message,
            "/nonexistent/r.yaml: expected a recipe file, cannot read it");
}

}  // namespace
}  // namespace lowkey::kvstore
