#include "coordinator/routing/router_index.h"

#include <gtest/gtest.h>

#include "coordinator/routing/pages_under_way.h"
#include "coordinator/routing/prefix_scan.h"
#include "kvstore/page/page_identity.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

const CacheKey kKey{
    .model_fingerprint = {1, 2}, .layout_fingerprint = {3, 4}, .page_tokens = 4, .num_ranks = 2};
constexpr Holder kFirst{Holder::Kind::kDevice, 0}, kSecond{Holder::Kind::kDevice, 1};
constexpr Holder kStore{Holder::Kind::kStore, 5}, kOtherStore{Holder::Kind::kStore, 6};

std::vector<int32_t> prompt(int tokens) {
  std::vector<int32_t> ids(tokens);
  for (int i = 0; i < tokens; ++i) ids[i] = 7 * i;
  return ids;
}
std::vector<Hash128> pages_of(const std::vector<int32_t>& tokens, const std::string& salt = "") {
  std::vector<Hash128> pages;
  Hash128 parent = kvstore::root_identity(kKey.model_fingerprint, kKey.layout_fingerprint, salt);
  for (size_t at = 0; at + kKey.page_tokens <= tokens.size(); at += kKey.page_tokens)
    pages.push_back(parent = kvstore::chain_hash(parent, std::span(tokens).subspan(at, kKey.page_tokens)));
  return pages;
}
std::string bytes(const std::vector<Hash128>& pages) {
  return {reinterpret_cast<const char*>(pages.data()), pages.size() * sizeof(Hash128)};
}
std::vector<Hash128> slices(std::vector<Hash128> pages) {
  for (auto& page : pages) page = kvstore::rank_identity(page, 0, 2);
  return pages;
}

struct RouterIndexTest : testing::Test {
  bool tell(Holder holder, uint64_t sequence, const std::vector<Hash128>& added,
            const std::vector<Hash128>& removed = {}, bool reset = false) {
    wire::PrefixEvents events;
    events.set_sequence(sequence);
    events.set_added(bytes(added));
    events.set_removed(bytes(removed));
    events.set_reset(reset);
    return index.on_events(holder, events);
  }
  std::vector<PrefixRun> scan(const std::vector<int32_t>& tokens, const std::string& salt = "") {
    result = scan_prefix(index, under_way, kKey, std::array{0, 1}, salt, tokens);
    return result.runs;
  }
  monitoring::Metrics metrics{{{"role", "coordinator"}, {"rank", "0"}}};
  RouterIndex index{metrics, 100};
  PagesUnderWay under_way;
  PrefixScan result;
};

TEST_F(RouterIndexTest, SequencesHaveNoGaps) {
  const auto pages = pages_of(prompt(16));
  EXPECT_TRUE(tell(kFirst, 1, {pages[0]}));
  EXPECT_TRUE(tell(kFirst, 2, {pages[1], pages[2]}, {pages[0]}));
  EXPECT_EQ(index.size(), 2u);
  EXPECT_FALSE(tell(kFirst, 4, {pages[3]}));
  EXPECT_FALSE(index.pages(kFirst)->contains(pages[3]));
  EXPECT_TRUE(tell(kFirst, 5, {pages[3]})) << "asked for once; the reset will tell this, too";
  EXPECT_FALSE(index.pages(kFirst)->contains(pages[3]));
  EXPECT_TRUE(tell(kFirst, 9, {pages[3]}, {}, true));
  EXPECT_EQ(index.size(), 1u);
  EXPECT_TRUE(tell(kFirst, 10, {pages[0]}));
  EXPECT_FALSE(tell(kSecond, 3, {pages[0]})) << "its beginning was missed";
  EXPECT_TRUE(tell(kSecond, 4, {}, {}, true));
  index.drop(kFirst);
  EXPECT_EQ(index.size(), 0u);
  EXPECT_EQ(index.pages(kFirst), nullptr);
}

TEST_F(RouterIndexTest, HalfAnIdentityIsAGap) {
  wire::PrefixEvents events;
  events.set_sequence(1);
  events.set_added(std::string(17, 'x'));
  EXPECT_FALSE(index.on_events(kFirst, events));
  EXPECT_EQ(index.size(), 0u);
}

TEST_F(RouterIndexTest, BoundedByTheOldestOfWhoHasMost) {
  const auto pages = pages_of(prompt(4 * 150));
  EXPECT_TRUE(tell(kSecond, 1, {pages[0], pages[1]}));
  EXPECT_TRUE(tell(kFirst, 1, pages));
  EXPECT_EQ(index.size(), 100u);
  EXPECT_EQ(index.pages(kSecond)->size(), 2u);
  EXPECT_FALSE(index.pages(kFirst)->contains(pages[51]));
  EXPECT_TRUE(index.pages(kFirst)->contains(pages[52]));
}

