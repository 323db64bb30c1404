#include "cli/text_source.h"

#include <gtest/gtest.h>

#include <lzma.h>
#include <algorithm>
#include <fstream>

#include "tests/support/temp_folder.h"

namespace lowkey::cli {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary) << bytes;
}

std::string xz(const std::string& text) {
  std::vector<uint8_t> packed(lzma_stream_buffer_bound(text.size()));
  size_t size = 0;
  EXPECT_EQ(
      lzma_easy_buffer_encode(0, LZMA_CHECK_CRC32, nullptr, reinterpret_cast<const uint8_t*>(text.data()),
                              text.size(), packed.data(), &size, packed.size()),
      LZMA_OK);
  return {packed.begin(), packed.begin() + size};
}

std::unique_ptr<coordinator::Tokenizer> demo_tokenizer() {
  auto tokenizer = coordinator::Tokenizer::load(fs::path(LOWKEY_SOURCE_DIR) / "deploy" / "demo-model");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return std::move(tokenizer).value();
}

TEST(TextSource, AFolderIsReadInNameOrderAndOnlyItsTexts) {
  const testing::TempFolder folder;
  write(folder.path() / "b.txt", "second");
  write(folder.path() / "a.jsonl.xz", xz("{\"text\": \"first\", \"id\": 1}\n\n{\"text\": \"caf\\u00e9\"}\n"));
  write(folder.path() / "c.txt.xz", xz("third"));
  write(folder.path() / "index.tsv", "not a text");
  const auto documents = read_documents(folder.path());
  ASSERT_TRUE(documents.ok()) << documents.error().message;
  EXPECT_EQ(*documents, (std::vector<std::string>{"first", "caf\xc3\xa9", "second", "third"}));
}

TEST(TextSource, AFileOfAnyOtherNameIsPlainText) {
  const testing::TempFolder folder;
  write(folder.path() / "notes.md", "# a\n");
  EXPECT_EQ(*read_documents(folder.path() / "notes.md"), std::vector<std::string>{"# a\n"});
}

TEST(TextSource, ErrorsNameFileAndLine) {
  const testing::TempFolder folder;
  write(folder.path() / "a.jsonl", "{\"text\": \"one\"}\n{\"txt\": \"two\"}\n");
  auto error = read_documents(folder.path() / "a.jsonl").error();
  EXPECT_EQ(error.code, Code::kBadInput);
  EXPECT_NE(error.message.find("a.jsonl: line 2: expected an object with a string \"text\""),
            std::string::npos)
      << error.message;

  std::string packed = xz(std::string(10000, 'x'));
  packed.resize(packed.size() / 2);
  write(folder.path() / "cut.txt.xz", packed);
  error = read_documents(folder.path() / "cut.txt.xz").error();
  EXPECT_EQ(error.code, Code::kBadInput);
  EXPECT_NE(error.message.find("damaged stream"), std::string::npos) << error.message;

  write(folder.path() / "empty.txt", "");
  EXPECT_EQ(read_documents(folder.path() / "empty.txt").error().code, Code::kBadInput);
  EXPECT_EQ(read_documents(folder.path() / "absent.txt").error().code, Code::kBadInput);
}

TEST(TextSource, WindowsHaveTheLengthStartAtWordsAndDoNotOverlap) {
  const auto tokenizer = demo_tokenizer();
  const testing::TempFolder folder;
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word" + std::to_string(i) + " ";
  write(folder.path() / "a.txt", text);
  const auto windows = read_windows(*tokenizer, folder.path() / "a.txt", 64, 20);
  ASSERT_TRUE(windows.ok()) << windows.error().message;
  ASSERT_EQ(windows->size(), 20u);
  size_t last = 0;
  for (const auto& window : *windows) {
    ASSERT_EQ(window.size(), 64u);
    const std::string piece = tokenizer->decode(window, false);
    EXPECT_EQ(piece.rfind("word", 0), 0u) << piece;
    const size_t at = text.find(piece);
    ASSERT_NE(at, std::string::npos);
    EXPECT_GE(at, last);
    last = at + piece.size();
  }
  // The same again, and no more than the text has.
  EXPECT_EQ(*read_windows(*tokenizer, folder.path() / "a.txt", 64, 20), *windows);
  const auto many = read_windows(*tokenizer, folder.path() / "a.txt", 1024, 1000);
  const size_t tokens = tokenizer->encode(text, false).size();
  EXPECT_LE(many->size(), tokens / 1024);
  EXPECT_GE(many->size(), tokens / 1024 / 4);
}

TEST(TextSource, AnEndOfTextTokenStandsBetweenDocuments) {
  const auto tokenizer = demo_tokenizer();
  const testing::TempFolder folder;
  write(folder.path() / "a.jsonl", "{\"text\": \"one two\"}\n{\"text\": \"three\"}\n");
  const auto first = tokenizer->encode("one two", false), second = tokenizer->encode("three", false);
  std::vector<int32_t> expected = first;
  expected.push_back(*tokenizer->eos());
  expected.insert(expected.end(), second.begin(), second.end());
  const int length = static_cast<int>(expected.size());
  const auto windows = read_windows(*tokenizer, folder.path() / "a.jsonl", length, 3);
  ASSERT_TRUE(windows.ok()) << windows.error().message;
  EXPECT_EQ(*windows, std::vector<std::vector<int32_t>>{expected});
  EXPECT_EQ(read_windows(*tokenizer, folder.path() / "a.jsonl", length + 2, 3).error().code, Code::kBadInput);
}

}  // namespace
}  // namespace lowkey::cli
