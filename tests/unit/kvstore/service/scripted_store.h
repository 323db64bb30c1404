// A store that answers as a test wants it to: what an honest one would never say, or what one says of pages
// that were long on disk.
#pragma once

#include "kvstore/service/page_io.h"
#include "tests/unit/kvstore/service/store_cluster.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

class ScriptedStore : public Process {
 public:
  ScriptedStore(const MakePlanes& make_planes, int world_rank, size_t pool_bytes)
      : Process(transport::Role::kStore, world_rank) {
    make(make_planes, peer_options(transport::Role::kStore, world_rank),
         {.on_up = [this](const auto& peer) { greet(peer); },
          .on_message = [this](const auto& peer, auto type, auto body) { answer(peer, type, body); },
          .on_down = [](const auto&, const auto&) {}});
    pool_ = data->allocate(pool_bytes).value();
    run();
  }
  ~ScriptedStore() {
    stop([this] { pool_.reset(); });
  }

  // I/O thread. Unset: the message is not answered.
  std::function<wire::LookupReply(const wire::LookupRequest&)> on_lookup;
  std::function<wire::ReserveReply(const wire::ReserveRequest&)> on_reserve;
  std::vector<wire::CommitRequest> commits;
  std::vector<wire::Release> releases;

  std::span<std::byte> pool() { return pool_->bytes(); }

  // Puts the page's slabs at `at` and describes it.
  wire::FoundPage hold(const PageWrite& page, size_t at, uint64_t lease) {
    wire::FoundPage found;
    found.set_lease(lease);
    found.set_header(std::string(page_header_bytes(page.header)));
    found.set_tier(static_cast<uint32_t>(PageSource::kHost));
    for (const auto& slab : page.slabs) {
      found.add_offsets(at);
      found.add_slab_bytes(static_cast<uint32_t>(slab.size()));
      if (!slab.empty()) std::memcpy(pool().data() + at, slab.data(), slab.size());
      at += slab.size();
    }
    return found;
  }

 private:
  void greet(const transport::ConnectionPtr& peer) {
    wire::PoolInfo info;
    info.set_data_address(data->address());
    info.set_remote_handle(pool_->remote_handle());
    info.set_capacity_bytes(pool_->bytes().size());
    info.set_reservation_ms(3'600'000);
    info.set_lease_ms(3'600'000);
    EXPECT_TRUE(peer->send(transport::MessageType::kPoolInfo, info.SerializeAsString()).ok());
  }
  template <class Request, class Reply>
  void reply(const transport::ConnectionPtr& peer, std::string_view body, transport::MessageType type,
             const std::function<Reply(const Request&)>& script) {
    Request request;
    ASSERT_TRUE(request.ParseFromArray(body.data(), static_cast<int>(body.size())));
    if (!script) return;
    Reply reply = script(request);
    reply.set_id(request.id());
    EXPECT_TRUE(peer->send(type, reply.SerializeAsString()).ok());
  }
  void answer(const transport::ConnectionPtr& peer, transport::MessageType type, std::string_view body) {
    using transport::MessageType;
    if (type == MessageType::kLookupRequest) return reply(peer, body, MessageType::kLookupReply, on_lookup);
    if (type == MessageType::kReserveRequest)
      return reply(peer, body, MessageType::kReserveReply, on_reserve);
    if (type == MessageType::kCommitRequest) {
      std::function<wire::CommitReply(const wire::CommitRequest&)> all = [this](const auto& request) {
        commits.push_back(request);
        wire::CommitReply reply;
        for (int i = 0; i < request.pages_size(); ++i) reply.add_committed(true);
        return reply;
      };
      return reply(peer, body, MessageType::kCommitReply, all);
    }
    if (type == MessageType::kRelease) {
      ASSERT_TRUE(releases.emplace_back().ParseFromArray(body.data(), static_cast<int>(body.size())));
    }
  }

  std::shared_ptr<transport::MemoryPool> pool_;
};

}  // namespace lowkey::kvstore
