// The tokenizer of a tokenizer.model and the tokenizer_config.json beside it.
#include <boost/json/value.hpp>
#include <cstdlib>
#include <optional>

#include "coordinator/text/bpe.h"
#include "coordinator/text/json_node.h"
#include "coordinator/text/json_parse.h"
#include "coordinator/text/sentencepiece.h"
#include "coordinator/text/token_decoder.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tokenizer_parts.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

// Control pieces are found in the text as they stand, and so is what tokenizer_config.json adds.
json::value json_beside(const SentencePieceModel& model, const JsonNode* config) {
  using Type = SentencePieceModel::Type;
  const auto* extra = config ? config->value().get_object().if_contains("added_tokens_decoder") : nullptr;
  const auto* extras = extra ? extra->if_object() : nullptr;
  json::array added;
  std::optional<int32_t> bos;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& piece = model.pieces[id];
    if (piece.type == Type::kControl && piece.text == "<s>") bos = static_cast<int32_t>(id);
    if (piece.type == Type::kControl && piece.text == "<bos>") bos = static_cast<int32_t>(id);
    const bool special = piece.type == Type::kControl || piece.type == Type::kUnknown;
    if (!special || (extras && extras->contains(std::to_string(id)))) continue;
    added.push_back(added_token(static_cast<int64_t>(id), piece.text, true));
  }
  if (extras) {
    for (const auto& entry : *extras) {
      if (!entry.value().is_object()) continue;
      json::object token = entry.value().get_object();
      token["id"] = std::strtoll(std::string(entry.key()).c_str(), nullptr, 10);
      added.push_back(std::move(token));
    }
  }
  const auto* wanted = config ? config->value().get_object().if_contains("add_bos_token") : nullptr;
  if (wanted && wanted->is_bool() && !wanted->get_bool()) bos.reset();
  return sentencepiece_parts(model, std::move(added), {.bos = bos});
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_sentencepiece(std::string_view bytes,
                                                                 std::string_view config_json,
                                                                 const std::string& name) {
  const std::string prefix = name.empty() ? "" : name + "/";
  const std::string file = prefix + "tokenizer.model";
  LOWKEY_ASSIGN(source, SentencePieceModel::parse(bytes, file));
  json::value config;
  std::optional<JsonNode> config_node;
  if (!config_json.empty()) {
    const std::string config_file = prefix + "tokenizer_config.json";
    LOWKEY_ASSIGN(parsed, parse_json(config_json, config_file, {}));
    config = std::move(parsed);
    config_node.emplace(config, config_file);
  }
  return from_pieces(source, json_beside(source, config_node ? &*config_node : nullptr), config_json, file,
                     prefix);
}

}  // namespace lowkey::coordinator
