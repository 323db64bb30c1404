// The contract of data_plane.h, held against every implementation.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <optional>

#include "tests/unit/transport/kinds.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {
namespace {

using namespace std::chrono_literals;

template <class Kind>
class DataSuite : public TransportSuite<Kind> {};
TYPED_TEST_SUITE(DataSuite, Kinds);

std::vector<std::byte> pattern(size_t bytes, uint32_t seed) {
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    seed = seed * 1664525u + 1013904223u;
    data[i] = static_cast<std::byte>(seed >> 24);
  }
  return data;
}

template <class Suite>
struct Transfers {
  explicit Transfers(Suite& suite, size_t bytes) : server(suite.server()), client(suite.client()) {
    auto connected = client->connect(server->control->address());
    if (!connected.ok()) throw std::runtime_error(connected.error().message);
    connection = *connected;
    auto allocated = server->on_io([&] { return server->data->allocate(bytes); });
    if (!allocated.ok()) throw std::runtime_error(allocated.error().message);
    pool = *allocated;
    auto opened = client->on_io(
        [&] { return client->data->open(connection, server->data->address(), pool->remote_handle()); });
    if (!opened.ok()) throw std::runtime_error(opened.error().message);
    remote = *opened;
  }
  ~Transfers() {
    client->stop();
    server->stop();
  }
  std::unique_ptr<Node> server, client;
  ConnectionPtr connection;
  std::shared_ptr<MemoryPool> pool;
  std::shared_ptr<RemotePool> remote;
};

TYPED_TEST(DataSuite, PutsAndGetsPieces) {
  Transfers<DataSuite<TypeParam>> t(*this, 16 << 20);
  EXPECT_EQ(t.remote->size(), 16u << 20);
  EXPECT_STREQ(t.remote->transport(), this->kind.transport_name());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.pool->bytes().data()) % 4096, 0u);

  std::vector<std::vector<std::byte>> pieces;
  std::vector<Transfer> batch;
  uint64_t offset = 0;
  for (size_t mib = 1; mib <= 4; ++mib) {
    pieces.push_back(pattern((mib << 20) - 64 * mib, mib));
    batch.push_back({pieces.back(), offset});
    offset += mib << 20;
  }
  ASSERT_TRUE(t.client->put(t.remote, batch).ok());
  offset = 0;
  for (size_t mib = 1; mib <= 4; ++mib) {
    EXPECT_EQ(slab_checksum(t.pool->bytes().subspan(offset, pieces[mib - 1].size())),
              slab_checksum(pieces[mib - 1]));
    offset += mib << 20;
  }

  const auto source = pattern(16 << 20, 99);
  t.server->on_io([&] {
    std::memcpy(t.pool->bytes().data(), source.data(), source.size());
    return 0;
  });
  for (auto& piece : pieces) std::fill(piece.begin(), piece.end(), std::byte{0});
  ASSERT_TRUE(t.client->get(t.remote, batch).ok());
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(slab_checksum(pieces[i]),
              slab_checksum(std::span(source).subspan(batch[i].remote_offset, pieces[i].size())));
  }
  const TransferStats stats = t.client->stats().transfers.at(t.remote->transport());
  EXPECT_EQ(stats.put_batches, 1u);
  EXPECT_EQ(stats.get_batches, 1u);
  EXPECT_EQ(stats.put_bytes, (10u << 20) - 640);
  EXPECT_EQ(stats.failed_puts + stats.failed_gets, 0u);
}

TYPED_TEST(DataSuite, MovesManySmallPiecesInOneBatch) {
  Transfers<DataSuite<TypeParam>> t(*this, 4 << 20);
  const auto source = pattern(4 << 20, 7);
  std::vector<std::byte> back(source.size());
  std::vector<Transfer> puts, gets;
  for (size_t at = 0; at < source.size(); at += 4096) {  // the local copy of `source` is only read by a put
    puts.push_back({{const_cast<std::byte*>(source.data()) + at, 4096}, source.size() - 4096 - at});
    gets.push_back({std::span(back).subspan(at, 4096), source.size() - 4096 - at});
  }
  ASSERT_TRUE(t.client->put(t.remote, puts).ok());
  ASSERT_TRUE(t.client->get(t.remote, gets).ok());
  EXPECT_EQ(back, source);
  EXPECT_TRUE(t.client->put(t.remote, {}).ok());
}

