#include "coordinator/api/served_model.h"

#include <spdlog/spdlog.h>

#include <boost/json.hpp>
#include <chrono>
#include <fstream>
#include <sstream>

#include "base/gguf/gguf_file.h"
#include "coordinator/api/json_fields.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

Error in_file(const fs::path& file, const Error& error) {
  return Error{Code::kBadInput, fmt::format("{}: {}", file.string(), error.message), error.param};
}

Result<json::object> read_json(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) return Error{Code::kBadInput, fmt::format("{}: cannot be opened", file.string())};
  std::ostringstream text;
  text << stream.rdbuf();
  auto object = parse_object(text.str());
  if (!object.ok()) return in_file(file, object.error());
  return object;
}

Status read_config(const fs::path& file, ServedModel& model) {
  LOWKEY_ASSIGN(object, read_json(file));
  Fields fields(object);
  const auto positions = fields.integer("max_position_embeddings", 1, INT32_MAX);
  const auto vocab = fields.integer("vocab_size", 1, INT32_MAX);
  if (fields.error()) return in_file(file, *fields.error());
  if (!positions || !vocab)
    return Error{Code::kBadInput, fmt::format("{}: '{}' is missing", file.string(),
                                              positions ? "vocab_size" : "max_position_embeddings")};
  model.max_tokens = static_cast<uint32_t>(*positions);
  model.vocab_size = static_cast<int32_t>(*vocab);
  return {};
}

// Of a GGUF file: the same two numbers, and how its author wants it sampled.
Status read_gguf(const fs::path& file, ServedModel& model) {
  LOWKEY_ASSIGN(opened, GgufFile::open(file));
  const GgufHeader& header = opened.header;
  const std::string* architecture = header.text("general.architecture");
  const auto positions = header.integer((architecture == nullptr ? "" : *architecture) + ".context_length");
  const auto embedding = header.tensors.find("token_embd.weight");
  const auto fits = [](int64_t value) { return value >= 1 && value <= INT32_MAX; };
  if (!positions || !fits(*positions) || embedding == header.tensors.end() ||
      !fits(embedding->second.shape.front()))
    return Error{Code::kBadInput,
                 fmt::format("{}: expected a context_length and a tensor token_embd.weight, found {}",
                             file.string(), positions ? "no tensor" : "no length")};
  model.max_tokens = static_cast<uint32_t>(*positions);
  model.vocab_size = static_cast<int32_t>(embedding->second.shape.front());
  const auto value = [&](const char* key, double low, double high, double usual) {
    const double found = header.number(key).value_or(usual);
    return found >= low && found <= high ? found : usual;
  };
  SamplingDefaults& defaults = model.defaults;
  defaults.temperature = value("general.sampling.temp", 0, 2, defaults.temperature);
  defaults.top_p = value("general.sampling.top_p", 1e-6, 1, defaults.top_p);
  defaults.top_k = static_cast<int32_t>(value("general.sampling.top_k", 0, INT32_MAX, defaults.top_k));
  defaults.min_p = value("general.sampling.min_p", 0, 1, defaults.min_p);
  defaults.repetition_penalty =
      value("general.sampling.penalty_repeat", 0.01, 100, defaults.repetition_penalty);
  return {};
}

Status read_defaults(const fs::path& file, SamplingDefaults& defaults) {
  if (!fs::exists(file)) return {};
  LOWKEY_ASSIGN(object, read_json(file));
  Fields fields(object);
  defaults.temperature = fields.number("temperature", 0, 2).value_or(defaults.temperature);
  defaults.top_p = fields.number("top_p", 1e-6, 1).value_or(defaults.top_p);
  defaults.top_k = static_cast<int32_t>(fields.integer("top_k", 0, INT32_MAX).value_or(defaults.top_k));
  defaults.min_p = fields.number("min_p", 0, 1).value_or(defaults.min_p);
  defaults.repetition_penalty =
      fields.number("repetition_penalty", 0.01, 100).value_or(defaults.repetition_penalty);
  if (fields.error()) return in_file(file, *fields.error());
  return {};
}

Status check_ids(const ServedModel& model, const std::vector<int32_t>& ids, const char* param) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < model.vocab_size) continue;
    return invalid_param(param, fmt::format("'{}[{}]': the model has token ids from 0 to {}; found {}.",
                                            param, i, model.vocab_size - 1, ids[i]));
  }
  return {};
}

