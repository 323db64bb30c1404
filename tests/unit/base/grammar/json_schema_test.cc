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

TEST(JsonSchema, Formats) {
  check({R"({"type":"string","format":"duration"})",
         {R"("P3D")", R"("P1Y2M3D")", R"("PT36H")", R"("P1DT2H30M")", R"("P2W")"},
         {R"("P")", R"("PT")", R"("P1H")", R"("3D")", R"("P1DT")"}});
  check({R"({"type":"string","format":"email"})",
         {R"("a.b+c@example.org")", R"("x@a-b.co.uk")"},
         {R"("a@b")", R"("@a.de")", R"("a..b@c.de")", R"("a b@c.de")", R"("a@-b.de")"}});
  check({R"({"type":"string","format":"uri","minLength":1})",
         {R"("https://example.org/a/b?c=d%20e#f")", R"("http://localhost:8000")"},
         {R"("example.org")", R"("http://")", R"("http://a b")", R"("http://a/%zz")"}});
  check({R"({"type":"string","format":"hostname"})", {R"("a.example-1.org")"}, {R"("-a.org")", R"("a..b")"}});
  check({R"({"type":"string","format":"ipv6"})", {R"("2001:db8:0:0:0:0:0:1")"}, {R"("1:2:3")"}});
  check({R"({"type":"string","format":"binary"})", {R"("any")"}, {"1"}});
  check({R"({"type":"string","format":"email","pattern":"^[a-z]+@x\\.de$"})", {R"("a@x.de")"}, {R"("a@y.de")"}});
}

// What pydantic 2 writes for a model with a discriminated union, an optional, a recursive and a free field, an
// enum, a tuple and the commonest formats (BaseModel.model_json_schema()), and zod 4 (z.toJSONSchema()).
TEST(JsonSchema, WhatLibrariesWrite) {
  check({R"({"$defs": {"Cat": {"properties": {"kind": {"const": "cat", "title": "Kind", "type": "string"}, "lives": {"default": 9, "title": "Lives", "type": "integer"}}, "required": ["kind"], "title": "Cat", "type": "object"},
      "Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"},
      "Dog": {"properties": {"kind": {"const": "dog", "title": "Kind", "type": "string"}, "breed": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null, "title": "Breed"}}, "required": ["kind"], "title": "Dog", "type": "object"},
      "One": {"enum": [1], "title": "One", "type": "integer"},
      "Pet": {"additionalProperties": false, "description": "A pet.", "properties": {
        "pet": {"discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"}, "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "title": "Pet"},
        "color": {"$ref": "#/$defs/Color", "default": "red"}, "one": {"$ref": "#/$defs/One"},
        "names": {"examples": [["a"]], "items": {"type": "string"}, "maxItems": 3, "title": "Names", "type": "array"},
        "weights": {"additionalProperties": {"type": "number"}, "title": "Weights", "type": "object"},
        "point": {"maxItems": 2, "minItems": 2, "prefixItems": [{"type": "integer"}, {"type": "number"}], "title": "Point", "type": "array"},
        "when": {"format": "date-time", "title": "When", "type": "string"}, "td": {"format": "duration", "title": "Td", "type": "string"},
        "score": {"exclusiveMinimum": 0, "maximum": 1, "title": "Score", "type": "number"}, "b": {"format": "binary", "title": "B", "type": "string"},
        "rec": {"anyOf": [{"$ref": "#/$defs/Pet"}, {"type": "null"}], "default": null}, "any": {"title": "Any"},
        "code": {"pattern": "^[A-Z]{3}-\\d+$", "title": "Code", "type": "string"}},
        "required": ["pet", "one"], "title": "Pet", "type": "object"}}, "$ref": "#/$defs/Pet"})",
         {R"({"pet":{"kind":"cat","lives":3},"one":1})",
          R"({"pet":{"kind":"dog","breed":null},"color":"blue","one":1,"names":["x"],"weights":{"a":1.5},"point":[1,2.5],"when":"2024-05-06T07:08:09Z","td":"P1D","score":0.5,"b":"xyz","rec":{"pet":{"kind":"cat"},"one":1},"any":[{}],"code":"ABC-12"})"},
         {R"({"pet":{"kind":"cow"},"one":1})", R"({"pet":{"kind":"cat","breed":"x"},"one":1})",
          R"({"pet":{"kind":"cat"},"one":2})", R"({"pet":{"kind":"cat"},"one":1,"more":1})",
          R"({"pet":{"kind":"cat"},"one":1,"point":[1]})"}});
  check({R"({"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{
      "name":{"type":"string","minLength":1},"age":{"type":"integer","minimum":-9007199254740991,"maximum":9007199254740991},
      "mail":{"anyOf":[{"type":"string","format":"email"},{"type":"null"}]},"role":{"type":"string","enum":["user","admin"]},
      "kind":{"type":"string","const":"person"},"pair":{"type":"array","prefixItems":[{"type":"string"},{"type":"boolean"}]},
      "scores":{"type":"object","propertyNames":{"type":"string"},"additionalProperties":{"type":"number"}},
      "id":{"type":"string","format":"uuid","pattern":"^([0-9a-f]{8}-[0-9a-f]{4})$"},
      "tags":{"default":[],"type":"array","items":{"type":"string"}}},"required":["name","kind"],"additionalProperties":false})",
         {R"({"name":"x","kind":"person"})",
          R"({"name":"x","age":-5,"mail":"a@b.de","role":"admin","kind":"person","pair":["a",true],"scores":{"q":1},"id":"01234567-89ab","tags":[]})"},
         {R"({"name":"","kind":"person"})", R"({"name":"x","kind":"thing"})", R"({"name":"x","kind":"person","z":1})"}});
}

