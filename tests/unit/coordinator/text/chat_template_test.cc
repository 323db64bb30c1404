// Chat templates against transformers' own Jinja environment, then refusals and limits.
#include "coordinator/text/chat_template.h"

#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>
#include <fstream>

#include "coordinator/text/tokenizer.h"
#include "golden.h"
#include "tests/support/temp_folder.h"

namespace lowkey::coordinator {
namespace {

std::vector<ChatMessage> messages_of(const boost::json::value& conversation) {
  std::vector<ChatMessage> messages;
  for (const auto& message : conversation.as_array()) {
    messages.push_back({as_string(message.at(0)), as_string(message.at(1)), {}});
  }
  return messages;
}

Result<std::string> render(const std::string& source, const std::vector<ChatMessage>& messages = {},
                           const ChatOptions& options = {}) {
  auto parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return parsed.error();
  return parsed->render(messages, options, "<s>", "</s>");
}

// A golden null: the reference fails, so must we.
void expect_same(const Result<std::string>& rendered, const boost::json::value& expected,
                 const std::string& what) {
  if (expected.is_null()) {
    EXPECT_FALSE(rendered.ok()) << what << " should fail, gave: " << (rendered.ok() ? *rendered : "");
  } else {
    ASSERT_TRUE(rendered.ok()) << what << "\n" << rendered.error().message;
    EXPECT_EQ(*rendered, as_string(expected)) << what;
  }
}

TEST(ChatTemplate, RendersTheFamiliesAsTransformersDoes) {
  const auto golden = read_golden(kGoldenDir / "chat.json");
  const auto& conversations = golden.at("conversations").as_array();
  ASSERT_GE(golden.at("families").as_object().size(), 8u);
  for (const auto& family : golden.at("families").as_object()) {
    const std::string source = as_string(family.value().at("source"));
    const auto& texts = family.value().at("texts").as_array();
    for (size_t i = 0; i < conversations.size(); ++i) {
      for (const bool add : {false, true}) {
        expect_same(render(source, messages_of(conversations[i]), {.add_generation_prompt = add}),
                    texts[i].at(add ? 1 : 0),
                    std::string(family.key()) + ", conversation " + std::to_string(i));
      }
    }
  }
}

TEST(ChatTemplate, RendersEveryConstructAsTransformersDoes) {
  const auto golden = read_golden(kGoldenDir / "chat.json");
  const auto messages = messages_of(golden.at("conversations").at(3));
  for (const auto& snippet : golden.at("snippets").as_array()) {
    const std::string source = as_string(snippet.at(0));
    expect_same(render(source, messages), snippet.at(1), source);
  }
}

TEST(ChatTemplate, VariablesAndContinuationsAsTransformersHasThem) {
  const auto golden = read_golden(kGoldenDir / "chat.json");
  for (const auto& item : golden.at("options").as_array()) {
    const auto& family = golden.at("families").at(as_string(item.at(0)));
    const auto& conversation = golden.at("continued").at(item.at(1).to_number<size_t>());
    const bool continues = item.at(3).as_bool();
    const ChatOptions options{.add_generation_prompt = !continues,
                              .continue_final_message = continues,
                              .variables = boost::json::serialize(item.at(2))};
    expect_same(render(as_string(family.at("source")), messages_of(conversation), options), item.at(4),
                boost::json::serialize(item));
  }
}

TEST(ChatTemplate, RefusesVariablesAndContinuationsThatItCannotHave) {
  const std::vector<ChatMessage> messages = {{"assistant", "abc", {}}};
  const auto changed = render("{{ messages[0].content | upper }}", messages,
                              {.add_generation_prompt = false, .continue_final_message = true});
  ASSERT_FALSE(changed.ok());
  EXPECT_EQ(changed.error().param, "continue_final_message");
  const auto deep =
      render("x", {}, {.variables = R"({"a":)" + std::string(40, '[') + std::string(40, ']') + "}"});
  ASSERT_FALSE(deep.ok());
  EXPECT_EQ(deep.error().param, "chat_template_kwargs");
}

TEST(ChatTemplate, NamesLineAndConstructThatItDoesNotSupport) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\nb\n{% call f() %}{% endcall %}", "line 3: the tag {% call %} is not supported"},
      {"\n{{ x | groupby }}", "line 2: the filter 'groupby' is not supported"},
      {"{{ x is filter }}", "line 1: the test 'filter' is not supported"},
      {"{{ 2 ** 3 }}", "line 1: the operator ** is not supported"},
      {"{% for x in y recursive %}{% endfor %}", "line 1: a recursive for is not supported"},
      {"{% if x %}\n\n", "expected {% endif %}, found the end of the template"},
      {"{% endif %}", "line 1: unexpected {% endif %}"},
      {"x\n{{ 'abc }}", "line 2: a string is never closed"},
      {"{{ a b }}", "line 1: expected }}, found 'b'"},
      {"{# x", "line 1: a comment {# is never closed"},
      {"{{ x ", "line 1: a tag {{ is never closed"},
      {"{{ a[1:2:3:4] }}", "a slice has at most two colons"},
      {"{{ f(*x) }}", "arguments unpacked with * are not supported"},
      {"{% break %}", "outside of a loop"},
      {"{{ @ }}", "unexpected character '@'"},
      {"{{ 99999999999999999999 }}", "too large"},
  };
  for (const auto& [source, message] : cases) {
    const auto parsed = ChatTemplate::parse(source);
    ASSERT_FALSE(parsed.ok()) << source;
    EXPECT_EQ(parsed.error().code, Code::kBadInput);
    EXPECT_NE(parsed.error().message.find(message), std::string::npos) << parsed.error().message;
  }
}

