// What requests may say about the cache, and what their answers tell of it.
#include <set>

#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

using Cache = ApiTest;

TEST_F(Cache, KeysAndSaltsShareNoPages) {
  config_.api_key = "one,two";
  start_ready();
  const auto ask = [&](const std::string& key, const std::string& salt) {
    const std::string body =
        salt.empty() ? R"({"prompt":"a"})" : R"({"prompt":"a","cache_salt":")" + salt + "\"}";
    EXPECT_EQ(client().post("/v1/completions", body, "Authorization: Bearer " + key + "\r\n").status, 200);
    return leaders_[0]->submits().back().salt();
  };
  const std::set<std::string> salts = {ask("one", ""), ask("two", ""), ask("one", "s"), ask("two", "s")};
  EXPECT_EQ(salts.size(), 4u);
  EXPECT_EQ(salts.count(""), 0u);
  EXPECT_EQ(salts.count(ask("one", "s")), 1u);
}

TEST_F(Cache, WithoutKeyAndSaltPagesAreShared) {
  start_ready();
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a"})").status, 200);
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a","cache_salt":"s","min_levels":"all"})").status,
            200);
  const auto submits = leaders_[0]->submits();
  EXPECT_EQ(submits[0].salt(), "");
  EXPECT_EQ(submits[0].min_levels(), 0u);
  EXPECT_NE(submits[1].salt(), "");
  EXPECT_EQ(submits[1].min_levels(), 3u);
}

}  // namespace
}  // namespace lowkey::coordinator
