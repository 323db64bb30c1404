#include "kvstore/profile/profile.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <sstream>

#include "base/safetensors/safetensors_header.h"
#include "tests/support/random_profile.h"
#include "tests/support/temp_folder.h"

namespace lowkey::kvstore {
namespace {

using testing::TempFolder;

Profile small_profile(int num_levels = 2) {
  ModelShape model{.num_layers = 3, .num_kv_heads = 4, .head_dim = 40, .kv_producer = {0, 0, 2}};
  model.fingerprint = hash128(std::string("a model"));
  return testing::random_profile(model, 2, 7, "weighted", num_levels);
}

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

void expect_equal(const Profile& a, const Profile& b) {
  EXPECT_EQ(a.basis, b.basis);
  EXPECT_EQ(a.model_fingerprint, b.model_fingerprint);
  EXPECT_EQ(std::tie(a.num_banks, a.num_kv_heads, a.head_dim, a.join),
            std::tie(b.num_banks, b.num_kv_heads, b.head_dim, b.join));
  EXPECT_EQ(std::tie(a.norm, a.norm_edge, a.origin), std::tie(b.norm, b.norm_edge, b.origin));
  ASSERT_EQ(a.vectors.size(), b.vectors.size());
  for (size_t v = 0; v < a.vectors.size(); ++v) {
    const VectorProfile &x = a.vectors[v], &y = b.vectors[v];
    EXPECT_EQ(std::tie(x.encode, x.decode, x.mean, x.scale), std::tie(y.encode, y.decode, y.mean, y.scale));
  }
  ASSERT_EQ(a.budgets.size(), b.budgets.size());
  for (size_t i = 0; i < a.budgets.size(); ++i) {
    EXPECT_EQ(a.budgets[i].name, b.budgets[i].name);
    EXPECT_EQ(a.budgets[i].bits, b.budgets[i].bits);
    EXPECT_EQ(a.budgets[i].levels, b.budgets[i].levels);
  }
}

TEST(Profile, ReadsBackWhatItWrote) {
  TempFolder folder;
  Profile profile = small_profile();
  profile.origin = "lowkey calibrate --text \"a\\b\"\n2 lines, 4,096 tokens";
  profile.norm = false;
  profile.norm_edge = 3.7f;
  const auto file = folder.path() / "p.safetensors";
  ASSERT_TRUE(profile.write(file).ok());
  const auto orthonormal = Profile::read(file);
  ASSERT_TRUE(orthonormal.ok()) << orthonormal.error().message;
  expect_equal(*orthonormal, profile);
  EXPECT_EQ(text_of(file).find("\"decode\""), std::string::npos) << "the same numbers twice";

  profile.vectors[5].decode[11] = 0.25f;  // a decoder of its own
  ASSERT_TRUE(profile.write(file).ok());
  const auto oblique = Profile::read(file);
  ASSERT_TRUE(oblique.ok()) << oblique.error().message;
  expect_equal(*oblique, profile);
}

TEST(Profile, EqualProfilesGiveEqualBytesAndWritingReplaces) {
  TempFolder folder;
  const auto a = folder.path() / "a", b = folder.path() / "b";
  ASSERT_TRUE(small_profile(1).write(b).ok());
  ASSERT_TRUE(small_profile(2).write(a).ok());
  ASSERT_TRUE(small_profile(2).write(b).ok());
  EXPECT_EQ(text_of(a), text_of(b));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 2) << "nothing left over";
  EXPECT_FALSE(small_profile().write(folder.path() / "absent" / "p").ok());
}

TEST(Profile, VectorsLieBankBySideByVector) {
  const Profile profile = small_profile();
  EXPECT_EQ(profile.num_banks, 2) << "layer 1 reads layer 0's";
  EXPECT_EQ(profile.index(0, kernels::Side::kKey, 1), 1u);
  EXPECT_EQ(profile.index(0, kernels::Side::kValue, 0), 2u);
  EXPECT_EQ(profile.index(1, kernels::Side::kKey, 0), 4u);
  EXPECT_EQ(profile.groups(), 5);
  EXPECT_NE(profile.budget("4x"), nullptr);
  EXPECT_EQ(profile.budget("5x"), nullptr);
}

// The same file with its header changed: `edit` gets tensors and metadata.
using Edit = std::function<void(SafetensorsHeader&, std::string& data)>;
std::string refusal(const Edit& edit) {
  TempFolder folder;
  const auto file = folder.path() / "p.safetensors";
  EXPECT_TRUE(small_profile().write(file).ok());
  std::string text = text_of(file);
  auto header = parse_safetensors_header(std::as_bytes(std::span(text)), "p").value();
  std::string data = text.substr(header.data_begin);
  edit(header, data);
  std::ofstream(file, std::ios::binary) << format_safetensors_header(header.tensors, header.metadata) << data;
  const auto profile = Profile::read(file);
  if (profile.ok()) return "accepted";
  EXPECT_EQ(profile.error().code, Code::kBadInput);
  EXPECT_EQ(profile.error().message.rfind(file.string(), 0), 0u) << profile.error().message;
  return profile.error().message.substr(file.string().size());
}

TEST(Profile, DamagedFilesAreOneLineWithWhatWasExpected) {
  const auto set = [](const char* key, const char* value) {
    return [key, value](SafetensorsHeader& header, std::string&) { header.metadata[key] = value; };
  };
  EXPECT_EQ(refusal([](auto& header, auto&) { header.metadata.clear(); }),
            ": metadata 'lowkey_profile': expected a profile, found none");
  EXPECT_EQ(refusal(set("lowkey_profile", "2")),
            ": metadata 'lowkey_profile': expected a number from 1 to 1, found '2'");
  EXPECT_EQ(refusal(set("num_banks", "x")),
            ": metadata 'num_banks': expected a number from 1 to 65535, found 'x'");
  EXPECT_EQ(refusal(set("join", "3")), ": metadata 'join': expected a divisor of 4 KV heads, found 3");
  EXPECT_EQ(refusal(set("norm", "yes")), ": metadata 'norm': expected true or false, found 'yes'");
  EXPECT_EQ(refusal(set("norm_edge", "-1")),
            ": metadata 'norm_edge': expected a positive number, found '-1'");
  EXPECT_EQ(refusal(set("model_fingerprint", "12")),
            ": metadata 'model_fingerprint': expected 32 hexadecimal digits, found '12'");
  EXPECT_EQ(refusal(set("basis", "")), ": metadata 'basis': expected a name, found none");
  EXPECT_EQ(refusal(set("num_kv_heads", "8")),
            ": tensor 'encode': expected shape [2, 2, 4, 80, 80], found [2, 2, 2, 80, 80]");
  EXPECT_NE(refusal([](auto& header, auto&) {
              header.metadata["num_banks"] = header.metadata["num_kv_heads"] = "65534";
            }).find(": tensor 'encode': expected shape [65534, 2, 32767"),
            std::string::npos)
      << "no memory is taken for what the file does not hold";
  EXPECT_EQ(refusal([](auto& header, auto&) { header.tensors[0].name = "encoder"; }),
            ": tensor 'encode': expected one, found none");
  EXPECT_EQ(refusal([](auto& header, auto&) { header.tensors[0].dtype = "I32"; }),
            ": tensor 'encode': expected F32, found I32");
  EXPECT_EQ(refusal([](auto& header, auto& data) {
              const float bad = std::nanf("");
              std::memcpy(&data[header.tensors[1].begin + 4 * 80], &bad, 4);
            }),
            ": tensor 'mean': expected finite numbers, found others in vector 1");
  EXPECT_EQ(refusal([](auto& header, auto& data) {
              const float bad = 0;
              std::memcpy(&data[header.tensors[2].begin], &bad, 4);
            }),
            ": tensor 'scale': expected positive numbers, found one that is not");
  EXPECT_EQ(refusal([](auto& header, auto& data) { data[header.tensors[3].begin] = 9; }),
            ": tensor 'budget.4x': expected 0 to 8 bits or 255, found 9 in vector 0");
  EXPECT_NE(
      refusal([](auto&, auto& data) { data.resize(data.size() / 2); }).find("expected data_offsets within"),
      std::string::npos);
}

TEST(Profile, ByteChangesNeverCrash) {
  TempFolder folder;
  const auto file = folder.path() / "p.safetensors";
  Profile profile =
      testing::random_profile({.num_layers = 1, .num_kv_heads = 1, .head_dim = 16, .fingerprint = {1, 2}});
  ASSERT_TRUE(profile.write(file).ok());
  const std::string good = text_of(file);
  const size_t header_bytes = good.find('}', good.rfind("data_offsets")) + 1;
  std::mt19937 random(3);
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string text = good;
    for (int changes = 1 + random() % 3; changes > 0; --changes)
      text[random() % header_bytes] = "0123456789\"[]{}:,xF-."[random() % 21];
    std::ofstream(file, std::ios::binary) << text;
    const auto read = Profile::read(file);
    refused += !read.ok();
    if (!read.ok()) {
      EXPECT_EQ(read.error().message.find('\n'), std::string::npos);
    }
  }
  EXPECT_GT(refused, 250);
}

}  // namespace
}  // namespace lowkey::kvstore