TYPED_TEST(DataSuite, TellsThePathOfAPairOnce) {
  std::optional<Transfers<DataSuite<TypeParam>>> made;
  for (int attempt = 0; attempt < 5; ++attempt) {
    made.emplace(*this, 4 << 20);
    ASSERT_TRUE(made->client->wait_paths(1));
    const Attestation path = made->client->paths()[0];
    if (path.put_bytes_per_second > 0 && path.get_bytes_per_second > 0) break;
    if (!this->kind.is_measured()) break;
    // A batch took longer than its deadline: a thread was not scheduled for seconds. Once more.
  }
  auto& t = *made;
  auto again = t.client->on_io(
      [&] { return t.client->data->open(t.connection, t.server->data->address(), t.pool->remote_handle()); });
  ASSERT_TRUE(again.ok());
  std::vector<std::byte> local(4096);
  ASSERT_TRUE(t.client->put(t.remote, {{local, 0}}).ok());
  ASSERT_EQ(t.client->paths().size(), 1u);
  const Attestation path = t.client->paths()[0];
  EXPECT_EQ(path.peer_role, Role::kStore);
  EXPECT_EQ(path.peer_rank, 3);
  EXPECT_STREQ(to_string(path.found), this->kind.transport_name());
  EXPECT_TRUE(path.as_expected()) << describe(path);
  EXPECT_NE(path.device.find(this->kind.device_name()), std::string::npos) << path.device;
  EXPECT_EQ(path.put_bytes_per_second > 0, this->kind.is_measured());
  EXPECT_EQ(path.get_bytes_per_second > 0, this->kind.is_measured());

  const TransportStats stats = t.client->stats();
  ASSERT_EQ(stats.paths_now.size(), 1u);
  EXPECT_EQ(stats.transfers.at(t.remote->transport()).put_bytes, 4096u);  // measuring is no traffic
  EXPECT_EQ(stats.transfers.at(t.remote->transport()).get_batches, 0u);
  EXPECT_TRUE(t.server->paths().empty());  // only who transfers can tell
  for (const std::byte b : t.pool->bytes()) ASSERT_EQ(b, std::byte{0});
  t.server->stop();
  ASSERT_TRUE(t.client->wait_downs(1));
  EXPECT_TRUE(t.client->stats().paths_now.empty());
}

bool came_true(const std::function<bool()>& condition) {
  const Deadline deadline = Deadline::in(2 * kPatience);  // a transfer may take one
  while (!condition()) {
    if (deadline.passed()) return false;
    std::this_thread::yield();
  }
  return true;
}

// Over a network the owner's CPU writes what arrives, whether or not anybody wants it any more.
TYPED_TEST(DataSuite, AFreedPoolStaysUntilItsUsersHaveHungUp) {
  constexpr size_t kBytes = 16 << 20;
  this->missed_heartbeats = 8;  // the client's end is noticed by its silence
  Transfers<DataSuite<TypeParam>> t(*this, kBytes);
  const auto source = std::make_shared<std::vector<std::byte>>(pattern(kBytes, 5));
  std::atomic<int> ended = 0;
  const auto put_all = [&] {
    for (int i = 0; i < 4; ++i) {
      t.client->data->put(t.remote, {{*source, 0}}, Deadline::in(kPatience), source,
                          [&ended](const Status&) { ++ended; });
    }
    return 0;
  };
  t.client->on_io(put_all);
  t.server->on_io([&] {
    t.pool.reset();
    return 0;
  });
  t.client->on_io(put_all);
  ASSERT_TRUE(came_true([&] { return ended == 8; }));
  // The owner is alive and well, and its next pool works.
  auto next = t.server->on_io([&] { return t.server->data->allocate(kBytes); });
  ASSERT_TRUE(next.ok()) << next.error().message;
  auto remote = t.client->on_io([&] {
    return t.client->data->open(t.connection, t.server->data->address(), (*next)->remote_handle());
  });
  ASSERT_TRUE(remote.ok()) << remote.error().message;
  ASSERT_TRUE(t.client->put(*remote, {{*source, 0}}).ok());
  EXPECT_EQ(slab_checksum((*next)->bytes()), slab_checksum(*source));
  if (this->kind.is_measured()) {
    EXPECT_GE(t.server->stats().quarantined_bytes_now, kBytes);
  }
  t.client->stop();
  EXPECT_TRUE(came_true([&] { return t.server->stats().quarantined_bytes_now == 0; }));
}

