#include "cli/serve_options.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

namespace lowkey::cli {
namespace {

ParsedOptions parse(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  arguments.insert(arguments.begin(), "serve");
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return parse_serve_options(static_cast<int>(argv.size()), argv.data(), false);
}

class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

TEST(ServeOptions, DefaultsAndFlags) {
  const auto parsed = parse({"--model", "m", "--port", "9", "--kv-bytes", "1.5GiB"});
  ASSERT_FALSE(parsed.exit_code);
  EXPECT_EQ(parsed.config.model, "m");
  EXPECT_EQ(parsed.config.port, 9);
  EXPECT_EQ(parsed.config.kv_bytes, 3 * kGiB / 2);
  EXPECT_EQ(parsed.config.dtype, "bf16");
}

TEST(ServeOptions, RefusesUnknownAndOutOfRange) {
  EXPECT_EQ(parse({}).exit_code, 2);  // no model
  EXPECT_EQ(parse({"--model", "m", "--prot", "1"}).exit_code, 2);
  EXPECT_EQ(parse({"--model", "m", "--port", "65536"}).exit_code, 2);
  EXPECT_EQ(parse({"--model", "m", "--port", "x"}).exit_code, 2);
  EXPECT_EQ(parse({"--model", "m", "--dtype", "fp8"}).exit_code, 2);
  EXPECT_EQ(parse({"--model", "m", "--kv-bytes", "12 parsecs"}).exit_code, 2);
  EXPECT_EQ(parse({"--model", "m", "--host-bytes", "1"}).exit_code, 2);
  EXPECT_EQ(parse({"--model", "m", "--disk-bytes", "1GiB"}).exit_code, 2);  // of no --disk
  EXPECT_FALSE(parse({"--model", "m", "--disk", "d", "--disk-bytes", "1GiB"}).exit_code);
  EXPECT_EQ(parse({"--help"}).exit_code, 0);
}

TEST(ServeOptions, FlagBeatsVariableBeatsFile) {
  const std::string path = testing::TempDir() + "lowkey_options_" + std::to_string(getpid());
  std::ofstream(path) << "port=1\nmax-batch=3\nkv-bytes=64MiB\n";
  const Variable port("LOWKEY_PORT", "2");
  auto parsed = parse({"--model", "m", "--config", path});
  ASSERT_FALSE(parsed.exit_code);
  EXPECT_EQ(parsed.config.port, 2);
  EXPECT_EQ(parsed.config.max_batch, 3);
  EXPECT_EQ(parsed.config.kv_bytes, 64 * kMiB);
  EXPECT_EQ(parse({"--model", "m", "--config", path, "--port", "7"}).config.port, 7);
  std::ofstream(path) << "prot=1\n";
  EXPECT_EQ(parse({"--model", "m", "--config", path}).exit_code, 2);
  EXPECT_EQ(parse({"--model", "m", "--config", path + ".absent"}).exit_code, 2);
  unlink(path.c_str());
}

TEST(ServeOptions, RefusesUnknownVariable) {
  const Variable misspelt("LOWKEY_KV_BYTE", "1GiB");
  EXPECT_EQ(parse({"--model", "m"}).exit_code, 2);
}

TEST(ServeOptions, RefusesBadVariable) {
  const Variable bad("LOWKEY_PORT", "eighty");
  EXPECT_EQ(parse({"--model", "m"}).exit_code, 2);
}

TEST(ServeOptions, SecretsAreNotPrinted) {
  const auto parsed = parse({"--model", "m", "--api-key", "hunter2"});
  EXPECT_EQ(describe(parsed.config).find("hunter2"), std::string::npos);
}

}  // namespace
}  // namespace lowkey::cli
