#include "base/trace.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "tests/support/temp_folder.h"

namespace lowkey {
namespace {

std::string written(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

size_t count(const std::string& text, const std::string& what) {
  size_t found = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++found;
  return found;
}

// One recorder for the process: one test tells its whole life.
TEST(Trace, KeepsTheNewestSpansOfEveryThread) {
  { const TraceSpan before("before the start"); }
  EXPECT_TRUE(write_trace().ok());

  const Status refused = start_trace("/nonexistent/trace.json", "test");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kUsage);
  const testing::TempFolder folder;
  const auto file = folder.path() / "trace.json";
  ASSERT_TRUE(start_trace(file, "worker 1").ok());
  std::thread([] { const TraceSpan other("of a thread that has ended", {"rows", 7}); }).join();
  {
    const TraceSpan outer("outer");
    const TraceSpan inner("inner", {"rows", 3}, {"out", 576});
  }
  ASSERT_TRUE(write_trace().ok());
  std::string text = written(file);
  EXPECT_EQ(count(text, "before the start"), 0u);
  EXPECT_NE(text.find(R"("name":"worker 1")"), std::string::npos) << text;
  EXPECT_NE(text.find(R"("args":{"rows":7}})"), std::string::npos) << text;
  EXPECT_NE(text.find(R"("args":{"rows":3,"out":576}})"), std::string::npos) << text;
  EXPECT_LT(text.find("\"inner\""), text.find("\"outer\""));  // what ends first stands first

  for (size_t i = 0; i < kSpansPerThread; ++i) const TraceSpan span("newer");
  ASSERT_TRUE(write_trace().ok());
  text = written(file);
  EXPECT_EQ(count(text, "\"newer\""), kSpansPerThread);
  EXPECT_EQ(count(text, "\"outer\""), 0u);
  EXPECT_EQ(count(text, "of a thread that has ended"), 1u);
  EXPECT_EQ(count(text, "\n{"), kSpansPerThread + 2);  // one line each, the process and the other thread's
}

}  // namespace
}  // namespace lowkey
