// What a tokenizer.json says beside its model, for vocabularies that come without one: SentencePiece's own
// file and the metadata of GGUF files.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lowkey::coordinator {

struct SentencePieceModel;

// Ids that are put around a text.
struct TextEnds {
  std::optional<int32_t> bos, eos;
};

// An entry of `added_tokens`; found in the text as it stands.
boost::json::object added_token(int64_t id, std::string_view content, bool special, bool rstrip = false);

boost::json::value post_processor_of(const TextEnds& ends);  // null: nothing is put around

// As transformers converts such models: spaces become U+2581, the dummy prefix is a space before every
// stretch of text between added tokens.
boost::json::object sentencepiece_parts(const SentencePieceModel& model, boost::json::array added,
                                        const TextEnds& ends);

}  // namespace lowkey::coordinator
