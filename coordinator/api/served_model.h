// What the coordinator knows of the model it serves: its name, limits, defaults, tokenizer and chat template.
// Immutable after loading; shared by all threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "coordinator/api/generation_request.h"

namespace lowkey::coordinator {

class Tokenizer;
class ChatTemplate;

struct ServedModelOptions {
  std::optional<uint32_t> max_tokens;   // that the workers serve; empty: config.json's
  std::string id;                       // empty: model_name()
  std::filesystem::path chat_template;  // a file in place of the model's own; empty: that
};

struct ServedModel {
  std::string id;
  int64_t created = 0;      // Unix time at which it was loaded
  uint32_t max_tokens = 0;  // prompt + answer
  int32_t vocab_size = 0;   // rows of the embedding: larger ids are refused
  SamplingDefaults defaults;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;  // null: none that can be used
  std::string chat_template_error;                    // why the model's own cannot; empty: it has none

  // Reads config.json, generation_config.json (may be absent), tokenizer and chat template; of a GGUF file
  // its metadata in place of all of them. Code::kBadInput names file, field, expected and found; a model's
  // chat template that cannot be used is no error: it is told in the log and to whoever wants to chat.
  static Result<std::shared_ptr<const ServedModel>> load(const std::filesystem::path& model_dir,
                                                         const ServedModelOptions& options = {});
};

// Applies the template, tokenizes; sets request.prompts. kInvalidArgument with its parameter: an id that the
// model does not have, no template, an empty prompt.
Status encode_prompts(const ServedModel& model, GenerationRequest& request);
// The token ids of a tokenize request.
Result<std::vector<int32_t>> encode(const ServedModel& model, const TokenizeRequest& request);

}  // namespace lowkey::coordinator
