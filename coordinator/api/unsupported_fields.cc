#include "coordinator/api/unsupported_fields.h"

#include <array>

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

struct Unsupported {
  const char* name;
  const char* neutral;       // JSON array of the values that are accepted
  const char* instead = "";  // what does the same here
};

constexpr std::array kUnsupported = {
    // OpenAI
    Unsupported{"best_of", "[1]"},
    Unsupported{"suffix", "[\"\"]"},
    Unsupported{"tools", "[[]]"},
    Unsupported{"tool_choice", "[\"none\", \"auto\"]"},
    Unsupported{"functions", "[[]]"},
    Unsupported{"function_call", "[\"none\", \"auto\"]"},
    Unsupported{"modalities", "[[\"text\"]]"},
    Unsupported{"audio", "[]"},
    Unsupported{"prediction", "[]"},
    Unsupported{"reasoning_effort", "[\"none\"]"},
    Unsupported{"verbosity", "[\"medium\"]"},
    Unsupported{"web_search_options", "[]"},
    Unsupported{"service_tier", "[\"auto\", \"default\"]"},
    Unsupported{"store", "[false]"},
    // vLLM
    Unsupported{"guided_json", "[]", "'response_format'"},
    Unsupported{"guided_regex", "[]"},
    Unsupported{"guided_choice", "[]"},
    Unsupported{"guided_grammar", "[]"},
    Unsupported{"structured_outputs", "[{}]", "'response_format'"},
    Unsupported{"chat_template", "[]", "--chat-template of the server"},
    Unsupported{"documents", "[[]]"},
    Unsupported{"prompt_embeds", "[]"},
    Unsupported{"prompt_logprobs", "[]", "'echo' with 'logprobs'"},
    Unsupported{"allowed_token_ids", "[]", "'logit_bias'"},
    Unsupported{"bad_words", "[[]]", "'logit_bias'"},
    Unsupported{"truncate_prompt_tokens", "[]"},
    Unsupported{"use_beam_search", "[false]"},
    Unsupported{"length_penalty", "[1]"},
    Unsupported{"early_stopping", "[false]"},
    Unsupported{"return_token_ids", "[false]"},
    Unsupported{"return_tokens_as_token_ids", "[false]"},
    // llama.cpp
    Unsupported{"grammar", "[\"\"]"},
    Unsupported{"json_schema", "[{}]", "'response_format'"},
    Unsupported{"n_predict", "[]", "'max_tokens'"},
    Unsupported{"n_probs", "[0]", "'logprobs'"},
    Unsupported{"repeat_penalty", "[1]", "'repetition_penalty'"},
    Unsupported{"typical_p", "[1]"},
    Unsupported{"tfs_z", "[1]"},
    Unsupported{"top_n_sigma", "[-1]"},
    Unsupported{"mirostat", "[0]"},
    Unsupported{"dynatemp_range", "[0]"},
    Unsupported{"dry_multiplier", "[0]"},
    Unsupported{"xtc_probability", "[0]"},
};

bool equal(const json::value& a, const json::value& b) {
  if (a.is_number() && b.is_number()) return a.to_number<double>() == b.to_number<double>();
  return a == b;
}

}  // namespace

void refuse_unsupported(Fields& fields) {
  for (const auto& [name, neutral, instead] : kUnsupported) {
    const auto* value = fields.find(name);
    if (!value) continue;
    bool accepted = false;
    const json::value candidates = json::parse(neutral);
    for (const auto& candidate : candidates.as_array()) accepted = accepted || equal(*value, candidate);
    if (accepted) continue;
    const std::string use = *instead == '\0' ? "" : fmt::format("; use {}", instead);
    fields.fail(name, fmt::format("'{}' = {} is not supported{}.", name, describe(*value), use));
  }
}

}  // namespace lowkey::coordinator
