#include <boost/json/array.hpp>
#include <string>

#include "worker/model/random_parts.h"

namespace lowkey::worker {

namespace json = boost::json;

namespace {

// The printable character that stands for a byte in byte-level vocabularies (Radford et al. 2019, GPT-2):
// printable Latin-1 stands for itself, the rest for code points from 256 on.
std::string byte_symbol(int byte) {
  const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += !printable(b);
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

}  // namespace

// 4 special tokens, 256 bytes, then fillers that only a model can produce: " t260", " t261", ...
json::object tokenizer_json(int vocab_size) {
  json::object vocab;
  json::array added;
  for (int id = 0; id < kNumSpecial; ++id) {
    vocab[kSpecial[id]] = id;
    added.push_back({{"id", id},
                     {"content", kSpecial[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  for (int byte = 0; byte < kNumBytes; ++byte) vocab[byte_symbol(byte)] = kNumSpecial + byte;
  for (int id = kNumSpecial + kNumBytes; id < vocab_size; ++id)
    vocab[byte_symbol(' ') + "t" + std::to_string(id)] = id;
  const json::object byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", std::move(vocab)},
            {"merges", json::array{}}}}};
}

}  // namespace lowkey::worker
