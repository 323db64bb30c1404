// Small things that tests of the pool share.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kvstore/page/page_identity.h"
#include "kvstore/page/page_pool.h"

namespace lowkey::kvstore {

inline std::vector<int32_t> tokens_of(int n) {
  return std::vector<int32_t>(16, n);
}
inline Hash128 identity_of(int n) {
  return chain_hash({}, tokens_of(n));
}

inline void expect_sums(const PagePool& pool) {
  const Ledger ledger = pool.ledger();
  ASSERT_EQ(ledger.capacity, ledger.used + ledger.evictable + ledger.free + ledger.slack);
}

}  // namespace lowkey::kvstore
