#include "cli/recall_task.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>

namespace lowkey::cli {
namespace {

constexpr int kFacts = 4;  // as many as the demo model was trained on
constexpr std::array<const char*, 40> kNames = {
    "apple",   "river",  "candle", "garden",  "winter", "silver", "falcon", "harbor",   "lantern", "meadow",
    "orchard", "pepper", "ribbon", "saddle",  "timber", "velvet", "walnut", "anchor",   "basket",  "copper",
    "dragon",  "ember",  "forest", "glacier", "hammer", "island", "jacket", "kettle",   "ladder",  "mirror",
    "needle",  "oyster", "parrot", "quartz",  "rocket", "sailor", "temple", "umbrella", "violin",  "wagon"};

struct Fact {
  std::vector<int32_t> text;
  RecallTask::Question question;
};

Fact make_fact(const coordinator::Tokenizer& tokenizer, const std::string& name, const std::string& key) {
  const auto encode = [&](const std::string& text) { return tokenizer.encode(text, false); };
  return {.text = encode(fmt::format("\nThe pass key of the {} is {}. Remember it.\n", name, key)),
          .question = {.question = encode(fmt::format(
                           "\nWhat is the pass key of the {}? The pass key of the {} is", name, name)),
                       .answer = encode(fmt::format(" {}.", key))}};
}

std::vector<Fact> make_facts(const coordinator::Tokenizer& tokenizer, std::mt19937& random) {
  std::vector<const char*> names(kNames.begin(), kNames.end());
  std::vector<Fact> facts;
  for (int i = 0; i < kFacts; ++i) {
    const size_t at = random() % names.size();
    facts.push_back(make_fact(tokenizer, names[at], fmt::format("{:05}", random() % 100000)));
    names.erase(names.begin() + static_cast<ptrdiff_t>(at));
  }
  return facts;
}

// One fact at a random place of each of four equal parts of the text.
std::vector<int32_t> hide(const std::vector<Fact>& facts, std::span<const int32_t> text,
                          std::mt19937& random) {
  std::vector<int32_t> context;
  const size_t part = text.size() / facts.size();
  size_t done = 0;
  for (size_t i = 0; i < facts.size(); ++i) {
    const size_t cut = i * part + random() % part;
    context.insert(context.end(), text.begin() + static_cast<ptrdiff_t>(done),
                   text.begin() + static_cast<ptrdiff_t>(cut));
    context.insert(context.end(), facts[i].text.begin(), facts[i].text.end());
    done = cut;
  }
  context.insert(context.end(), text.begin() + static_cast<ptrdiff_t>(done), text.end());
  return context;
}

}  // namespace

std::vector<RecallTask> make_recall_tasks(const coordinator::Tokenizer& tokenizer,
                                          const std::vector<std::vector<int32_t>>& texts, int length) {
  std::mt19937 random(20240527);  // its numbers are the same everywhere
  std::vector<RecallTask> tasks;
  for (const std::vector<int32_t>& text : texts) {
    const std::vector<Fact> facts = make_facts(tokenizer, random);
    size_t room = static_cast<size_t>(length);
    for (const Fact& fact : facts)
      room -= std::min(room, fact.text.size() + fact.question.question.size() + fact.question.answer.size());
    if (room < static_cast<size_t>(length) / 2 || text.size() < room) return {};
    RecallTask task{.context = hide(facts, std::span(text).first(room), random)};
    std::vector<int> order = {0, 1, 2, 3};
    for (int i = kFacts; i-- > 0;) {
      const size_t at = random() % order.size();
      task.questions.push_back(facts[order[at]].question);
      order.erase(order.begin() + static_cast<ptrdiff_t>(at));
    }
    tasks.push_back(std::move(task));
  }
  return tasks;
}

Result<std::vector<bool>> ask(worker::RecipeSequence& sequence, const RecallTask& task) {
  std::vector<bool> recalled;
  int32_t likely = -1;  // what comes after the last token fed
  std::vector<int32_t> guesses;
  const worker::LogitsSink sink = [&](int, std::span<const float> logits) {
    likely = static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
    guesses.push_back(likely);
  };
  for (size_t i = 0; i < task.questions.size(); ++i) {
    const auto& [question, answer] = task.questions[i];
    if (i == 0) {
      std::vector<int32_t> prompt = task.context;
      prompt.insert(prompt.end(), question.begin(), question.end());
      LOWKEY_TRY(sequence.prompt(prompt, static_cast<int>(prompt.size()) - 1, sink));
    } else {
      LOWKEY_TRY(sequence.extend(question, sequence.length() + static_cast<int>(question.size()) - 1, sink));
    }
    guesses = {likely};
    LOWKEY_TRY(sequence.extend(answer, sequence.length(), sink));
    guesses.pop_back();  // behind the answer
    recalled.push_back(guesses == answer);
  }
  return recalled;
}

}  // namespace lowkey::cli
