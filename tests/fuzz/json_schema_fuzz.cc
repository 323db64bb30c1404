// JSON schemas of requests: a line that says what is wrong, or an automaton that never runs into a dead end.
// What comes behind the schema's first zero byte chooses the way through it.
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/grammar/json_schema.h"
#include "base/grammar/token_grammar.h"

using namespace lowkey::grammar;

static std::shared_ptr<const TokenTrie> bytes() {
  std::vector<std::string> texts;
  for (int byte = 0; byte < 256; ++byte) texts.emplace_back(1, static_cast<char>(byte));
  texts.insert(texts.end(), {"{\"", "\":", "\",", "true", "null", "[[", "]]", "\"}", "123", "\n  "});
  return std::make_shared<const TokenTrie>(texts);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto trie = bytes();
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view schema = input.substr(0, input.find('\0'));
  const std::string_view way = input.substr(std::min(input.size(), schema.size() + 1));
  auto automaton = compile_json_schema(schema);
  if (!automaton) {
    LOWKEY_CHECK(automaton.error().code == lowkey::Code::kInvalidArgument &&
                 !automaton.error().message.empty());
    return 0;
  }
  TokenGrammar grammar(std::move(*automaton), trie);
  auto cursor = grammar.start();
  for (const char choice : way.substr(0, 64)) {
    bool computed = false;
    const auto allowed = grammar.allowed(cursor, &computed);
    if (allowed == nullptr) return 0;
    std::vector<int> tokens;
    for (int byte = 0; byte < 256; ++byte)
      if (allowed->tokens.contains(byte)) tokens.push_back(byte);
    LOWKEY_CHECK(!tokens.empty() || allowed->can_end, "a dead end behind '{}'", cursor.text());
    if (tokens.empty()) break;
    const char next = static_cast<char>(tokens[static_cast<uint8_t>(choice) % tokens.size()]);
    LOWKEY_CHECK(grammar.advance(cursor, {&next, 1}), "an allowed byte was refused behind '{}'",
                 cursor.text());
  }
  return 0;
}
