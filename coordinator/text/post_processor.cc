#include "coordinator/text/post_processor.h"

#include <boost/json/value.hpp>

#include "coordinator/text/bpe.h"
#include "coordinator/text/normalizer.h"

namespace lowkey::coordinator {
namespace {

constexpr std::string_view kSupported =
    "TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing, Sequence";

Result<std::vector<int32_t>> ids_of_special(const JsonNode& node, const std::string& name) {
  LOWKEY_ASSIGN(table, node.object("special_tokens"));
  LOWKEY_ASSIGN(entry, table.object(name));
  LOWKEY_ASSIGN(nodes, entry.array("ids"));
  std::vector<int32_t> ids;
  for (const JsonNode& item : nodes) {
    const auto* id = item.value().if_int64();
    if (!id || *id < 0 || *id > kMaxTokenId) return item.wrong("a token id");
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

Result<SpecialFrame> parse_template(const JsonNode& node) {
  SpecialFrame frame;
  bool seen_text = false;
  LOWKEY_ASSIGN(parts, node.array("single"));
  for (const JsonNode& part : parts) {
    if (const auto special = part.child("SpecialToken")) {
      LOWKEY_ASSIGN(name, special->string("id"));
      LOWKEY_ASSIGN(ids, ids_of_special(node, name));
      auto& side = seen_text ? frame.behind : frame.before;
      side.insert(side.end(), ids.begin(), ids.end());
    } else if (part.child("Sequence") && !seen_text) {
      seen_text = true;
    } else {
      return part.wrong("a SpecialToken or the only Sequence");
    }
  }
  if (!seen_text) return node.bad("expected a Sequence in 'single', found none");
  return frame;
}

// A field of the form ["<s>", 1].
Result<int32_t> parse_pair(const JsonNode& node, std::string_view key) {
  LOWKEY_ASSIGN(pair, node.array(key));
  const auto* id = pair.size() == 2 ? pair[1].value().if_int64() : nullptr;
  if (!id || *id < 0 || *id > kMaxTokenId) return node.bad(fmt::format("expected {}: [token, id]", key));
  return static_cast<int32_t>(*id);
}

}  // namespace

Result<SpecialFrame> parse_post_processor(const JsonNode& node, int depth) {
  LOWKEY_ASSIGN(type, node.string("type"));
  if (type == "ByteLevel") return SpecialFrame{};  // only about offsets, which nobody here needs
  if (type == "TemplateProcessing") return parse_template(node);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    LOWKEY_ASSIGN(cls, parse_pair(node, "cls"));
    LOWKEY_ASSIGN(sep, parse_pair(node, "sep"));
    return SpecialFrame{{cls}, {sep}};
  }
  if (type != "Sequence") return node.unsupported(type, kSupported);
  if (depth >= kMaxSequenceDepth)
    return node.bad(fmt::format("sequences nest deeper than {}", kMaxSequenceDepth));
  SpecialFrame whole;
  LOWKEY_ASSIGN(parts, node.array("processors"));
  for (const JsonNode& part : parts) {
    LOWKEY_ASSIGN(frame, parse_post_processor(part, depth + 1));
    whole.before.insert(whole.before.begin(), frame.before.begin(), frame.before.end());
    whole.behind.insert(whole.behind.end(), frame.behind.begin(), frame.behind.end());
  }
  return whole;
}

}  // namespace lowkey::coordinator
