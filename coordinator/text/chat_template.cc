#include "coordinator/text/chat_template.h"

#include <boost/json/value.hpp>

#include "base/gguf/gguf_file.h"
#include "coordinator/text/file.h"
#include "coordinator/text/jinja_interpreter.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/json_node.h"
#include "coordinator/text/json_parse.h"

namespace lowkey::coordinator {
namespace {

jinja::Value message_value(const ChatMessage& message) {
  jinja::Dict dict;
  dict.set("role", jinja::Value(message.role));
  dict.set("content", jinja::Value(message.content));
  if (message.name) dict.set("name", jinja::Value(*message.name));
  return jinja::Value(std::move(dict));
}

Error prefixed(const std::string& where, const Error& error) {
  return {error.code, where + ": " + error.message, {}};
}

// A string, or a list of {"name", "template"}.
Result<std::optional<std::string>> source_in(const JsonNode& config) {
  const auto node = config.child("chat_template");
  if (!node) return std::optional<std::string>();
  if (!node->value().is_array()) {
    LOWKEY_ASSIGN(source, config.string("chat_template"));
    return std::optional(source);
  }
  LOWKEY_ASSIGN(entries, config.array("chat_template"));
  for (const JsonNode& entry : entries) {
    LOWKEY_ASSIGN(name, entry.string("name"));
    LOWKEY_ASSIGN(source, entry.string("template"));
    if (name == "default") return std::optional(source);
  }
  return node->bad("expected a template named 'default', found none");
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Block block;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::parse(const std::string& source) {
  if (source.size() > kMaxSourceBytes) {
    return Error{
        Code::kBadInput,
        fmt::format("chat template: expected at most {} bytes, found {}", kMaxSourceBytes, source.size()),
        {}};
  }
  try {
    auto impl = std::make_unique<Impl>();
    impl->block = jinja::parse(source);
    return ChatTemplate(std::move(impl));
  } catch (const jinja::SyntaxError& error) {
    return Error{Code::kBadInput, fmt::format("chat template, line {}: {}", error.line, error.message), {}};
  }
}

Result<std::optional<ChatTemplate>> ChatTemplate::load(const std::filesystem::path& model) {
  const auto parse_from = [](const std::string& where,
                             const std::string& source) -> Result<std::optional<ChatTemplate>> {
    auto parsed = parse(source);
    if (!parsed.ok()) return prefixed(where, parsed.error());
    return std::optional<ChatTemplate>(std::move(parsed).value());
  };
  if (is_gguf(model)) {
    LOWKEY_ASSIGN(gguf, GgufFile::open(model));
    if (const std::string* source = gguf.header.text("tokenizer.chat_template"))
      return parse_from(model.string(), *source);
    if (gguf.header.text("tokenizer.ggml.model") != nullptr) return std::optional<ChatTemplate>();
    return load(model.parent_path());
  }
  const auto file = model / "chat_template.jinja";
  LOWKEY_ASSIGN(own_file, read_text_file(file));
  if (own_file) return parse_from(file.string(), *own_file);

  const auto config_file = model / "tokenizer_config.json";
  LOWKEY_ASSIGN(config_text, read_text_file(config_file));
  if (!config_text) return std::optional<ChatTemplate>();
  LOWKEY_ASSIGN(config, parse_json(*config_text, config_file.string(), {}));
  LOWKEY_ASSIGN(source, source_in(JsonNode(config, config_file.string())));
  if (!source) return std::optional<ChatTemplate>();
  return parse_from(config_file.string(), *source);
}

Result<std::string> ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                         std::string_view bos, std::string_view eos) const {
  jinja::Interpreter interpreter;
  jinja::List list;
  for (const ChatMessage& message : messages) list.push_back(message_value(message));
  interpreter.define("messages", jinja::Value(std::move(list)));
  interpreter.define("add_generation_prompt", jinja::Value(add_generation_prompt));
  interpreter.define("tools", jinja::Value());
  interpreter.define("documents", jinja::Value());
  if (!bos.empty()) interpreter.define("bos_token", jinja::Value(std::string(bos)));
  if (!eos.empty()) interpreter.define("eos_token", jinja::Value(std::string(eos)));
  try {
    return interpreter.run(impl_->block);
  } catch (const jinja::TemplateError& error) {
    return Error{Code::kInvalidArgument,
                 fmt::format("chat template, line {}: {}", interpreter.line(), error.message), "messages"};
  }
}

}  // namespace lowkey::coordinator
