#include "kvstore/service/store_client.h"

#include <algorithm>

#include "base/log.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

using transport::MessageType;

namespace {

template <class Message>
Result<Message> parse(std::string_view body, const char* name) {
  Message message;
  if (!message.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return Error{Code::kInvalidArgument, fmt::format("{}: {} bytes that are not one", name, body.size())};
  }
  return message;
}

}  // namespace

StoreClient::StoreClient(const Shared& shared, transport::ConnectionPtr connection, bool admitted)
    : link_(std::make_shared<StoreLink>(StoreLink{shared.io, shared.data, std::move(connection), nullptr})),
      restore_context_(shared.restores),
      fetches_(FetchQueue::create(shared.io, shared.restored_bytes, shared.restores.format.device)),
      spill_budget_(std::make_shared<TransferBudget>(kMaxSpillBytes, kMaxSpills, shared.spilled_bytes)),
      admitted_(admitted),
      self_(std::make_shared<StoreClient*>(this)) {}

StoreClient::~StoreClient() {
  on_down("shutting down");
  *self_ = nullptr;
}

void StoreClient::on_message(MessageType type, std::string_view body) {
  const Status handled = handle(type, body);
  if (handled) return;
  spdlog::warn("closing store, rank {}: {}", connection()->peer().world_rank, handled.error().message);
  connection()->close(handled.error().message);
}

Status StoreClient::handle(MessageType type, std::string_view body) {
  switch (type) {
    case MessageType::kPoolInfo:
      return open_pool(body);
    case MessageType::kReserveReply: {
      LOWKEY_ASSIGN(reply, parse<wire::ReserveReply>(body, "ReserveReply"));
      if (const auto spill = spills_.find(reply.id()); spill != spills_.end()) {
        const auto transfer = spill->second;  // it may end in there
        transfer->on_reserved(reply);
        return {};
      }
      wire::Abort abort;  // too late for whom it was meant
      for (const auto& page : reply.pages()) {
        if (page.granted()) abort.add_reservations(page.reservation());
      }
      return abort.reservations().empty()
                 ? Status()
                 : connection()->send(MessageType::kAbort, abort.SerializeAsString());
    }
    case MessageType::kCommitReply: {
      LOWKEY_ASSIGN(reply, parse<wire::CommitReply>(body, "CommitReply"));
      if (const auto spill = spills_.find(reply.id()); spill != spills_.end()) {
        const auto transfer = spill->second;
        transfer->on_committed(reply);
      }
      return {};
    }
    case MessageType::kLookupReply: {
      LOWKEY_ASSIGN(reply, parse<wire::LookupReply>(body, "LookupReply"));
      if (const auto restore = restores_.find(reply.id()); restore != restores_.end()) {
        const auto transfer = restore->second;
        transfer->on_found(reply);
        return {};
      }
      wire::Release release;  // likewise
      for (const auto& page : reply.pages()) release.add_leases(page.lease());
      return release.leases().empty()
                 ? Status()
                 : connection()->send(MessageType::kRelease, release.SerializeAsString());
    }
    case MessageType::kLeave:
      leaving_ = true;
      hang_up_if_idle();
      return {};
    default:
      return Error{Code::kInvalidArgument,
                   fmt::format("message type {} is not for a store's client", static_cast<int>(type))};
  }
}

Status StoreClient::open_pool(std::string_view body) {
  LOWKEY_ASSIGN(info, parse<wire::PoolInfo>(body, "PoolInfo"));
  LOWKEY_ASSIGN(pool, link_->data.open(connection(), info.data_address(), info.remote_handle()));
  link_->pool = std::move(pool);
  max_spill_time_ = std::chrono::milliseconds(info.reservation_ms()) / 2;
  return {};
}

void StoreClient::hang_up_if_idle() {
  if (leaving_ && spills_.empty() && restores_.empty()) connection()->close("the store leaves");
}

void StoreClient::on_down(const std::string& reason) {
  link_->pool = nullptr;
  for (const auto& [id, spill] : std::exchange(spills_, {})) spill->fail(reason);
  for (const auto& [id, restore] : std::exchange(restores_, {})) restore->fail(reason);
}

void StoreClient::spill(std::vector<PageWrite> pages, Deadline deadline, SpillTransfer::Done done) {
  uint64_t bytes = 0;
  for (const PageWrite& page : pages) {
    for (const auto& slab : page.slabs) bytes += slab.size();
  }
  if (!ready()) return done({.failed = pages.size(), .reason = "store is not connected"});
  auto token = pages.size() <= kMaxPagesPerMessage ? spill_budget_->take(bytes) : nullptr;
  if (!token) return done({.staging_full = pages.size(), .reason = "too much on its way to the store"});
  deadline = Deadline(std::min(deadline.at(), Clock::now() + max_spill_time_));
  const uint64_t id = next_id_++;
  auto ended = [self = self_, id, done = std::move(done)](const SpillOutcome& outcome) {
    if (*self) (*self)->spills_.erase(id);
    done(outcome);
    if (*self) (*self)->hang_up_if_idle();
  };
  const auto transfer = std::make_shared<SpillTransfer>(link_, id, std::move(pages), deadline,
                                                        std::move(token), std::move(ended));
  spills_.emplace(id, transfer);
  transfer->start();
}

void StoreClient::restore(std::vector<PageRead> pages, const RestoreOptions& options, Deadline deadline,
                          RestoreTransfer::Done done) {
  const auto refuse = [&](const char* reason) { done(RestoreOutcome::failed(pages.size(), reason)); };
  if (!ready()) return refuse("store is not connected");
  if (restores_.size() >= kMaxRestores || pages.size() > kMaxPagesPerMessage)
    return refuse("too many restores or pages wait for the store");
  const uint64_t id = next_id_++;
  auto ended = [self = self_, id, done = std::move(done)](RestoreOutcome outcome) {
    if (*self) (*self)->restores_.erase(id);
    done(std::move(outcome));
    if (*self) (*self)->hang_up_if_idle();
  };
  const auto transfer = std::make_shared<RestoreTransfer>(
      link_, fetches_, restore_context_, id, std::move(pages), options, deadline, std::move(ended));
  restores_.emplace(id, transfer);
  transfer->start();
}

}  // namespace lowkey::kvstore
