#include "coordinator/text/chat_template.h"

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include "base/gguf/gguf_file.h"
#include "coordinator/text/file.h"
#include "coordinator/text/jinja_interpreter.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/json_node.h"
#include "coordinator/text/json_parse.h"
#include "coordinator/text/utf8.h"

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

std::string_view name_of(const boost::json::key_value_pair& entry) {
  return {entry.key().data(), entry.key().size()};
}

jinja::Value value_of(const boost::json::value& json) {
  switch (json.kind()) {
    case boost::json::kind::null:
      return jinja::Value();
    case boost::json::kind::bool_:
      return jinja::Value(json.get_bool());
    case boost::json::kind::int64:
      return jinja::Value(json.get_int64());
    case boost::json::kind::string:
      return jinja::Value(std::string(json.get_string().data(), json.get_string().size()));
    case boost::json::kind::array: {
      jinja::List list;
      for (const auto& item : json.get_array()) list.push_back(value_of(item));
      return jinja::Value(std::move(list));
    }
    case boost::json::kind::object: {
      jinja::Dict dict;
      for (const auto& entry : json.get_object()) dict.set(name_of(entry), value_of(entry.value()));
      return jinja::Value(std::move(dict));
    }
    default:
      return jinja::Value(json.to_number<double>());
  }
}

boost::json::object parse_variables(const std::string& variables) {
  if (variables.empty()) return {};
  boost::system::error_code ec;
  const boost::json::value json = boost::json::parse(variables, ec);
  if (ec || !json.is_object()) throw jinja::TemplateError{"expected an object of variables"};
  return json.get_object();
}

// As transformers cuts it: behind the content where it was written last, with the white space at its end
// where the template keeps that.
Result<std::string> cut_behind(std::string text, std::string_view content) {
  const std::string_view whole = trim_whitespace(content, true, false);
  const std::string_view trimmed = trim_whitespace(whole, false, true);
  const size_t at = text.rfind(trimmed);
  if (at == std::string::npos)
    return Error{Code::kInvalidArgument,
                 "'continue_final_message': the chat template changes the last message, which cannot be "
                 "continued.",
                 "continue_final_message"};
  const bool kept = text.compare(at, whole.size(), whole) == 0;
  text.resize(at + (kept ? whole : trimmed).size());
  return text;
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

namespace {

Result<std::optional<ChatTemplate>> parse_from(const std::string& where, const std::string& source) {
  auto parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return prefixed(where, parsed.error());
  return std::optional<ChatTemplate>(std::move(parsed).value());
}

}  // namespace

Result<std::optional<ChatTemplate>> ChatTemplate::load_file(const std::filesystem::path& file) {
  LOWKEY_ASSIGN(source, read_text_file(file));
  if (!source) return Error{Code::kBadInput, fmt::format("{}: cannot be opened", file.string()), {}};
  return parse_from(file.string(), *source);
}

Result<std::optional<ChatTemplate>> ChatTemplate::load(const std::filesystem::path& model) {
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

Result<std::string> ChatTemplate::render(std::span<const ChatMessage> messages, const ChatOptions& options,
                                         std::string_view bos, std::string_view eos) const {
  boost::json::object variables;  // the interpreter refers to their names
  jinja::Interpreter interpreter;
  const char* param = "chat_template_kwargs";
  try {
    variables = parse_variables(options.variables);
    for (const auto& entry : variables) interpreter.define(name_of(entry), value_of(entry.value()));
    param = "messages";
    jinja::List list;
    for (const ChatMessage& message : messages) list.push_back(message_value(message));
    interpreter.define("messages", jinja::Value(std::move(list)));
    interpreter.define("add_generation_prompt", jinja::Value(options.add_generation_prompt));
    interpreter.define("tools", jinja::Value());
    interpreter.define("documents", jinja::Value());
    if (!bos.empty()) interpreter.define("bos_token", jinja::Value(std::string(bos)));
    if (!eos.empty()) interpreter.define("eos_token", jinja::Value(std::string(eos)));
    std::string text = interpreter.run(impl_->block);
    if (options.continue_final_message && !messages.empty())
      return cut_behind(std::move(text), messages.back().content);
    return text;
  } catch (const jinja::TemplateError& error) {
    return Error{Code::kInvalidArgument,
                 fmt::format("chat template, line {}: {}", interpreter.line(), error.message), param};
  }
}

}  // namespace lowkey::coordinator
