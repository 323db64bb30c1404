#include "coordinator/api/generation_request.h"

#include <array>

#include "coordinator/api/json_fields.h"
#include "coordinator/text/stop_matcher.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxInt32 = 2147483647;
constexpr int64_t kMaxLevels = 3;  // that any layout has

std::string to_string(const json::string& text) {
  return std::string(text.data(), text.size());
}

// OpenAI's parameters, and the commonest extensions, that we cannot honour: accepted with a value that
// changes nothing, refused by name with any other.
struct Unsupported {
  const char* name;
  const char* neutral;  // JSON array of the values that are accepted
};
constexpr std::array kUnsupported = {
    Unsupported{"n", "[1]"},
    Unsupported{"best_of", "[1]"},
    Unsupported{"echo", "[false]"},
    Unsupported{"suffix", "[\"\"]"},
    Unsupported{"presence_penalty", "[0]"},
    Unsupported{"frequency_penalty", "[0]"},
    Unsupported{"repetition_penalty", "[1]"},
    Unsupported{"min_p", "[0]"},
    Unsupported{"min_tokens", "[0]"},
    Unsupported{"logit_bias", "[{}]"},
    Unsupported{"tools", "[[]]"},
    Unsupported{"tool_choice", "[\"none\", \"auto\"]"},
    Unsupported{"functions", "[[]]"},
    Unsupported{"function_call", "[\"none\", \"auto\"]"},
    Unsupported{"response_format", "[{\"type\": \"text\"}]"},
    Unsupported{"modalities", "[[\"text\"]]"},
    Unsupported{"audio", "[]"},
    Unsupported{"prediction", "[]"},
    Unsupported{"reasoning_effort", "[\"none\"]"},
    Unsupported{"verbosity", "[\"medium\"]"},
    Unsupported{"web_search_options", "[]"},
    Unsupported{"service_tier", "[\"auto\", \"default\"]"},
    Unsupported{"store", "[false]"},
};

bool equal(const json::value& a, const json::value& b) {
  if (a.is_number() && b.is_number()) return a.to_number<double>() == b.to_number<double>();
  return a == b;
}

void refuse_unsupported(Fields& fields) {
  for (const auto& [name, neutral] : kUnsupported) {
    const auto* value = fields.find(name);
    if (!value) continue;
    bool accepted = false;
    const json::value candidates = json::parse(neutral);
    for (const auto& candidate : candidates.as_array()) accepted = accepted || equal(*value, candidate);
    if (!accepted) fields.fail(name, fmt::format("'{}' = {} is not supported.", name, describe(*value)));
  }
}

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

// "text", ["text"], [1, 2, 3] or [[1, 2, 3]].
void read_prompt(Fields& fields, GenerationRequest& request) {
  const auto* value = fields.find("prompt");
  if (!value) return fields.fail("prompt", "'prompt' is missing: a string or an array of token ids.");
  if (const auto* array = value->if_array(); array && !array->empty() && !array->front().is_number()) {
    if (array->size() > 1)
      return fields.fail(
          "prompt",
          fmt::format("'prompt' holds {} prompts; only one per request is supported.", array->size()));
    value = &array->front();
  }
  if (const auto* text = value->if_string()) {
    request.input = to_string(*text);
  } else if (const auto* array = value->if_array()) {
    std::vector<int32_t> ids;
    if (read_token_ids(*array, fields, "prompt", ids)) request.input = std::move(ids);
  } else {
    fields.fail("prompt", fmt::format("'prompt' must be a string or an array of token ids; found {}.",
                                      describe(*value)));
  }
}