TEST(ChatTemplate, ReportsWhatTheTemplateRefusesAsABadRequest) {
  const auto rendered = render("a\n{{ raise_exception('Roles must alternate') }}");
  ASSERT_FALSE(rendered.ok());
  EXPECT_EQ(rendered.error().code, Code::kInvalidArgument);
  EXPECT_EQ(rendered.error().param, "messages");
  EXPECT_EQ(rendered.error().message, "chat template, line 2: Roles must alternate");
}

TEST(ChatTemplate, EndsTemplatesThatWouldNotEnd) {
  const char* const sources[] = {
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
      "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor "
      "%}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l] %}{% endfor %}",
      "{{ 'x' * 999999999999 }}",
      "{{ range(99999999999) }}",
      "{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxx' * 99 }}{% endfor %}",
      "{% set a = namespace() %}{% set a.x = a %}{{ a }}",
      "{% set a = namespace() %}{% set a.x = a %}{% set b = namespace() %}{% set b.x = b %}{{ a == b }}",
      "{{ 'a\nb' | indent(999999999999) }}",
      "{{ range(90000) | unique | list }}",
      "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' | replace('a', 'x' * 99999999) }}",
      "{% for a in range(90000) %}{% set x = range(90000) %}{% endfor %}",
      "{% set s = 'x' * 9000000 %}{{ [s, s, s, s, s, s, s, s] | join }}",
  };
  for (const char* source : sources) {
    const auto rendered = render(source);
    ASSERT_FALSE(rendered.ok()) << source;
    EXPECT_EQ(rendered.error().code, Code::kInvalidArgument);
  }
}

// A list that holds one list twice, and so on, is short and has a text without end.
TEST(ChatTemplate, EndsWithValuesThatAreMuchLargerThanTheyLook) {
  const std::string doubled =
      "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(29) %}"
      "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}";
  for (const char* use :
       {"{{ ns.a }}", "{{ ns.a ~ '' }}", "{{ ns.a | tojson }}", "{{ ns.a | string }}", "{{ ns.a == ns.b }}",
        "{{ ns.a in [ns.b] }}", "{{ ns.a is eq(ns.b) }}", "{{ [ns.a, ns.b] | unique | list | length }}"}) {
    const auto rendered = render(doubled + use);
    ASSERT_FALSE(rendered.ok()) << use;
    EXPECT_EQ(rendered.error().code, Code::kInvalidArgument);
  }
  const auto item = render(
      "{{ messages[0].content[0] }}{{ messages[0].content[-2] }}{{ messages[0].content[9] is defined }}",
      {{"user", "\u00e4bc\u00f6d", {}}});
  ASSERT_TRUE(item.ok()) << item.error().message;
  EXPECT_EQ(*item, "\u00e4\u00f6False");
}

