// Chat messages to the prompt text that a model was trained on: the Jinja subset that chat templates use.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lowkey::coordinator {

struct ChatMessage {
  std::string role;
  std::string content;
  std::optional<std::string> name;
};

// What a template is given beside the messages.
struct ChatOptions {
  bool add_generation_prompt = true;
  // The text ends with the last message's content, for the answer to go on from there; without
  // add_generation_prompt alone.
  bool continue_final_message = false;
  std::string variables;  // a JSON object: further names ("enable_thinking"); empty: none
};

// Immutable and thread-safe. Renders as transformers does (trim_blocks, lstrip_blocks). Supported: for (with
// if, else, loop), if, set, set blocks, namespaces, macros, break, continue, expressions, the usual filters,
// tests and string methods, raise_exception, strftime_now, range. Anything else is refused when parsed, with
// its line and name.
class ChatTemplate {
 public:
  static constexpr size_t kMaxSourceBytes = 1 << 20;

  // Code::kBadInput for syntax errors and unsupported constructs.
  static Result<ChatTemplate> parse(const std::string& source);
  // A model folder's chat_template.jinja, or else `chat_template` of its tokenizer_config.json (of several
  // named ones the one called "default"). Of a GGUF file the one in its metadata; of one without a tokenizer
  // the folder's. Empty when there is none.
  static Result<std::optional<ChatTemplate>> load(const std::filesystem::path& model);
  // Never empty.
  static Result<std::optional<ChatTemplate>> load_file(const std::filesystem::path& file);

  // An empty bos or eos counts as undefined. Code::kInvalidArgument, param "messages", when the template
  // refuses the messages or rendering them exceeds the limits on steps and text, or "chat_template_kwargs"
  // when the variables nest too deep.
  Result<std::string> render(std::span<const ChatMessage> messages, const ChatOptions& options,
                             std::string_view bos, std::string_view eos) const;

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace lowkey::coordinator
