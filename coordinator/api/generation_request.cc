#include "coordinator/api/generation_request.h"

#include <array>

#include "coordinator/api/json_fields.h"
#include "coordinator/api/sampling_fields.h"
#include "coordinator/api/unsupported_fields.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxLevels = 3;  // that any layout has

bool read_one_prompt(const json::value& value, Fields& fields, GenerationRequest& request) {
  if (const auto* text = value.if_string()) {
    request.inputs.emplace_back(to_string(*text));
  } else if (const auto* array = value.if_array()) {
    std::vector<int32_t> ids;
    if (!read_token_ids(*array, fields, "prompt", ids)) return false;
    request.inputs.emplace_back(std::move(ids));
  } else {
    fields.fail(
        "prompt",
        fmt::format("'prompt' must be a string, an array of token ids, or an array of these; found {}.",
                    describe(value)));
    return false;
  }
  return true;
}

// "text", [1, 2, 3], or an array of these.
void read_prompts(Fields& fields, GenerationRequest& request) {
  const auto* value = fields.find("prompt");
  if (!value) return fields.fail("prompt", "'prompt' is missing: a string or an array of token ids.");
  const auto* array = value->if_array();
  if (!array || array->empty() || array->front().is_number()) {
    read_one_prompt(*value, fields, request);
    return;
  }
  if (array->size() > GenerationRequest::kMaxChoices)
    return fields.fail("prompt", fmt::format("'prompt' must hold at most {} prompts; found {}.",
                                             GenerationRequest::kMaxChoices, array->size()));
  for (const auto& item : *array) {
    if (!read_one_prompt(item, fields, request)) return;
  }
}

// Choices for each prompt, and what completions alone have.
void read_choices(Fields& fields, GenerationRequest& request) {
  constexpr auto kMost = static_cast<int64_t>(GenerationRequest::kMaxChoices);
  request.n = static_cast<uint32_t>(fields.integer("n", 1, kMost).value_or(1));
  if (request.inputs.size() * request.n > GenerationRequest::kMaxChoices)
    fields.fail("n", fmt::format("'n' times the number of prompts must be at most {}; found {} times {}.",
                                 kMost, request.n, request.inputs.size()));
  request.echo = fields.boolean("echo").value_or(false);
  if (request.echo && request.endpoint == Endpoint::kChat)
    fields.fail("echo", "'echo' is for completions; a chat has no prompt text of its own.");
  if (request.max_tokens == 0u && !request.echo)
    fields.fail("max_tokens", "'max_tokens' must be at least 1 without 'echo'; found 0.");
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
      message.fail(
          where, fmt::format("'{}' must be an object; found {}.", message.param(where), describe(parts[i])));
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

// What vLLM's clients give the template. Names that are the server's own cannot be taken over.
void read_chat_options(Fields& fields, ChatOptions& options) {
  constexpr std::array<std::string_view, 8> kOurs = {"messages",
                                                     "add_generation_prompt",
                                                     "continue_final_message",
                                                     "tools",
                                                     "documents",
                                                     "chat_template",
                                                     "bos_token",
                                                     "eos_token"};
  const auto begins = fields.boolean("add_generation_prompt");
  options.continue_final_message = fields.boolean("continue_final_message").value_or(false);
  options.add_generation_prompt = begins.value_or(!options.continue_final_message);
  if (options.continue_final_message && options.add_generation_prompt)
    fields.fail("continue_final_message",
                "'continue_final_message' and 'add_generation_prompt' cannot both be true.");
  const auto* variables = fields.find("chat_template_kwargs");
  if (!variables) return;
  if (!variables->is_object())
    return fields.fail(
        "chat_template_kwargs",
        fmt::format("'chat_template_kwargs' must be an object; found {}.", describe(*variables)));
  for (const std::string_view name : kOurs)
    if (variables->get_object().contains({name.data(), name.size()}))
      return fields.fail("chat_template_kwargs",
                         fmt::format("'chat_template_kwargs.{}' cannot be set there.", name));
  options.variables = json::serialize(*variables);
  if (options.variables.size() > GenerationRequest::kMaxTemplateVariableBytes)
    fields.fail("chat_template_kwargs",
                fmt::format("'chat_template_kwargs' must have at most {} bytes; found {}.",
                            GenerationRequest::kMaxTemplateVariableBytes, options.variables.size()));
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
    // More than any layout has: with as many a page that came back through a lossy format would do.
    const auto levels = word && *word == "all" ? kMaxLevels + 1 : as_integer(*value, 1, kMaxLevels);
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
    read_prompts(fields, request);
  } else if (auto messages = read_messages(fields)) {
    request.messages = *std::move(messages);
    read_chat_options(fields, request.chat);
  }
  request.add_special_tokens =
      fields.boolean("add_special_tokens").value_or(endpoint == Endpoint::kCompletions);
  read_sampling(fields, defaults, request);
  read_choices(fields, request);
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
  const bool chat = fields.find("messages") != nullptr;
  request.add_special_tokens = fields.boolean("add_special_tokens").value_or(!chat);
  if (chat) {
    if (auto messages = read_messages(fields)) request.input = *std::move(messages);
    read_chat_options(fields, request.chat);
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
    fields.fail("tokens", fmt::format("'tokens' must be an array of token ids; found {}.",
                                      tokens ? describe(*tokens) : "nothing"));
  } else {
    read_token_ids(tokens->get_array(), fields, "tokens", request.tokens);
  }
  if (fields.error()) return *fields.error();
  return request;
}

}  // namespace lowkey::coordinator