// Work that depends on the square of a schema's size has an end.
TEST(JsonSchema, MergingIsBounded) {
  std::string many = R"({"oneOf":[)", wide = R"({"allOf":[)";
  for (int i = 0; i < 100; ++i) {
    const std::string kind = std::to_string(i);
    many += (i > 0 ? "," : "") + (R"({"type":"object","properties":{"kind":{"const":")" + kind +
                                  R"("},"v":{"type":"integer"}},"required":["kind"]})");
  }
  many += "]}";
  EXPECT_TRUE(compile_json_schema(many).ok()) << "a union of 100 models";
  for (int i = 0; i < 900; ++i) {
    const std::string name = std::to_string(i);
    wide += (i > 0 ? "," : "") + (R"({"properties":{"a)" + name + R"(":{"type":"null"}}})");
  }
  std::string enums[2];  // each value of the one with each of the other
  for (int i = 0; i < 8000; ++i) enums[i % 2] += (i > 1 ? "," : "") + std::to_string(i);
  const std::string pairs = R"({"allOf":[{"enum":[)" + enums[0] + R"(]},{"enum":[)" + enums[1] + R"(,0]}]})";
  for (const std::string& schema : {wide + "]}", pairs}) {
    const auto refused = compile_json_schema(schema);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find("too long"), std::string::npos) << refused.error().message;
  }
}

// So has memory: long classes, and patterns that are copied for every number of characters.
TEST(JsonSchema, SizeIsBounded) {
  const std::string many(50'000, 'a'), ranges = [] {
    std::string text;  // of characters that are no neighbours
    for (char32_t code = 0x4E00; text.size() < 50'000; code += 4)
      for (const char32_t end : {code, char32_t(code + 1)}) {
        if (end > code) text += '-';
        text += static_cast<char>(0xE0 | end >> 12);
        text += static_cast<char>(0x80 | (end >> 6 & 0x3F));
        text += static_cast<char>(0x80 | (end & 0x3F));
      }
    return text;
  }();
  const auto schema = [](const std::string& pattern, const std::string& more = "") {
    return R"({"type":"string","pattern":")" + pattern + "\"" + more + "}";
  };
  EXPECT_TRUE(compile_json_schema(schema("^[" + many + "]+$")).ok());
  EXPECT_TRUE(compile_json_schema(schema("^[" + ranges + "]+$")).ok());
  for (const std::string& large :
       {schema("^[" + many + "]*$", R"(,"maxLength":20000)"),
        schema("^[" + ranges + "]*$", R"(,"maxLength":9000)"), schema("^([" + many + "]{1000}){9}$"),
        schema("^([^" + many + "]{1000}){9}$"), schema("^([" + ranges + "]{1000}){9}$")}) {
    const auto refused = compile_json_schema(large);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find("too large"), std::string::npos) << refused.error().message;
  }
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
      {R"({"type":"string","format":"iri"})", "'format': 'iri'"},
      {R"({"type":"object","propertyNames":{"pattern":"^a"}})", "'propertyNames'"},
      {R"({"type":"string","minLength":-1})", "'minLength'"},
      {R"({"type":"string","minLength":3,"maxLength":2})", "no value"},
      {R"({"type":"integer","minimum":3,"maximum":2})", "no value"},
      {R"({"enum":[]})", "no value"},
      {R"({"const":1e400})", "beyond the range"},
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
