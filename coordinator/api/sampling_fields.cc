#include "coordinator/api/sampling_fields.h"

#include <charconv>

#include "base/grammar/json_schema.h"
#include "coordinator/text/stop_matcher.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxInt32 = 2147483647;
// OpenAI's for penalties and biases; of the repetition penalty, what keeps logits finite.
constexpr double kMaxPenalty = 2, kMaxBias = 100;
constexpr double kLeastRepetition = 0.01, kMostRepetition = 100;

void read_stop(Fields& fields, GenerationRequest& request) {
  const auto* value = fields.find("stop");
  if (!value) return;
  if (const auto* text = value->if_string()) {
    request.stop.push_back(to_string(*text));
  } else if (const auto* array = value->if_array()) {
    for (const auto& item : *array) {
      if (!item.is_string())
        return fields.fail("stop", fmt::format("'stop' must hold strings; found {}.", describe(item)));
      request.stop.push_back(to_string(item.get_string()));
    }
  } else {
    return fields.fail(
        "stop", fmt::format("'stop' must be a string or an array of strings; found {}.", describe(*value)));
  }
  if (auto checked = StopMatcher::create(request.stop); !checked.ok())
    fields.fail("stop", checked.error().message);
}

void read_stop_token_ids(Fields& fields, GenerationRequest& request) {
  const auto* value = fields.find("stop_token_ids");
  if (!value) return;
  const auto* array = value->if_array();
  if (!array || array->size() > GenerationRequest::kMaxTokenIds)
    return fields.fail("stop_token_ids",
                       fmt::format("'stop_token_ids' must be an array of at most {} token ids; "
                                   "found {}.",
                                   GenerationRequest::kMaxTokenIds, describe(*value)));
  read_token_ids(*array, fields, "stop_token_ids", request.stop_token_ids);
}

// {"token id": bias}
void read_logit_bias(Fields& fields, GenerationRequest& request) {
  const auto* value = fields.find("logit_bias");
  if (!value) return;
  const auto* object = value->if_object();
  if (!object || object->size() > GenerationRequest::kMaxTokenIds)
    return fields.fail("logit_bias",
                       fmt::format("'logit_bias' must be an object of at most {} token ids; found {}.",
                                   GenerationRequest::kMaxTokenIds, describe(*value)));
  for (const auto& entry : *object) {
    const std::string_view key(entry.key().data(), entry.key().size());
    int32_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc{} || end != key.data() + key.size() || token < 0)
      return fields.fail("logit_bias", fmt::format("The names in 'logit_bias' must be token ids; found {}.",
                                                   describe(json::value(entry.key()))));
    const auto& bias = entry.value();
    if (!bias.is_number() || !(std::abs(bias.to_number<double>()) <= kMaxBias))
      return fields.fail("logit_bias",
                         fmt::format("'logit_bias[{}]' must be a number from {} to {}; found {}.", token,
                                     -kMaxBias, kMaxBias, describe(bias)));
    request.logit_bias.emplace_back(token, static_cast<float>(bias.to_number<double>()));
  }
}

void read_penalties(Fields& fields, const SamplingDefaults& defaults, GenerationRequest& request) {
  request.presence_penalty = fields.number("presence_penalty", -kMaxPenalty, kMaxPenalty).value_or(0);
  request.frequency_penalty = fields.number("frequency_penalty", -kMaxPenalty, kMaxPenalty).value_or(0);
  request.repetition_penalty = fields.number("repetition_penalty", kLeastRepetition, kMostRepetition)
                                   .value_or(defaults.repetition_penalty);
}

