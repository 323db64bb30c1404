// Pass keys hidden in text and asked for at its end: the demo model's own recall task
// (deploy/demo-model/train.py), readable for any model. The first question ends the prompt; further ones
// about other names come after the answers so far, with the cache as the first one left it (SCBench,
// arXiv:2412.10319, multi-turn): a cache that dropped tokens has chosen them by the first question.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "coordinator/text/tokenizer.h"
#include "worker/offline/recipe_sequence.h"

namespace lowkey::cli {

struct RecallTask {
  struct Question {
    std::vector<int32_t> question, answer;
  };
  std::vector<int32_t> context;  // text with the facts in it
  std::vector<Question> questions;
};

// As many tasks as `texts`, which are cut to what is needed so that a whole task, answers included, has at
// most `length` tokens. Empty when that leaves less text than half of `length`: too short for a haystack.
std::vector<RecallTask> make_recall_tasks(const coordinator::Tokenizer& tokenizer,
                                          const std::vector<std::vector<int32_t>>& texts, int length);

// For every question whether all tokens of its answer are the most likely ones, each given those before it:
// whether greedy decoding would say it.
Result<std::vector<bool>> ask(worker::RecipeSequence& sequence, const RecallTask& task);

}  // namespace lowkey::cli
