// The requests of a store's workers, answered from its index.
#include "base/log.h"
#include "kvstore/service/page_io.h"
#include "kvstore/service/store_service.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

using monitoring::Metric;
using transport::ConnectionPtr;
using transport::MessageType;

namespace {

Error malformed(const std::string& what) {
  return {Code::kInvalidArgument, what};
}

template <class Message>
Result<Message> parse(std::string_view body, const char* name) {
  Message message;
  if (!message.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return malformed(fmt::format("{}: {} bytes that are not one", name, body.size()));
  }
  return message;
}

Status check_count(const char* name, int count) {
  if (count <= kMaxPagesPerMessage) return {};
  return malformed(fmt::format("{}: {} pages, at most {}", name, count, kMaxPagesPerMessage));
}

}  // namespace

void StoreService::answer(const ConnectionPtr& peer, MessageType type,
                          const google::protobuf::MessageLite& message) {
  // A peer that takes no answers runs into its own deadline, and what it was granted expires.
  if (const Status sent = peer->send(type, message.SerializeAsString()); !sent) {
    spdlog::warn("answer to rank {} lost: {}", peer->peer().world_rank, sent.error().message);
  }
}

Status StoreService::handle(const ConnectionPtr& peer, MessageType type, std::string_view body) {
  if (peer->peer().role == transport::Role::kCoordinator) {
    if (type == MessageType::kPrefixResync) announcer_.resync();
    return {};  // its other messages are the process's business
  }
  switch (type) {
    case MessageType::kReserveRequest: {
      LOWKEY_ASSIGN(request, parse<wire::ReserveRequest>(body, "ReserveRequest"));
      return reserve(peer, request);
    }
    case MessageType::kCommitRequest: {
      LOWKEY_ASSIGN(request, parse<wire::CommitRequest>(body, "CommitRequest"));
      return commit(peer, request);
    }
    case MessageType::kLookupRequest: {
      LOWKEY_ASSIGN(request, parse<wire::LookupRequest>(body, "LookupRequest"));
      return lookup(peer, request);
    }
    case MessageType::kAbort: {
      LOWKEY_ASSIGN(abort, parse<wire::Abort>(body, "Abort"));
      for (const uint64_t reservation : abort.reservations()) index_.abort(peer->id(), reservation);
      return {};
    }
    case MessageType::kRelease: {
      LOWKEY_ASSIGN(release, parse<wire::Release>(body, "Release"));
      for (const uint64_t lease : release.leases()) index_.release(peer->id(), lease);
      for (const uint64_t lease : release.corrupt()) index_.release_corrupt(peer->id(), lease);
      return {};
    }
    default:
      return malformed(fmt::format("message type {} is not for a store", static_cast<int>(type)));
  }
}

Status StoreService::reserve(const ConnectionPtr& peer, const wire::ReserveRequest& request) {
  LOWKEY_TRY(check_count("ReserveRequest", request.pages_size()));
  for (const auto& page : request.pages()) {  // all of it is well-formed, or none of it is done
    if (const auto identity = parse_hash128(page.identity()); !identity) return identity.error();
    uint64_t bytes = 0;
    for (const uint32_t slab : page.slab_bytes()) bytes += slab;
    if (page.slab_bytes_size() > kernels::kMaxSlabs || bytes == 0) {
      return malformed(fmt::format("ReserveRequest: page of {} slabs and {} bytes, expected 1 to {} slabs",
                                   page.slab_bytes_size(), bytes, kernels::kMaxSlabs));
    }
  }
  wire::ReserveReply reply;
  reply.set_id(request.id());
  const TimePoint now = Clock::now();
  for (const auto& page : request.pages()) {
    const std::span slab_bytes(page.slab_bytes().data(), page.slab_bytes_size());
    const auto reservation = index_.reserve(peer->id(), *parse_hash128(page.identity()), slab_bytes, now);
    wire::PageGrant& grant = *reply.add_pages();
    const bool granted = reservation.grant == StoreIndex::Grant::kGranted;
    grant.set_already_present(granted ? reservation.there != 0
                                      : reservation.grant == StoreIndex::Grant::kAlreadyPresent);
    if (!granted) continue;
    grant.set_granted(true);
    grant.set_reservation(reservation.id);
    for (int i = 0; i < page.slab_bytes_size(); ++i) {
      grant.add_offsets((reservation.there >> i & 1) != 0 ? kSlabIsThere : reservation.slabs[i].offset);
    }
  }
  answer(peer, MessageType::kReserveReply, reply);
  return {};
}

Status StoreService::commit(const ConnectionPtr& peer, const wire::CommitRequest& request) {
  LOWKEY_TRY(check_count("CommitRequest", request.pages_size()));
  for (const auto& page : request.pages()) {
    const auto header = parse_page_header(page.header());
    if (!header && header.error().code == Code::kInvalidArgument) return header.error();
  }
  std::vector<bool> committed(request.pages_size());
  for (int i = request.pages_size() - 1; i >= 0; --i) {  // the first becomes the most recently used
    committed[i] = commit_page(peer->id(), request.pages(i).reservation(), request.pages(i).header());
  }
  wire::CommitReply reply;
  reply.set_id(request.id());
  for (const bool one : committed) reply.add_committed(one);
  answer(peer, MessageType::kCommitReply, reply);
  return {};
}

bool StoreService::commit_page(uint64_t owner, uint64_t reservation, std::string_view bytes) {
  const auto header = parse_page_header(bytes);
  if (header && index_.commit(owner, reservation, *header, Clock::now())) return true;
  index_.abort(owner, reservation);
  return false;
}

Status StoreService::lookup(const ConnectionPtr& peer, const wire::LookupRequest& request) {
  LOWKEY_TRY(check_count("LookupRequest", request.identities_size()));
  std::vector<Hash128> identities;
  for (const auto& bytes : request.identities()) {
    LOWKEY_ASSIGN(identity, parse_hash128(bytes));
    identities.push_back(identity);
  }
  const TimePoint now = Clock::now();
  for (const Hash128& identity : identities) {
    if (const auto since = index_.evicted_since(identity, now)) {
      metrics_.observe(Metric::kEvictToReuse, seconds(*since));
    }
  }
  const auto reply_with = [peer, id = request.id()](const std::vector<TieredLookup::Page>& pages) {
    wire::LookupReply reply;
    reply.set_id(id);
    for (const auto& [found, tier] : pages) {
      wire::FoundPage& page = *reply.add_pages();
      page.set_lease(found.lease);
      page.set_header(std::string(page_header_bytes(found.header)));
      page.set_tier(tier);
      page.set_index(static_cast<uint32_t>(found.index));
      for (const Slab& slab : found.slabs) {
        page.add_offsets(slab.offset);
        page.add_slab_bytes(slab.bytes);
      }
    }
    answer(peer, MessageType::kLookupReply, reply);
  };
  if (tiered_) {
    tiered_->lookup(peer->id(), std::move(identities), request.slabs(), request.gaps(), reply_with);
    return {};
  }
  std::vector<TieredLookup::Page> pages;
  for (auto& found : index_.lookup(peer->id(), identities, request.slabs(), request.gaps(), now)) {
    pages.push_back({std::move(found)});
  }
  reply_with(pages);
  return {};
}

}  // namespace lowkey::kvstore