TEST_F(RouterIndexTest, WhatIsUsedIsForgottenAfterWhatIsNot) {
  const auto hot = prompt(4 * 10 + 1);
  const auto here = pages_of(hot), stored = pages_of(hot, "stored");
  EXPECT_TRUE(tell(kFirst, 1, here));
  EXPECT_TRUE(tell(kStore, 1, slices(stored)));
  for (uint64_t i = 0; i < 20; ++i) {
    index.used(0, kKey.num_ranks, here);
    index.used(0, kKey.num_ranks, stored);
    const auto others = pages_of(prompt(4 * 20), "salt " + std::to_string(i));
    EXPECT_TRUE(tell(kFirst, 2 + i, others));
    EXPECT_TRUE(tell(kStore, 2 + i, slices(others)));
    EXPECT_EQ(scan(hot)[0], (PrefixRun{10, 0, 0}));
    EXPECT_EQ(scan(hot, "stored")[0], (PrefixRun{0, 0, 10}));
  }
  EXPECT_EQ(index.size(), 100u);
  EXPECT_TRUE(tell(kFirst, 22, pages_of(prompt(4 * 25), "more")));  // than came before the last use
  EXPECT_EQ(scan(hot)[0], (PrefixRun{5, 0, 0})) << "a prefix loses its end first";
}

TEST_F(RouterIndexTest, RunsEndAtTheFirstPageThatIsMissing) {
  const auto tokens = prompt(33);
  const auto pages = pages_of(tokens);
  EXPECT_EQ(scan(tokens), (std::vector<PrefixRun>{{}, {}}));
  EXPECT_TRUE(tell(kFirst, 1, {pages[0], pages[1], pages[3]}));
  EXPECT_EQ(scan(tokens), (std::vector<PrefixRun>{{2, 0, 0}, {}}));
  // What stores have goes on behind it, whichever store has it.
  EXPECT_TRUE(tell(kStore, 1, slices({pages[0], pages[2], pages[3]})));
  EXPECT_TRUE(tell(kOtherStore, 1, slices({pages[1], pages[4], pages[6]})));
  EXPECT_EQ(scan(tokens), (std::vector<PrefixRun>{{2, 0, 3}, {0, 0, 5}}));
  EXPECT_EQ(result.in_stores, (std::map<int, uint32_t>{{5, 3}, {6, 2}}));
  EXPECT_EQ(scan(tokens, "salted"), (std::vector<PrefixRun>{{}, {}}));
  index.drop(kOtherStore);
  EXPECT_EQ(scan(tokens), (std::vector<PrefixRun>{{2, 0, 2}, {0, 0, 1}}));
}

TEST_F(RouterIndexTest, WhatAReplicaIsAboutToComputeCountsAsThere) {
  const auto tokens = prompt(33);
  const auto pages = pages_of(tokens);
  EXPECT_EQ(pages_to_find(kKey, "", tokens), pages);
  EXPECT_TRUE(tell(kSecond, 1, {pages[0]}));
  EXPECT_TRUE(tell(kStore, 1, slices({pages[5]})));
  const std::vector<Hash128> five(pages.begin(), pages.begin() + 5);
  under_way.add(1, five);
  under_way.add(1, {five.data(), 2});  // a second request
  EXPECT_EQ(scan(tokens), (std::vector<PrefixRun>{{}, {5, 4, 1}}));
  under_way.remove(1, five);
  EXPECT_EQ(scan(tokens), (std::vector<PrefixRun>{{}, {2, 1, 0}}));
  under_way.remove(1, {five.data(), 2});
  EXPECT_EQ(scan(tokens), (std::vector<PrefixRun>{{}, {1, 0, 0}}));
  EXPECT_EQ(under_way.of(1), nullptr);
}

TEST_F(RouterIndexTest, TheLastTokenIsAlwaysComputed) {
  const auto tokens = prompt(8);
  EXPECT_TRUE(tell(kFirst, 1, pages_of(tokens)));
  EXPECT_EQ(scan(tokens)[0].device, 1u);
  EXPECT_EQ(scan(prompt(9))[0].device, 2u);
  EXPECT_EQ(scan({})[0].device, 0u);
}

}  // namespace
}  // namespace lowkey::coordinator