// A string, or a list of {"type": "text", "text": ...}, joined by line breaks.
std::optional<std::string> read_content(Fields& message) {
  const auto* value = message.find("content");
  if (!value) {
    message.fail("content", fmt::format("'{}' is missing.", message.param("content")));
    return std::nullopt;
  }
  if (!value->is_array()) return message.text("content");
  std::string joined;
  const auto& parts = value->get_array();
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string where = fmt::format("content[{}]", i);
    if (!parts[i].is_object()) {
      message.fail(where, fmt::format("'{}' must be an object.", message.param(where)));
      return std::nullopt;
    }
    Fields part(parts[i].get_object(), message.param(where) + ".");
    const auto type = part.text("type");
    if (!part.error() && type != "text")
      part.fail("type", fmt::format("'{}': only \"text\" is supported; found {}.", part.param("type"),
                                    type ? fmt::format("\"{}\"", *type) : "nothing"));
    const auto text = part.text("text");
    if (!part.error() && !text) part.fail("text", fmt::format("'{}' is missing.", part.param("text")));
    if (part.error()) {
      message.fail(where + part.error()->param.substr(message.param(where).size()), part.error()->message);
      return std::nullopt;
    }
    if (i > 0) joined += '\n';
    joined += *text;
  }
  return joined;
}

std::optional<std::vector<ChatMessage>> read_messages(Fields& fields) {
  const auto* value = fields.find("messages");
  if (!value || !value->is_array() || value->get_array().empty()) {
    fields.fail("messages", fmt::format("'messages' must be a non-empty array of messages; found {}.",
                                        value ? describe(*value) : "nothing"));
    return std::nullopt;
  }
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < value->get_array().size(); ++i) {
    const auto& item = value->get_array()[i];
    const std::string where = fmt::format("messages[{}]", i);
    if (!item.is_object()) {
      fields.fail(where, fmt::format("'{}' must be an object; found {}.", where, describe(item)));
      return std::nullopt;
    }
    Fields message(item.get_object(), where + ".");
    auto role = message.text("role");
    if (!message.error() && role != "system" && role != "developer" && role != "user" && role != "assistant")
      message.fail("role",
                   fmt::format("'{}' must be system, developer, user or assistant; found {}.",
                               message.param("role"), role ? fmt::format("\"{}\"", *role) : "nothing"));
    for (const char* name : {"tool_calls", "function_call", "audio"})
      if (message.find(name)) message.fail(name, fmt::format("'{}' is not supported.", message.param(name)));
    auto name = message.text("name");
    auto content = read_content(message);
    if (message.error()) {
      fields.fail(message.error()->param, message.error()->message);
      return std::nullopt;
    }
    // "developer" is OpenAI's newer word for the same; templates know "system".
    messages.push_back({*role == "developer" ? "system" : *role, *std::move(content), std::move(name)});
  }
  return messages;
}

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

void read_sampling(Fields& fields, const SamplingDefaults& defaults, GenerationRequest& request) {
  request.temperature = fields.number("temperature", 0, 2).value_or(defaults.temperature);
  request.top_p = fields.number("top_p", 0, 1).value_or(defaults.top_p);
  if (request.top_p == 0) fields.fail("top_p", "'top_p' must be greater than 0, and at most 1; found 0.");
  const int64_t top_k = fields.integer("top_k", -1, kMaxInt32).value_or(defaults.top_k);
  request.top_k = static_cast<int32_t>(std::max<int64_t>(top_k, 0));
  if (auto seed = fields.integer("seed", INT64_MIN, INT64_MAX)) request.seed = static_cast<uint64_t>(*seed);
  request.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  // Both names are OpenAI's; the newer one wins.
  auto max_tokens = fields.integer("max_tokens", 1, kMaxInt32);
  if (request.endpoint == Endpoint::kChat)
    if (auto newer = fields.integer("max_completion_tokens", 1, kMaxInt32)) max_tokens = newer;
  if (max_tokens) request.max_tokens = static_cast<uint32_t>(*max_tokens);
  read_stop(fields, request);
}

void read_logprobs(Fields& fields, GenerationRequest& request) {
  if (request.endpoint == Endpoint::kCompletions) {
    const auto count = fields.integer("logprobs", 0, 5);
    request.logprobs = count.has_value();
    request.top_logprobs = static_cast<uint32_t>(count.value_or(0));
    return;
  }
  request.logprobs = fields.boolean("logprobs").value_or(false);
  const auto count = fields.integer("top_logprobs", 0, 20);
  if (count.value_or(0) > 0 && !request.logprobs)
    fields.fail("top_logprobs", "'top_logprobs' needs 'logprobs': true.");
  request.top_logprobs = static_cast<uint32_t>(count.value_or(0));
}

