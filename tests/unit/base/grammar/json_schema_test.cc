#include "base/grammar/json_schema.h"

#include <gtest/gtest.h>

#include "tests/unit/base/grammar/byte_matcher.h"

namespace lowkey::grammar {
namespace {

struct Case {
  const char* schema;
  std::vector<const char*> good, bad;
};

void check(const Case& test) {
  auto automaton = compile_json_schema(test.schema);
  ASSERT_TRUE(automaton.ok()) << test.schema << ": " << automaton.error().message;
  ByteMatcher matcher(std::move(*automaton));
  for (const char* text : test.good) EXPECT_TRUE(matcher.accepts(text)) << test.schema << " and " << text;
  for (const char* text : test.bad) EXPECT_FALSE(matcher.accepts(text)) << test.schema << " and " << text;
}

TEST(JsonSchema, Types) {
  check({R"({"type":"null"})", {"null"}, {"nul", "true", " null", "null ", ""}});
  check({R"({"type":"boolean"})", {"true", "false"}, {"0", "True"}});
  check({R"({"type":["string","null"]})", {"null", "\"\"", "\"null\""}, {"1", "[]"}});
  check({R"({"type":"integer"})", {"0", "-7", "123"}, {"1.0", "1e3", "007"}});
  check({R"(true)",
         {"{}", "[1, [2], {\"a\": null}]", "\"x\"", "-1.5e3"},
         {"{", "[1,]", "{\"a\"}", "{a:1}", "'x'"}});
  check({R"({})", {"{\n  \"a\": [\n    1\n  ]\n}"}, {"{}{}", "[}"}});
}

TEST(JsonSchema, Strings) {
  check({R"({"type":"string"})",
         {R"("héllo 🙂")", R"("\n\u00e9\/\\")", R"("")"},
         {"\"a\nb\"", R"("\x")", R"("\u12")", R"("\ud83d")", "\"\xff\"", R"("a)"}});
  check({R"({"type":"string","minLength":2,"maxLength":3})",
         {R"("ab")", R"("é\né")", R"("🙂🙂🙂")"},
         {R"("a")", R"("abcd")", R"("\n")"}});
  check({R"({"type":"string","minLength":2})", {R"("ab")", R"("abcdefghijk")"}, {R"("a")"}});
  check({R"({"type":"string","pattern":"^[a-c]+-\\d{2}$"})", {R"("abc-12")"}, {R"("abd-12")", R"("abc-1")"}});
  check({R"({"type":"string","pattern":"b","maxLength":3})",
         {R"("b")", R"("abc")"},
         {R"("acc")", R"("abcc")"}});
  check(
      {R"({"type":"string","format":"date"})", {R"("2024-12-31")"}, {R"("2024-13-01")", R"("2023-02-29")"}});
  check({R"({"type":"string","format":"ipv4"})", {R"("127.0.0.1")"}, {R"("256.0.0.1")", R"("1.2.3")"}});
}

TEST(JsonSchema, ConstantsAndEnums) {
  check({R"({"enum":["a",1,null,{"k":[1,"x"]},1.5]})",
         {R"("a")", "1", "null", R"({"k":[1,"x"]})", R"({"k": [1, "x"]})", "1.5"},
         {R"("b")", "2", R"({"k":[1]})", "1.50"}});
  check({R"({"const":"a\"b"})", {R"("a\"b")"}, {R"("ab")"}});
  check({R"({"type":"string","enum":["a",1,"abc"],"maxLength":2})", {R"("a")"}, {"1", R"("abc")"}});
}

TEST(JsonSchema, Objects) {
  check({R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"boolean"},"c":{"type":"null"}},
             "required":["b"]})",
         {R"({"b":true})", R"({"a":1,"b":false})", R"({"a": 1, "b": true, "c": null})",
          R"({"b": true, "c":null})"},
         {R"({})", R"({"a":1})", R"({"b":true,"a":1})", R"({"b":true,})", R"({"b":true,"d":1})", R"({"b":1})",
          R"({"a":1 ,"b":true})"}});
  check({R"({"type":"object"})", {R"({})", R"({"x":{"y":[]}})"}, {"[]"}});
  check(
      {R"({"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"string"}})",
       {R"({})", R"({"a":1})", R"({"b":"x"})", R"({"a":1,"b":"x","ab":""})"},
       {R"({"a":"x"})", R"({"b":1})", R"({"b":"x","a":1})", R"({"\u0061":"x"})"}});
  check({R"({"properties":{"a":{}},"additionalProperties":true})", {R"({"a":[1],"z":2})"}, {"1"}});
  check({R"({"type":"object","required":["x"],"additionalProperties":{"type":"integer"}})",
         {R"({"x":1})", R"({"x":1,"y":2})"},
         {R"({})", R"({"x":"1"})"}});
}

TEST(JsonSchema, Arrays) {
  check({R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3})",
         {"[1]", "[1, 2,3]", "[\n 1\n]"},
         {"[]", "[1,2,3,4]", "[1,]", "[\"a\"]"}});
  check({R"({"type":"array","items":{"type":"null"}})", {"[]", "[null]", "[null,null,null,null]"}, {"[1]"}});
  check({R"({"type":"array","items":{"type":"null"},"minItems":2})",
         {"[null,null]", "[null,null,null]"},
         {"[]", "[null]"}});
  check({R"({"prefixItems":[{"type":"integer"},{"type":"string"}],"items":false})",
         {"[]", "[1]", "[1,\"a\"]"},
         {"[\"a\"]", "[1,\"a\",2]"}});
  check({R"({"prefixItems":[{"type":"integer"}],"items":{"type":"string"},"minItems":2})",
         {"[1,\"a\"]", "[1,\"a\",\"b\"]"},
         {"[1]", "[1,2]"}});
  check({R"({"type":"array","maxItems":0})", {"[]"}, {"[1]"}});
}