void read_lengths(Fields& fields, GenerationRequest& request) {
  // Both names are OpenAI's; the newer one wins. None of the answer: with echo alone (read_choices).
  const bool chat = request.endpoint == Endpoint::kChat;
  auto max_tokens = fields.integer("max_tokens", chat ? 1 : 0, kMaxInt32);
  if (chat)
    if (auto newer = fields.integer("max_completion_tokens", 1, kMaxInt32)) max_tokens = newer;
  if (max_tokens) request.max_tokens = static_cast<uint32_t>(*max_tokens);
  const auto min_tokens = fields.integer("min_tokens", 0, kMaxInt32);
  request.min_tokens = static_cast<uint32_t>(min_tokens.value_or(0));
  if (max_tokens && request.min_tokens > request.max_tokens)
    fields.fail("min_tokens", fmt::format("'min_tokens' must be at most 'max_tokens', {}; found {}.",
                                          *max_tokens, request.min_tokens));
}

// {"type": "text" | "json_object"}, or {"type": "json_schema", "json_schema": {"name", "schema", "strict"}}
void read_response_format(Fields& fields, GenerationRequest& request) {
  const auto* value = fields.find("response_format");
  if (!value) return;
  const auto* object = value->if_object();
  if (!object)
    return fields.fail("response_format",
                       fmt::format("'response_format' must be an object; found {}.", describe(*value)));
  Fields format(*object, "response_format.");
  const auto type = format.text("type");
  if (!format.error() && type == "json_object") request.json_schema = R"({"type":"object"})";
  if (!format.error() && type == "json_schema") {
    const auto* outer = format.find("json_schema");
    const auto* inner = outer && outer->is_object() ? outer->get_object().if_contains("schema") : nullptr;
    if (!inner || !inner->is_object())
      format.fail("json_schema", "'response_format.json_schema' must be an object with an object 'schema'.");
    else
      request.json_schema = json::serialize(*inner);
  } else if (!format.error() && type != "text" && type != "json_object") {
    format.fail("type",
                fmt::format("'response_format.type' must be text, json_object or json_schema; found {}.",
                            type ? fmt::format("\"{}\"", *type) : "nothing"));
  }
  if (!format.error() && !request.json_schema.empty()) {
    if (const auto compiled = grammar::compile_json_schema(request.json_schema); !compiled.ok())
      format.fail("json_schema", fmt::format("'response_format.json_schema': {}.", compiled.error().message));
  }
  if (format.error()) fields.fail(format.error()->param, format.error()->message);
}

}  // namespace

bool read_token_ids(const json::array& array, Fields& fields, const char* name, std::vector<int32_t>& ids) {
  ids.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    const auto id = as_integer(array[i], 0, kMaxInt32);
    if (!id) {
      fields.fail(name, fmt::format("'{}[{}]' must be a token id; found {}.", fields.param(name), i,
                                    describe(array[i])));
      return false;
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return true;
}

void read_sampling(Fields& fields, const SamplingDefaults& defaults, GenerationRequest& request) {
  request.temperature = fields.number("temperature", 0, 2).value_or(defaults.temperature);
  request.top_p = fields.number("top_p", 0, 1).value_or(defaults.top_p);
  if (request.top_p == 0) fields.fail("top_p", "'top_p' must be greater than 0, and at most 1; found 0.");
  const int64_t top_k = fields.integer("top_k", -1, kMaxInt32).value_or(defaults.top_k);
  request.top_k = static_cast<int32_t>(std::max<int64_t>(top_k, 0));
  request.min_p = fields.number("min_p", 0, 1).value_or(defaults.min_p);
  if (auto seed = fields.integer("seed", INT64_MIN, INT64_MAX)) request.seed = static_cast<uint64_t>(*seed);
  read_penalties(fields, defaults, request);
  read_logit_bias(fields, request);
  read_lengths(fields, request);
  request.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  request.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  request.include_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  read_stop(fields, request);
  read_stop_token_ids(fields, request);
  read_response_format(fields, request);
  request.priority = static_cast<int32_t>(fields.integer("priority", -kMaxInt32, kMaxInt32).value_or(0));
  (void)fields.text("user");  // a string, and otherwise of no meaning here
}

}  // namespace lowkey::coordinator
