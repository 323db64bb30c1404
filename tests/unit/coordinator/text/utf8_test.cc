#include "coordinator/text/utf8.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <random>

#include "golden.h"

namespace lowkey::coordinator {
namespace {

TEST(Utf8, EveryCharacterComesBack) {
  for (char32_t code = 0; code <= 0x10FFFF; ++code) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text;
    append_utf8(text, code);
    const Utf8Step step = next_utf8(text, 0);
    ASSERT_EQ(step.state, Utf8State::kValid) << static_cast<uint32_t>(code);
    ASSERT_EQ(step.code, code);
    ASSERT_EQ(step.bytes, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      ASSERT_EQ(next_utf8(text.substr(0, cut), 0).state, Utf8State::kIncomplete);
    }
  }
}

TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(replace_invalid_utf8("a\x80z"), "a" + r + "z");
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), r + r);          // overlong
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);  // a surrogate
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82z"), r + "z");  // one well-formed beginning, one replacement
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), r);
  EXPECT_EQ(replace_invalid_utf8("\xF1\x80\xE2\x82\xAC"), r + "€");
  EXPECT_FALSE(is_valid_utf8("\xFF"));
  EXPECT_TRUE(is_valid_utf8("a€🙂"));
}

// tests/golden/text/many_strings.py: bytes in hexadecimal, and Python's reading of them.
TEST(Utf8, ReplacesAsPythonDoes) {
  const auto cases = read_golden(kGoldenDir / "broken.json");
  ASSERT_GE(cases.as_array().size(), 300u);
  for (const auto& item : cases.as_array()) {
    const std::string hex = as_string(item.at(0));
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    EXPECT_EQ(replace_invalid_utf8(bytes), as_string(item.at(1))) << hex;
  }
}

TEST(Utf8, KnowsPropertiesOfCharacters) {
  EXPECT_TRUE(is_whitespace(0x3000));
  EXPECT_FALSE(is_whitespace(0x180E));
  EXPECT_TRUE(is_numeric(U'Ⅷ'));
  EXPECT_TRUE(is_numeric(U'½'));
  EXPECT_TRUE(is_punctuation(U'$'));
  EXPECT_TRUE(is_punctuation(U'。'));
  EXPECT_FALSE(is_punctuation(U'€'));
  EXPECT_TRUE(is_word(U'_'));
  EXPECT_TRUE(is_word(0x0301));
  EXPECT_FALSE(is_word(U'-'));
}

TEST(Utf8, TrimsAndFoldsByCharacter) {
  EXPECT_EQ(trim_whitespace("\u3000 é\u00a0"), "é");
  EXPECT_EQ(trim_whitespace(" a ", false, true), " a");
  EXPECT_EQ(trim_whitespace(" \n "), "");
  EXPECT_EQ(to_lower("ÄİΣ"), "äi\u0307σ");
  EXPECT_EQ(to_upper("straße"), "STRASSE");
  EXPECT_EQ(normalize_unicode("e\u0301", UnicodeForm::kNfc), "é");
  EXPECT_EQ(normalize_unicode("ﬁ", UnicodeForm::kNfkc), "fi");
}

// Whatever their number: a prompt of nothing but marks would hold a thread for hours if it took quadratic
// time.
TEST(Utf8, PutsMarksInTheirOrder) {
  std::string mixed = "q", ordered;
  for (int i = 0; i < 500'000; ++i) mixed += "\u0301\u0316";
  for (const char* mark : {"\u0316", "\u0301"})
    for (int i = 0; i < 500'000; ++i) ordered += mark;
  EXPECT_EQ(normalize_unicode(mixed, UnicodeForm::kNfc), "q" + ordered);
  EXPECT_EQ(normalize_unicode(mixed, UnicodeForm::kNfkd), "q" + ordered);
  EXPECT_EQ(normalize_unicode("e\u0316\u0301z\u0301\u0316", UnicodeForm::kNfc), "\u00e9\u0316\u017a\u0316");
  EXPECT_EQ(normalize_unicode("\u1100\u1161\u11a8 \ufdfa", UnicodeForm::kNfc), "\uac01 \ufdfa");
  EXPECT_EQ(normalize_unicode("\uac01\u00e9", UnicodeForm::kNfd), "\u1100\u1161\u11a8e\u0301");
  EXPECT_EQ(normalize_unicode("e\u0301\xff", UnicodeForm::kNfc), "e\u0301\xff");
}

// What utf8proc itself makes of them, for any characters.
TEST(Utf8, NormalizesAsTheLibraryDoes) {
  std::mt19937 random(7);
  const char32_t first[] = {0x20,   0xC0,   0x300,  0x300,  0x591,  0x900,
                            0x1100, 0x1E00, 0x3040, 0xAC00, 0xFB00, 0x1D100};
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (size_t i = random() % 12 + 1; i > 0; --i)
      append_utf8(text, first[random() % std::size(first)] + random() % (round % 2 ? 0x30 : 0x200));
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.c_str());
    const std::pair<UnicodeForm, utf8proc_uint8_t*> expected[] = {{UnicodeForm::kNfc, utf8proc_NFC(bytes)},
                                                                  {UnicodeForm::kNfd, utf8proc_NFD(bytes)},
                                                                  {UnicodeForm::kNfkc, utf8proc_NFKC(bytes)},
                                                                  {UnicodeForm::kNfkd, utf8proc_NFKD(bytes)}};
    for (const auto& [form, made] : expected) {
      ASSERT_EQ(normalize_unicode(text, form), reinterpret_cast<const char*>(made)) << text;
      std::free(made);
    }
  }
}

}  // namespace
}  // namespace lowkey::coordinator
