#include "worker/device/device_module.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/temp_folder.h"
#include "worker/device/device.h"

namespace lowkey::worker {
namespace {

// Whatever stands in the way of a device is one line that says what and where.
void expect_refused(const std::filesystem::path& file, Code code, const std::string& reason) {
  const auto module = DeviceModule::load(file);
  ASSERT_FALSE(module.ok());
  EXPECT_EQ(module.error().code, code);
  EXPECT_NE(module.error().message.find(file.string()), std::string::npos) << module.error().message;
  EXPECT_NE(module.error().message.find(reason), std::string::npos) << module.error().message;
  EXPECT_EQ(module.error().message.find('\n'), std::string::npos) << module.error().message;
}

TEST(DeviceModule, RefusalsAreOneLine) {
  const testing::TempFolder folder;
  expect_refused(folder.path() / "absent.so", Code::kNotFound, "built without CUDA");
  std::ofstream(folder.path() / "text.so") << "not a library";
  expect_refused(folder.path() / "text.so", Code::kUnavailable, "");
  const std::filesystem::path other = "/lib/x86_64-linux-gnu/libm.so.6";
  if (!std::filesystem::exists(other)) GTEST_SKIP() << other << " is absent";
  expect_refused(other, Code::kUnavailable, "expected version");
}

TEST(DeviceModule, ASurveyWithoutALibrarySaysWhy) {
  const testing::TempFolder folder;
  const DeviceSurvey survey = DeviceSurvey::make(folder.path() / "absent.so");
  EXPECT_TRUE(survey.devices.empty());
  EXPECT_NE(survey.reason.find("absent.so"), std::string::npos);
}

}  // namespace
}  // namespace lowkey::worker