// The template writes the special tokens itself, unless `add_special_tokens` wants them on top.
Result<std::vector<int32_t>> encode_messages(const ServedModel& model,
                                             const std::vector<ChatMessage>& messages,
                                             const ChatOptions& options, bool add_special_tokens) {
  if (!model.chat_template) {
    const std::string why = model.chat_template_error.empty()
                                ? "has no chat template"
                                : "has a chat template that cannot be used: " + model.chat_template_error;
    return invalid_param("messages", fmt::format("Model {} {}; use /v1/completions.", model.id, why));
  }
  const Tokenizer& tokenizer = *model.tokenizer;
  LOWKEY_ASSIGN(text,
                model.chat_template->render(messages, options, tokenizer.bos_text(), tokenizer.eos_text()));
  return tokenizer.encode(text, add_special_tokens);
}

// A template that was asked for has to work; without the model's own, completions still do.
Status load_chat_template(const fs::path& model_dir, const fs::path& file, ServedModel& model) {
  auto loaded = file.empty() ? ChatTemplate::load(model_dir) : ChatTemplate::load_file(file);
  if (!loaded.ok() && !file.empty()) return loaded.error();
  if (!loaded.ok()) {
    model.chat_template_error = loaded.error().message;
    spdlog::warn("{}; chat requests are refused, --chat-template FILE gives another one",
                 loaded.error().message);
  } else if (*loaded) {
    model.chat_template = std::make_shared<const ChatTemplate>(*std::move(*loaded));
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<const ServedModel>> ServedModel::load(const fs::path& model_dir,
                                                             const ServedModelOptions& options) {
  auto model = std::make_shared<ServedModel>();
  const bool gguf = is_gguf(model_dir);
  model->id = options.id.empty() ? model_name(model_dir) : options.id;
  model->created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
          .count();
  LOWKEY_TRY(gguf ? read_gguf(model_dir, *model) : read_config(model_dir / "config.json", *model));
  if (!gguf) LOWKEY_TRY(read_defaults(model_dir / "generation_config.json", model->defaults));
  if (options.max_tokens) model->max_tokens = *options.max_tokens;
  LOWKEY_ASSIGN(tokenizer, Tokenizer::load(model_dir));
  model->tokenizer = std::move(tokenizer);
  LOWKEY_TRY(load_chat_template(model_dir, options.chat_template, *model));
  return std::shared_ptr<const ServedModel>(std::move(model));
}

Status encode_prompts(const ServedModel& model, GenerationRequest& request) {
  LOWKEY_TRY(check_ids(model, request.stop_token_ids, "stop_token_ids"));
  for (const auto& [token, bias] : request.logit_bias) LOWKEY_TRY(check_ids(model, {token}, "logit_bias"));
  const char* param = request.endpoint == Endpoint::kChat ? "messages" : "prompt";
  if (request.endpoint == Endpoint::kChat) {
    LOWKEY_ASSIGN(encoded,
                  encode_messages(model, request.messages, request.chat, request.add_special_tokens));
    request.prompts.push_back(std::move(encoded));
  }
  for (Prompt& input : request.inputs) {
    if (auto* ids = std::get_if<std::vector<int32_t>>(&input)) {
      LOWKEY_TRY(check_ids(model, *ids, param));
      request.prompts.push_back(std::move(*ids));
      if (request.echo) request.texts.emplace_back();
    } else {
      auto& text = std::get<std::string>(input);
      request.prompts.push_back(model.tokenizer->encode(text, request.add_special_tokens));
      if (request.echo) request.texts.push_back(std::move(text));
    }
  }
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    if (!request.prompts[i].empty()) continue;
    const std::string which =
        request.prompts.size() > 1 ? fmt::format("'{}[{}]'", param, i) : fmt::format("'{}'", param);
    return invalid_param(param, which + " holds no tokens.");
  }
  request.inputs = {};  // not needed any more
  request.messages = {};
  return {};
}

Result<std::vector<int32_t>> encode(const ServedModel& model, const TokenizeRequest& request) {
  if (const auto* text = std::get_if<std::string>(&request.input))
    return model.tokenizer->encode(*text, request.add_special_tokens);
  return encode_messages(model, std::get<std::vector<ChatMessage>>(request.input), request.chat,
                         request.add_special_tokens);
}

}  // namespace lowkey::coordinator
