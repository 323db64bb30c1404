// docs/operations.md lists the settings as they are declared; the failure shows the table to paste.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "base/serve_config.h"

namespace lowkey {
namespace {

class TableOfSettings {
 public:
  void text(const char* name, const std::string& value, const char* help) { row(name, value, "text", help); }
  void secret(const char* name, const std::string& value, const char* help) {
    row(name, value, "text", help);
  }
  void number(const char* name, int value, int low, int high, const char* help) {
    row(name, std::to_string(value), fmt::format("{} to {}", low, high), help);
  }
  void choice(const char* name, const std::string& value, std::initializer_list<const char*> allowed,
              const char* help) {
    row(name, value, fmt::format("{}", fmt::join(allowed, ", ")), help);
  }
  void bytes(const char* name, uint64_t value, uint64_t low, const char* help) {
    row(name, format_bytes(value), "size from " + format_bytes(low), help);
  }
  std::string out = "| setting | default | values | meaning |\n| --- | --- | --- | --- |\n";

 private:
  void row(const char* name, const std::string& value, const std::string& values, const char* help) {
    out += fmt::format("| `--{}` | {} | {} | {} |\n", name, value, values, help);
  }
};

TEST(OperationsDoc, ListsEverySettingAsDeclared) {
  std::ifstream file(LOWKEY_SOURCE_DIR "/docs/operations.md");
  std::stringstream text;
  text << file.rdbuf();
  ServeConfig config;
  TableOfSettings table;
  ServeConfig::visit_fields(config, table);
  const std::string expected = "<!-- settings:begin -->\n" + table.out + "<!-- settings:end -->";
  EXPECT_NE(text.str().find(expected), std::string::npos) << "docs/operations.md must hold\n" << expected;
}

}  // namespace
}  // namespace lowkey
