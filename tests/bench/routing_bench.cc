// What one routing decision costs: a prompt of 32k tokens in pages of 32, on replicas that have all of it,
// half of it, and nothing. ninja -C build/release routing_bench
#include <benchmark/benchmark.h>

#include <cstring>

#include "base/serve_config.h"
#include "coordinator/membership/membership.h"
#include "coordinator/routing/router.h"
#include "kvstore/page/page_identity.h"
#include "monitoring/metrics.h"
#include "tests/support/fake_connection.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

constexpr int kPageTokens = 32;

// Replicas and one store, among as many other pages as the index takes.
struct Cluster {
  explicit Cluster(int replicas) {
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7919 % 49152);
    Hash128 fingerprint;
    std::memset(&fingerprint, 'f', sizeof(fingerprint));
    Hash128 page = kvstore::root_identity(fingerprint, fingerprint, "");
    for (size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens)
      pages.push_back(page = kvstore::chain_hash(page, std::span(tokens).subspan(at, kPageTokens)));
    for (int id = 0; id < replicas; ++id) {
      auto peer = up(transport::Role::kWorker, 1 + id, id);
      wire::ReplicaState state;
      state.set_ready(true);
      state.set_max_sequence_tokens(1 << 20);
      auto& cache = *state.mutable_cache();
      cache.set_model_fingerprint(std::string(16, 'f'));
      cache.set_layout_fingerprint(std::string(16, 'f'));
      cache.set_page_tokens(kPageTokens);
      cache.set_num_ranks(1);
      membership.on_state(peer, state);
      fill(peer, static_cast<uint64_t>(id) + 1);
    }
  }
  transport::ConnectionPtr up(transport::Role role, int world_rank, int replica) {
    auto peer = std::make_shared<test::FakeConnection>(role, world_rank, replica);
    membership.on_up(peer);
    router.on_up(peer);
    return peer;
  }
  void fill(const transport::ConnectionPtr& peer, uint64_t salt) {
    std::vector<Hash128> others(40'000);
    for (size_t i = 0; i < others.size(); ++i) others[i] = hash128(std::to_string(i), {salt, salt});
    tell(peer, others, true);
  }
  void tell(const transport::ConnectionPtr& peer, std::span<const Hash128> added, bool reset = false) {
    wire::PrefixEvents events;
    events.set_sequence(++sequences[peer->id()]);
    events.set_reset(reset);
    events.set_added(added.data(), added.size_bytes());
    router.on_prefix_events(peer, events);
  }
  void give(int replica, size_t count) {
    tell(membership.find(replica)->leader, std::span(pages).subspan(0, count));
  }

  std::vector<int32_t> tokens = std::vector<int32_t>(32 << 10);
  std::vector<Hash128> pages;
  std::map<uint64_t, uint64_t> sequences;
  monitoring::Metrics metrics{{{"role", "coordinator"}, {"rank", "0"}}};
  Membership membership{metrics};
  Router router{ServeConfig{}, membership, metrics};
};

// Pages that every replica has of the prompt: none, half, all; the store has the rest of it in the last case.
void choose(benchmark::State& state) {
  const auto replicas = static_cast<int>(state.range(0));
  Cluster cluster(replicas);
  const auto had = static_cast<size_t>(state.range(1)) * cluster.pages.size() / 100;
  for (int id = 0; id < replicas; ++id) cluster.give(id, had);
  if (state.range(2) > 0) {
    auto store = cluster.up(transport::Role::kStore, 100, 0);
    cluster.fill(store, 100);
    std::vector<Hash128> slices;
    for (const auto& page : cluster.pages) slices.push_back(kvstore::rank_identity(page, 0, 1));
    cluster.tell(store, slices);
  }
  for (auto _ : state)
    benchmark::DoNotOptimize(cluster.router.choose({.tokens = cluster.tokens, .total_tokens = 33 << 10}));
}
BENCHMARK(choose)
    ->ArgNames({"replicas", "percent_on_devices", "rest_in_store"})
    ->Unit(benchmark::kMicrosecond)
    ->Args({2, 0, 0})
    ->Args({2, 50, 0})
    ->Args({2, 100, 0})
    ->Args({2, 50, 1})
    ->Args({2, 0, 1})
    ->Args({16, 100, 0});

}  // namespace
}  // namespace lowkey::coordinator

BENCHMARK_MAIN();
