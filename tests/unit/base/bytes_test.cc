#include "base/bytes.h"

#include <gtest/gtest.h>

namespace lowkey {
namespace {

TEST(ParseBytes, AcceptsUnitsOfBothKinds) {
  EXPECT_EQ(*parse_bytes("0"), 0u);
  EXPECT_EQ(*parse_bytes("1000000"), 1000000u);
  EXPECT_EQ(*parse_bytes("17B"), 17u);
  EXPECT_EQ(*parse_bytes("2KB"), 2000u);
  EXPECT_EQ(*parse_bytes("512MiB"), 512 * kMiB);
  EXPECT_EQ(*parse_bytes("1.5GiB"), kGiB + kGiB / 2);
  EXPECT_EQ(*parse_bytes("2TiB"), 2048 * kGiB);
}

TEST(ParseBytes, RefusesWhatIsNotASize) {
  for (auto text :
       {"", "-1", "1 2", "MiB", "1XB", "1e400", "nan", "inf", "0x10", "1MiBs", "99999999999TiB", "--1"})
    EXPECT_FALSE(parse_bytes(text).ok()) << text;
}

TEST(FormatBytes, RoundTrips) {
  EXPECT_EQ(format_bytes(17), "17 B");
  EXPECT_EQ(format_bytes(512 * kMiB), "512 MiB");
  EXPECT_EQ(format_bytes(kGiB + kGiB / 2), "1.5 GiB");
}

}  // namespace
}  // namespace lowkey
