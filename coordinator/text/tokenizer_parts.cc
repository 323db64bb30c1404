#include "coordinator/text/tokenizer_parts.h"

#include <boost/json/value.hpp>
#include <string>

#include "coordinator/text/sentencepiece.h"

namespace lowkey::coordinator {

namespace json = boost::json;

namespace {

constexpr int kMaxLeadingSpaces = 1024;  // that decoding takes away

}  // namespace

json::object added_token(int64_t id, std::string_view content, bool special, bool rstrip) {
  return {{"id", id}, {"content", content}, {"special", special}, {"normalized", false}, {"rstrip", rstrip}};
}

json::value post_processor_of(const TextEnds& ends) {
  if (!ends.bos && !ends.eos) return nullptr;
  json::array single;
  json::object tokens;
  const auto put = [&](const char* name, const std::optional<int32_t>& id) {
    if (!id) return;
    single.push_back(json::object{{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
    tokens[name] = json::object{{"id", name}, {"ids", json::array{*id}}, {"tokens", json::array{name}}};
  };
  put("bos", ends.bos);
  single.push_back(json::object{{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  put("eos", ends.eos);
  return json::object{
      {"type", "TemplateProcessing"}, {"single", std::move(single)}, {"special_tokens", std::move(tokens)}};
}

json::object sentencepiece_parts(const SentencePieceModel& model, json::array added, const TextEnds& ends) {
  json::array steps;
  if (model.remove_extra_whitespaces) {  // at the end the sign for a space counts as one
    steps.push_back(json::object{
        {"type", "Replace"}, {"pattern", json::object{{"Regex", "\\A +|[ \u2581]+\\z"}}}, {"content", ""}});
    steps.push_back(
        json::object{{"type", "Replace"}, {"pattern", json::object{{"Regex", " {2,}"}}}, {"content", " "}});
  }
  if (model.add_dummy_prefix) steps.push_back(json::object{{"type", "Prepend"}, {"prepend", " "}});
  steps.push_back(
      json::object{{"type", "Replace"}, {"pattern", json::object{{"String", " "}}}, {"content", "\u2581"}});
  json::array decoders = {
      json::object{{"type", "Replace"}, {"pattern", json::object{{"String", "\u2581"}}}, {"content", " "}},
      json::object{{"type", "ByteFallback"}}, json::object{{"type", "Fuse"}}};
  if (model.add_dummy_prefix)
    decoders.push_back(json::object{{"type", "Strip"},
                                    {"content", " "},
                                    {"start", model.remove_extra_whitespaces ? kMaxLeadingSpaces : 1},
                                    {"stop", 0}});
  return {{"normalizer", {{"type", "Sequence"}, {"normalizers", std::move(steps)}}},
          {"added_tokens", std::move(added)},
          {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}},
          {"post_processor", post_processor_of(ends)}};
}

}  // namespace lowkey::coordinator
