// What the coordinator takes from a model's folder or file.
#include "coordinator/api/served_model.h"

#include <gtest/gtest.h>

#include <fstream>

#include "coordinator/text/tokenizer.h"
#include "tests/support/temp_folder.h"

namespace lowkey::coordinator {
namespace {

namespace fs = std::filesystem;

const fs::path kDemo = fs::path(LOWKEY_SOURCE_DIR) / "deploy" / "demo-model";
const fs::path kGguf = fs::path(LOWKEY_SOURCE_DIR) / "tests" / "golden" / "gguf";

// The demo model's small files.
class ServedModels : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(dir());
    for (const char* name :
         {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
      fs::copy_file(kDemo / name, dir() / name);
  }
  fs::path dir() const { return folder_.path() / "m1.5"; }
  void write(const char* name, const std::string& text) const { std::ofstream(dir() / name) << text; }
  std::shared_ptr<const ServedModel> load(const ServedModelOptions& options = {}) const {
    const auto loaded = ServedModel::load(dir(), options);
    EXPECT_TRUE(loaded.ok()) << loaded.error().message;
    return loaded.ok() ? *loaded : nullptr;
  }
  static Result<size_t> chat(const ServedModel& model) {
    TokenizeRequest request;
    request.add_special_tokens = false;
    request.input = std::vector<ChatMessage>{{"user", "hi", {}}};
    LOWKEY_ASSIGN(ids, encode(model, request));
    return ids.size();
  }

  ::lowkey::testing::TempFolder folder_;
};

TEST_F(ServedModels, AreNamedAsTheirPathOrAsAsked) {
  EXPECT_EQ(load()->id, "m1.5");
  EXPECT_EQ(load({.id = "org/name"})->id, "org/name");
  fs::create_symlink(dir(), folder_.path() / "alias");
  EXPECT_EQ((*ServedModel::load(folder_.path() / "alias" / ""))->id, "alias");
  EXPECT_EQ(load({.max_tokens = 77})->max_tokens, 77u);
}

// The Hugging Face cache: a link with the file's name, to a file that is called by its hash. A tokenizer that
// the file lacks lies beside the link.
TEST_F(ServedModels, AFileIsKnownBehindALink) {
  fs::copy_file(kGguf / "qwen3.gguf", folder_.path() / "4f1c");
  fs::create_symlink("../4f1c", dir() / "small.Q8_0.gguf");
  const auto loaded = ServedModel::load(dir() / "small.Q8_0.gguf");
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ((*loaded)->id, "small.Q8_0");
  EXPECT_EQ((*loaded)->vocab_size, 96);
  EXPECT_NE((*loaded)->chat_template, nullptr);
}

TEST_F(ServedModels, DefaultsAreTheModels) {
  write("generation_config.json",
        R"({"temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05})");
  const SamplingDefaults defaults = load()->defaults;
  EXPECT_EQ(defaults.temperature, 0.6);
  EXPECT_EQ(defaults.top_p, 0.8);
  EXPECT_EQ(defaults.top_k, 20);
  EXPECT_EQ(defaults.min_p, 0.1);
  EXPECT_EQ(defaults.repetition_penalty, 1.05);
  write("generation_config.json", R"({"repetition_penalty": 0})");
  EXPECT_FALSE(ServedModel::load(dir()).ok());
}

// A template that cannot be used costs the chat, not the server; another one can be named.
TEST_F(ServedModels, ATemplateThatCannotBeUsedIsTold) {
  write("chat_template.jinja", "a\n{% call f() %}{% endcall %}");
  const auto model = load();
  EXPECT_EQ(model->chat_template, nullptr);
  const auto refused = chat(*model);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kInvalidArgument);
  EXPECT_EQ(refused.error().param, "messages");
  EXPECT_NE(refused.error().message.find("line 2: the tag {% call %} is not supported"), std::string::npos)
      << refused.error().message;
  TokenizeRequest text;
  text.input = std::string("hi");
  EXPECT_TRUE(encode(*model, text).ok());

  write("mine.jinja", "{{ messages[0].content }}");
  EXPECT_EQ(*chat(*load({.chat_template = dir() / "mine.jinja"})),
            model->tokenizer->encode("hi", false).size());
  const auto broken = ServedModel::load(dir(), {.chat_template = dir() / "chat_template.jinja"});
  ASSERT_FALSE(broken.ok()) << "one that was asked for has to work";
  EXPECT_EQ(broken.error().code, Code::kBadInput);
}

}  // namespace
}  // namespace lowkey::coordinator