TEST(JsonSchema, Combinations) {
  check({R"({"anyOf":[{"type":"integer"},{"type":"string","maxLength":1}]})",
         {"1", "\"a\""},
         {"\"ab\"", "null"}});
  check({R"({"oneOf":[{"type":"integer"},{"type":"string"}]})", {"1", "\"a\""}, {"null"}});
  check(
      {R"({"oneOf":[{"type":"object","properties":{"kind":{"const":"a"},"x":{"type":"integer"}},"required":["kind","x"]},
                      {"type":"object","properties":{"kind":{"const":"b"}},"required":["kind"]}]})",
       {R"({"kind":"a","x":1})", R"({"kind":"b"})"},
       {R"({"kind":"a"})", R"({"kind":"b","x":1})"}});
  check({R"({"allOf":[{"type":"object","properties":{"a":{"type":"number","minimum":0}},"required":["a"]},
                      {"properties":{"a":{"maximum":5},"b":{"type":"null"}}}]})",
         {R"({"a":3})", R"({"a":0.5,"b":null})"},
         {R"({"a":6})", R"({"a":-1})", R"({"b":null})"}});
  check({R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},
             "anyOf":[{"required":["a"]},{"required":["b"]}]})",
         {R"({"a":1})", R"({"b":1})", R"({"a":1,"b":2})"},
         {"{}"}});
  check({R"({"allOf":[{"enum":[1,2,3]},{"enum":[2,3,4]},{"minimum":3}]})", {"3"}, {"2", "4"}});
  check({R"({"allOf":[{"type":["integer","string"]},{"type":"number"}]})", {"1"}, {"1.5", "\"a\""}});
}

TEST(JsonSchema, ReferencesAndRecursion) {
  check(
      {R"({"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{"left":{"$ref":"#/$defs/tree"},
             "leaf":{"type":"boolean"}},"additionalProperties":false}}})",
       {"{}", R"({"left":{"left":{"leaf":true}}})", R"({"left":{},"leaf":false})"},
       {R"({"left":1})", R"({"left":{"left":{"leaf":1}}})"}});
  check({R"({"anyOf":[{"type":"integer"},{"type":"array","items":{"$ref":"#"}}]})",
         {"1", "[1,[2,[]]]"},
         {"[\"a\"]", "[[1]"}});
  check(
      {R"({"type":"object","properties":{"next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["next"]})",
       {R"({"next":{"next":null}})"},
       {"{}"}});
  check(
      {R"({"$defs":{"s":{"type":"string"}},"properties":{"a":{"$ref":"#/$defs/s","maxLength":1}},"required":["a"]})",
       {R"({"a":"x"})"},
       {R"({"a":"xx"})", R"({"a":1})"}});
}

TEST(JsonSchema, RefusesByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"not":{}})", "'not'"},
      {R"({"type":"object","properties":{"a":{"if":{}}}})", "#/properties/a: 'if'"},
      {R"({"type":"object","patternProperties":{}})", "'patternProperties'"},
      {R"({"type":"array","uniqueItems":true})", "'uniqueItems'"},
      {R"({"type":"number","multipleOf":2})", "'multipleOf'"},
      {R"({"type":"text"})", "'type' must be"},
      {R"({"type":[]})", "'type' must be"},
      {R"x({"type":"string","pattern":"(?=a)"})x", "'pattern'"},
      {R"({"type":"string","format":"email"})", "'format': 'email'"},
      {R"({"type":"string","minLength":-1})", "'minLength'"},
      {R"({"type":"string","minLength":3,"maxLength":2})", "no value"},
      {R"({"type":"integer","minimum":3,"maximum":2})", "no value"},
      {R"({"enum":[]})", "no value"},
      {R"({"$ref":"#/$defs/a"})", "there is nothing"},
      {R"({"$ref":"other.json"})", "another document"},
      {R"({"$ref":"#"})", "refers to itself"},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", "refers to itself"},
      {R"({"allOf":[{"$ref":"#"},{"type":"null"}]})", "refer to each other"},
      {R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})", "no value"},
      {R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", "'oneOf'"},
      {R"({"type":"array","items":[{}]})", "'items'"},
      {R"({"required":"a"})", "'required'"},
      {R"({"properties":[]})", "'properties'"},
      {R"({"type":"number","minimum":"a"})", "'minimum'"},
      {R"({"type":"array","maxItems":100000})", "'maxItems'"},
      {R"("string")", "must be an object"},
      {R"({"type")", "JSON schema"},
      {R"(false)", "no value"},
  };
  for (const auto& [schema, text] : cases) {
    const auto result = compile_json_schema(schema);
    ASSERT_FALSE(result.ok()) << schema;
    EXPECT_EQ(result.error().code, Code::kInvalidArgument);
    EXPECT_NE(result.error().message.find(text), std::string::npos)
        << schema << ": " << result.error().message;
  }
  EXPECT_FALSE(compile_json_schema(std::string(70000, ' ') + "{}").ok());
  std::string deep = "{}";
  for (int i = 0; i < 28; ++i) deep = R"({"items":)" + deep + "}";
  EXPECT_TRUE(compile_json_schema(deep).ok());
  for (int i = 0; i < 60; ++i) deep = R"({"items":)" + deep + "}";
  EXPECT_FALSE(compile_json_schema(deep).ok());
}

}  // namespace
}  // namespace lowkey::grammar
