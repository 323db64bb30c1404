#include "coordinator/api/answer_json.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

// JSON has no infinity; what a token that was ruled out gets, as in other servers.
double finite(float logprob) {
  return std::isfinite(logprob) ? std::max<double>(logprob, -9999.0) : -9999.0;
}

// Text of a token; one that is a part of a character is written as OpenAI does: bytes:\xe2\x82.
std::string token_text(const std::string& bytes) {
  if (is_valid_utf8(bytes)) return bytes;
  std::string text = "bytes:";
  for (const unsigned char byte : bytes) text += fmt::format("\\x{:02x}", byte);
  return text;
}

json::object chat_token(const ScoredToken& token) {
  json::array bytes;
  for (const unsigned char byte : token.bytes) bytes.emplace_back(byte);
  return {
      {"token", token_text(token.bytes)}, {"logprob", finite(token.logprob)}, {"bytes", std::move(bytes)}};
}

json::value chat_logprobs(const std::vector<TokenDetail>& details) {
  json::array content;
  for (const auto& detail : details) {
    json::array top;
    for (const auto& token : detail.top) top.push_back(chat_token(token));
    json::object entry = chat_token(detail.token);
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

json::value completion_logprobs(const std::vector<TokenDetail>& details) {
  json::array tokens, logprobs, tops, offsets;
  for (const auto& detail : details) {
    tokens.emplace_back(token_text(detail.token.bytes));
    offsets.emplace_back(detail.text_offset);
    if (!detail.scored) {
      logprobs.emplace_back(nullptr);
      tops.emplace_back(nullptr);
      continue;
    }
    logprobs.emplace_back(finite(detail.token.logprob));
    json::object top;
    for (const auto& token : detail.top) top[token_text(token.bytes)] = finite(token.logprob);
    top.emplace(token_text(detail.token.bytes),
                finite(detail.token.logprob));  // the sampled one is always there
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

json::value logprobs_value(Endpoint endpoint, const std::optional<std::vector<TokenDetail>>& details) {
  if (!details) return nullptr;
  return endpoint == Endpoint::kChat ? chat_logprobs(*details) : completion_logprobs(*details);
}

json::value finish_value(Finish finish) {
  return finish == Finish::kNone ? json::value(nullptr) : json::value(to_string(finish));
}

json::object usage_value(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details",
           {{"cached_tokens", usage.cached_tokens},
            {"cached_tokens_by_tier",
             {{"device", usage.cached_tokens - usage.cached_host - usage.cached_disk},
              {"host", usage.cached_host},
              {"disk", usage.cached_disk}}}}}};
}

void add_cache(json::object& object, const CacheUse& cache) {
  if (!cache.coarse()) return;
  object["kv"] = {{"levels", cache.levels},
                  {"lowest_levels_read", cache.lowest_levels_read},
                  {"coarse_tokens", cache.coarse_tokens}};
}

json::object envelope(const AnswerIdentity& identity, const char* object) {
  return {{"id", identity.id},
          {"object", object},
          {"created", identity.created},
          {"model", identity.model},
          {"system_fingerprint", identity.system_fingerprint}};
}

const char* chunk_object(Endpoint endpoint) {
  return endpoint == Endpoint::kChat ? "chat.completion.chunk" : "text_completion";
}

std::string event(const json::object& object) {
  return "data: " + json::serialize(object) + "\n\n";
}

std::string choice_event(const AnswerIdentity& identity, json::object choice, bool include_usage,
                         const CacheUse* cache = nullptr) {
  json::object object = envelope(identity, chunk_object(identity.endpoint));
  object["choices"] = json::array{std::move(choice)};
  if (include_usage) object["usage"] = nullptr;
  if (cache) add_cache(object, *cache);
  return event(object);
}

}  // namespace

const char* to_string(Finish finish) {
  switch (finish) {
    case Finish::kNone:
      return "";
    case Finish::kStop:
      return "stop";
    case Finish::kLength:
      return "length";
  }
  return "";
}

std::string whole_answer(const AnswerIdentity& identity, std::span<const ChoiceText> choices,
                         const Usage& usage, const CacheUse& cache) {
  const bool chat = identity.endpoint == Endpoint::kChat;
  json::object object = envelope(identity, chat ? "chat.completion" : "text_completion");
  json::array all;
  for (const ChoiceText& one : choices) {
    json::object choice = {{"index", one.index}};
    if (chat) {
      choice["message"] = {{"role", "assistant"}, {"content", one.text}, {"refusal", nullptr}};
    } else {
      choice["text"] = one.text;
    }
    choice["logprobs"] = logprobs_value(identity.endpoint, one.details);
    choice["finish_reason"] = finish_value(one.finish);
    all.push_back(std::move(choice));
  }
  object["choices"] = std::move(all);
  object["usage"] = usage_value(usage);
  add_cache(object, cache);
  return json::serialize(object);
}

std::string role_event(const AnswerIdentity& identity, size_t index, bool include_usage) {
  json::object choice = {{"index", index},
                         {"delta", {{"role", "assistant"}, {"content", ""}}},
                         {"logprobs", nullptr},
                         {"finish_reason", nullptr}};
  return choice_event(identity, std::move(choice), include_usage);
}

std::string text_event(const AnswerIdentity& identity, const ChoiceText& one, bool include_usage,
                       const CacheUse* cache) {
  json::object choice = {{"index", one.index}};
  if (identity.endpoint == Endpoint::kChat) {
    choice["delta"] = one.text.empty() ? json::object() : json::object{{"content", one.text}};
  } else {
    choice["text"] = one.text;
  }
  choice["logprobs"] = logprobs_value(identity.endpoint, one.details);
  choice["finish_reason"] = finish_value(one.finish);
  return choice_event(identity, std::move(choice), include_usage, cache);
}

std::string usage_event(const AnswerIdentity& identity, const Usage& usage) {
  json::object object = envelope(identity, chunk_object(identity.endpoint));
  object["choices"] = json::array();
  object["usage"] = usage_value(usage);
  return event(object);
}

std::string done_event() {
  return "data: [DONE]\n\n";
}

std::string error_event(const std::string& error_body) {
  return "event: error\ndata: " + error_body + "\n\n";
}

}  // namespace lowkey::coordinator