TYPED_TEST(DataSuite, RefusesTransfersOutsideThePool) {
  Transfers<DataSuite<TypeParam>> t(*this, 1 << 20);
  std::vector<std::byte> local(4096);
  for (uint64_t offset : {uint64_t{(1 << 20) - 4095}, uint64_t{1} << 40, ~uint64_t{0} - 100}) {
    const Status status = t.client->put(t.remote, {{local, offset}});
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, Code::kInvalidArgument);
  }
}

TYPED_TEST(DataSuite, RefusesAMalformedHandle) {
  Transfers<DataSuite<TypeParam>> t(*this, 1 << 20);
  for (std::string handle : {std::string(), std::string("x"), std::string(300, '\xff')}) {
    auto opened = t.client->on_io(
        [&] { return t.client->data->open(t.connection, t.server->data->address(), handle); });
    EXPECT_FALSE(opened.ok());
  }
}

TYPED_TEST(DataSuite, FailsTransfersToAPeerThatIsDown) {
  Transfers<DataSuite<TypeParam>> t(*this, 1 << 20);
  t.server->stop();
  ASSERT_TRUE(t.client->wait_downs(1));
  std::vector<std::byte> local(4096);
  auto keep_alive = std::make_shared<int>(0);
  const Status status = t.client->put(t.remote, {{local, 0}}, kPatience, keep_alive);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kUnavailable);
  t.client->stats();  // a turn of the loop
  EXPECT_EQ(keep_alive.use_count(), 1);
  EXPECT_EQ(t.client->stats().quarantined_bytes_now, 0u);
}

TYPED_TEST(DataSuite, ReleasesWhatItKeptAlive) {
  Transfers<DataSuite<TypeParam>> t(*this, 1 << 20);
  auto local = std::make_shared<std::vector<std::byte>>(1 << 20);
  ASSERT_TRUE(t.client->get(t.remote, {{*local, 0}}, kPatience, local).ok());
  t.client->stats();
  EXPECT_EQ(local.use_count(), 1);
}

// One host by name, but no shared memory with the peer: what happens without a word in UCX is told here.
TEST(TransportPaths, AFallbackFromSharedMemoryIsAMismatch) {
  Ucx kind;
  Node server(kind.make(), test_options(Role::kStore, 3)), client(kind.make(), test_options());
  auto connection = client.connect(server.control->address());
  ASSERT_TRUE(connection.ok());
  auto pool = server.on_io([&] { return server.data->allocate(1 << 20); });
  ASSERT_TRUE(pool.ok());
  auto opened = client.on_io(
      [&] { return client.data->open(*connection, "no data address", (*pool)->remote_handle()); });
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  ASSERT_TRUE(client.wait_paths(1));
  const Attestation path = client.paths()[0];
  EXPECT_EQ(path.found, Path::kTcp);
  EXPECT_EQ(path.expected, Path::kShm);
  EXPECT_FALSE(check_required(path, "expected").ok());
  EXPECT_FALSE(check_required(path, "shm").ok());
  EXPECT_TRUE(check_required(path, "any").ok());
  client.stop();
  server.stop();
}

}  // namespace
}  // namespace lowkey::transport