void read_stream(Fields& fields, GenerationRequest& request) {
  request.stream = fields.boolean("stream").value_or(false);
  const auto* options = fields.find("stream_options");
  if (!options) return;
  if (!options->is_object())
    return fields.fail("stream_options",
                       fmt::format("'stream_options' must be an object; found {}.", describe(*options)));
  if (!request.stream) return fields.fail("stream_options", "'stream_options' needs 'stream': true.");
  Fields inner(options->get_object(), "stream_options.");
  request.include_usage = inner.boolean("include_usage").value_or(false);
  if (inner.error()) fields.fail("stream_options.include_usage", inner.error()->message);
}

// Our own: how the cache is used for this request.
void read_cache(Fields& fields, GenerationRequest& request) {
  if (const auto* value = fields.find("min_levels")) {
    const auto* word = value->if_string();
    const auto levels = word && *word == "all" ? kMaxLevels : as_integer(*value, 1, kMaxLevels);
    if (!levels)
      return fields.fail("min_levels",
                         fmt::format("'min_levels' must be an integer from 1 to {} or \"all\"; found {}.",
                                     kMaxLevels, describe(*value)));
    request.min_levels = static_cast<uint32_t>(*levels);
  }
  request.cache_salt = fields.text("cache_salt").value_or("");
  if (const size_t bytes = request.cache_salt.size(); bytes > GenerationRequest::kMaxCacheSaltBytes)
    fields.fail("cache_salt", fmt::format("'cache_salt' must have at most {} bytes; found {}.",
                                          GenerationRequest::kMaxCacheSaltBytes, bytes));
}

}  // namespace

Result<GenerationRequest> parse_generation(Endpoint endpoint, std::string_view body,
                                           const SamplingDefaults& defaults) {
  LOWKEY_ASSIGN(object, parse_object(body));
  Fields fields(object);
  GenerationRequest request;
  request.endpoint = endpoint;
  request.model = fields.text("model").value_or("");
  if (endpoint == Endpoint::kCompletions) {
    read_prompt(fields, request);
  } else if (auto messages = read_messages(fields)) {
    request.input = *std::move(messages);
  }
  read_sampling(fields, defaults, request);
  read_logprobs(fields, request);
  read_stream(fields, request);
  read_cache(fields, request);
  refuse_unsupported(fields);
  if (fields.error()) return *fields.error();
  return request;
}

Result<TokenizeRequest> parse_tokenize(std::string_view body) {
  LOWKEY_ASSIGN(object, parse_object(body));
  Fields fields(object);
  TokenizeRequest request;
  request.model = fields.text("model").value_or("");
  request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  request.add_generation_prompt = fields.boolean("add_generation_prompt").value_or(true);
  if (fields.find("messages")) {
    if (auto messages = read_messages(fields)) request.input = *std::move(messages);
  } else if (auto text = fields.text("prompt")) {
    request.input = *std::move(text);
  } else {
    fields.fail("prompt", "'prompt' (a string) or 'messages' is missing.");
  }
  if (fields.error()) return *fields.error();
  return request;
}

Result<DetokenizeRequest> parse_detokenize(std::string_view body) {
  LOWKEY_ASSIGN(object, parse_object(body));
  Fields fields(object);
  DetokenizeRequest request;
  request.model = fields.text("model").value_or("");
  const auto* tokens = fields.find("tokens");
  if (!tokens || !tokens->is_array()) {
    fields.fail("tokens", "'tokens' must be an array of token ids.");
  } else {
    read_token_ids(tokens->get_array(), fields, "tokens", request.tokens);
  }
  if (fields.error()) return *fields.error();
  return request;
}

}  // namespace lowkey::coordinator
