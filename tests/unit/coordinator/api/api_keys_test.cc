#include "coordinator/api/api_keys.h"

#include <gtest/gtest.h>

#include <set>

namespace lowkey::coordinator {
namespace {

TEST(ApiKeys, NoneIsOpenToAll) {
  for (const char* keys : {"", ",", " , ,"}) {
    EXPECT_TRUE(ApiKeys(keys).none()) << keys;
    EXPECT_EQ(ApiKeys(keys).tenant("Basic x"), "") << keys;
  }
}

TEST(ApiKeys, EveryKeyIsATenantOfItsOwn) {
  const ApiKeys keys("one, two ,,three");
  EXPECT_FALSE(keys.none());
  std::set<std::string> tenants;
  for (const char* key : {"one", "two", "three"}) {
    const auto tenant = keys.tenant(std::string("Bearer ") + key);
    ASSERT_TRUE(tenant.has_value()) << key;
    EXPECT_EQ(tenant->find(key), std::string::npos);  // does not tell the key
    tenants.insert(*tenant);
  }
  EXPECT_EQ(tenants.size(), 3u);
  for (const char* wrong :
       {"", "one", "Bearer", "Bearer ", "Bearer on", "Bearer onee", "Bearer one, two", "bearer one"})
    EXPECT_FALSE(keys.tenant(wrong).has_value()) << wrong;
}

TEST(CacheSalt, SeparatesTenantsAndSalts) {
  EXPECT_EQ(cache_salt_of("", ""), "");
  const std::set<std::string> salts = {cache_salt_of("", "a"),  cache_salt_of("a", ""),
                                       cache_salt_of("a", "b"), cache_salt_of("ab", ""),
                                       cache_salt_of("", "ab"), cache_salt_of("b", "a")};
  EXPECT_EQ(salts.size(), 6u);
  EXPECT_EQ(cache_salt_of("a", "b"), cache_salt_of("a", "b"));
}

}  // namespace
}  // namespace lowkey::coordinator