TEST(ChatTemplate, RefusesSourcesThatNestWithoutEnd) {
  std::string ifs, chain = "{{ 1";
  for (int i = 0; i < 10'000; ++i) {
    ifs += "{% if 1 %}";
    chain += "+1";
  }
  const std::string brackets(10'000, '('), nots(10'000, '-');
  for (const std::string& source :
       {ifs, chain + "}}", "{{" + brackets, "{{" + nots, "{{ x" + std::string(10'000, '.')}) {
    EXPECT_FALSE(ChatTemplate::parse(source).ok());
  }
}

TEST(ChatTemplate, RendersLongConversationsWithinItsLimits) {
  std::vector<ChatMessage> messages;
  for (int i = 0; i < 2000; ++i)
    messages.push_back({i % 2 ? "assistant" : "user", std::string(1000, 'x'), {}});
  const auto golden = read_golden(kGoldenDir / "chat.json");
  for (const auto& family : golden.at("families").as_object()) {
    const auto rendered = render(as_string(family.value().at("source")), messages);
    ASSERT_TRUE(rendered.ok()) << family.key() << ": " << rendered.error().message;
    EXPECT_GT(rendered->size(), 2'000'000u);
  }
}

TEST(ChatTemplate, TellsTheDate) {
  const auto rendered = render("{{ strftime_now('%Y') }}");
  ASSERT_TRUE(rendered.ok());
  EXPECT_EQ(rendered->size(), 4u);
  EXPECT_TRUE(rendered->starts_with("2"));
}

TEST(ChatTemplate, AMessageMayHaveAName) {
  const std::vector<ChatMessage> messages = {{"user", "hi", "Ann"}, {"user", "ho", {}}};
  const auto rendered = render("{% for m in messages %}{{ m.name | default('?') }}{% endfor %}", messages);
  ASSERT_TRUE(rendered.ok());
  EXPECT_EQ(*rendered, "Ann?");
}

class ChatTemplateFiles : public ::testing::Test {
 protected:
  void write(const char* name, const std::string& text) const { std::ofstream(dir_ / name) << text; }
  std::string rendered() const {
    auto loaded = ChatTemplate::load(dir_);
    if (!loaded.ok()) return loaded.error().message;
    if (!*loaded) return "none";
    return *(**loaded).render({}, {.add_generation_prompt = false}, "", "");
  }

  const lowkey::testing::TempFolder folder_;
  const std::filesystem::path dir_ = folder_.path();
};

TEST_F(ChatTemplateFiles, AreFoundWhereModelsKeepThem) {
  EXPECT_EQ(rendered(), "none");
  write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(rendered(), "none");
  write("tokenizer_config.json", R"({"chat_template": "plain"})");
  EXPECT_EQ(rendered(), "plain");
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(rendered(), "d");
  write("chat_template.jinja", "own file");
  EXPECT_EQ(rendered(), "own file");
}

TEST_F(ChatTemplateFiles, OneCanBeNamed) {
  write("mine.jinja", "mine");
  const auto loaded = ChatTemplate::load_file(dir_ / "mine.jinja");
  ASSERT_TRUE(loaded.ok() && loaded->has_value());
  EXPECT_EQ(*(**loaded).render({}, {}, "", ""), "mine");
  EXPECT_EQ(ChatTemplate::load_file(dir_ / "none.jinja").error().message,
            (dir_ / "none.jinja").string() + ": cannot be opened");
}

TEST_F(ChatTemplateFiles, AreNamedInErrors) {
  write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_EQ(rendered(),
            (dir_ / "tokenizer_config.json").string() + ": chat_template: expected a string, found 5");
  write("tokenizer_config.json", R"({"chat_template": "{{"})");
  EXPECT_EQ(rendered(),
            (dir_ / "tokenizer_config.json").string() + ": chat template, line 1: a tag {{ is never closed");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "x", "template": "d"}]})");
  EXPECT_NE(rendered().find("expected a template named 'default', found none"), std::string::npos);
}

TEST(ChatTemplate, OfTheDemoModelRenders) {
  auto loaded = ChatTemplate::load(std::filesystem::path(LOWKEY_SOURCE_DIR) / "deploy/demo-model");
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  ASSERT_TRUE(loaded->has_value());
  const std::vector<ChatMessage> messages = {{"user", "Hello", {}}};
  EXPECT_EQ(*(**loaded).render(messages, {}, "", ""),
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
}

}  // namespace
}  // namespace lowkey::coordinator
