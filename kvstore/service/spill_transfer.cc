#include "kvstore/service/spill_transfer.h"

#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

namespace {

constexpr uint64_t kSlabIsThere = UINT64_MAX;  // as an offset: the store kept it when it dropped others

}  // namespace

using transport::MessageType;
using transport::Transfer;

SpillTransfer::SpillTransfer(std::shared_ptr<StoreLink> link, uint64_t id, std::vector<PageWrite> pages,
                             Deadline deadline, std::shared_ptr<void> token, Done done)
    : link_(std::move(link)),
      id_(id),
      deadline_(deadline),
      pages_(std::move(pages)),
      token_(std::move(token)),
      done_(std::move(done)),
      timer_(link_->io),
      undecided_(pages_.size()) {}

void SpillTransfer::start() {
  timer_.expires_at(deadline_.at());
  timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (!error) self->fail("store did not answer by the deadline");
  });
  wire::ReserveRequest request;
  request.set_id(id_);
  for (const PageWrite& page : pages_) {
    wire::PageReservation& wanted = *request.add_pages();
    wanted.set_identity(hash128_bytes(page.header.identity));
    for (const auto& slab : page.slabs) wanted.add_slab_bytes(slab.size());
  }
  const Status sent = link_->connection->send(MessageType::kReserveRequest, request.SerializeAsString());
  if (!sent) fail(sent.error().message);
}

void SpillTransfer::on_reserved(const wire::ReserveReply& reply) {
  if (!done_ || !granted_.empty()) return;  // over, or answered twice
  if (reply.pages_size() != static_cast<int>(pages_.size())) {
    return fail(fmt::format("store granted {} pages of {}", reply.pages_size(), pages_.size()));
  }
  for (size_t i = 0; i < pages_.size(); ++i) {
    const wire::PageGrant& grant = reply.pages(static_cast<int>(i));
    if (!grant.granted()) {  // granted and already_present: some of its slabs are there
      ++(grant.already_present() ? outcome_.already_present : outcome_.store_full);
      if (grant.already_present()) outcome_.held.push_back(pages_[i].header.identity);
      --undecided_;
      continue;
    }
    bool inside = grant.offsets_size() == kernels::kMaxSlabs;
    for (int s = 0; inside && s < kernels::kMaxSlabs; ++s) {
      inside = grant.offsets(s) == kSlabIsThere || link_->inside(grant.offsets(s), pages_[i].slabs[s].size());
    }
    if (!inside) return fail("store granted bytes outside of its pool");
    granted_.push_back({i, grant.reservation(), {grant.offsets().begin(), grant.offsets().end()}});
  }
  granted_.empty() ? finish() : put();
}

void SpillTransfer::put() {
  std::vector<Transfer> batch;
  for (const Granted& granted : granted_) {
    const auto& slabs = pages_[granted.page].slabs;
    for (size_t s = 0; s < slabs.size(); ++s) {
      if (slabs[s].empty() || granted.offsets[s] == kSlabIsThere) continue;
      // A put only reads; Transfer has one type for both directions.
      auto* local = const_cast<std::byte*>(slabs[s].data());
      batch.push_back({{local, slabs[s].size()}, granted.offsets[s]});
    }
  }
  struct Alive {
    std::vector<PageWrite> pages;
    std::shared_ptr<void> token;
  };
  auto alive = std::make_shared<Alive>(Alive{pages_, token_});
  link_->data.put(link_->pool, std::move(batch), deadline_, std::move(alive),
                  [self = shared_from_this()](const Status& status) {
                    if (!self->done_) return;
                    status ? self->commit() : self->fail(status.error().message);
                  });
}

void SpillTransfer::commit() {
  wire::CommitRequest request;
  request.set_id(id_);
  for (const Granted& granted : granted_) {
    wire::PageCommit& page = *request.add_pages();
    page.set_reservation(granted.reservation);
    page.set_header(std::string(page_header_bytes(pages_[granted.page].header)));
  }
  const Status sent = link_->connection->send(MessageType::kCommitRequest, request.SerializeAsString());
  if (!sent) fail(sent.error().message);
}

void SpillTransfer::on_committed(const wire::CommitReply& reply) {
  if (!done_) return;
  if (reply.committed_size() != static_cast<int>(granted_.size())) {
    return fail(fmt::format("store committed {} pages of {}", reply.committed_size(), granted_.size()));
  }
  for (size_t i = 0; i < granted_.size(); ++i) {
    if (!reply.committed(static_cast<int>(i))) continue;
    outcome_.held.push_back(pages_[granted_[i].page].header.identity);
    ++outcome_.stored;
    --undecided_;
  }
  undecided_ == 0 ? finish() : fail("store refused to commit: reservation expired or header unfit");
}

void SpillTransfer::fail(const std::string& reason) {
  if (!done_) return;
  outcome_.failed += undecided_;
  undecided_ = 0;
  outcome_.reason = reason;
  finish();
}

void SpillTransfer::finish() {
  timer_.cancel();
  pages_.clear();
  token_.reset();
  std::exchange(done_, nullptr)(outcome_);
}

}  // namespace lowkey::kvstore
