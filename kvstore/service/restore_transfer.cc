#include "kvstore/service/restore_transfer.h"

#include <boost/asio/post.hpp>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

using transport::MessageType;
using transport::Transfer;

namespace {

// One batch is fetched while another is verified.
constexpr size_t kMaxBatches = 2;

size_t page_bytes(const PageRead& page) {
  size_t bytes = 0;
  for (const auto& slab : page.slabs) bytes += slab.size();
  return bytes;
}

}  // namespace

RestoreTransfer::RestoreTransfer(std::shared_ptr<StoreLink> link, uint64_t id, std::vector<PageRead> pages,
                                 Deadline deadline, const PageOrigin& origin,
                                 std::shared_ptr<BounceBuffers> buffers, PageVerifier& verifier, Done done)
    : link_(std::move(link)),
      io_(link_->io),
      id_(id),
      deadline_(deadline),
      origin_(origin),
      pages_(std::move(pages)),
      buffers_(std::move(buffers)),
      verifier_(verifier),
      done_(std::move(done)),
      timer_(link_->io) {}

void RestoreTransfer::arm() {
  timer_.expires_at(deadline_.at());
  timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (!error) self->stop(RestoreEnd::kFailed, "store did not answer by the deadline");
  });
}

void RestoreTransfer::start() {
  if (asked_) return;
  asked_ = true;
  wire::LookupRequest request;
  request.set_id(id_);
  for (const PageRead& page : pages_) request.add_identities(hash128_bytes(page.identity));
  const Status sent = link_->connection->send(MessageType::kLookupRequest, request.SerializeAsString());
  if (!sent) stop(RestoreEnd::kFailed, sent.error().message);
}

void RestoreTransfer::on_found(const wire::LookupReply& reply) {
  if (answered_) return;
  answered_ = true;
  for (const auto& page : reply.pages()) leases_.push_back(page.lease());
  if (const Status accepted = accept(reply); !accepted) {
    const bool corrupt = accepted.error().code == Code::kDataLoss;
    if (sources_.empty())
      return stop(corrupt ? RestoreEnd::kCorrupt : RestoreEnd::kMiss, accepted.error().message);
    outcome_.end =
        corrupt ? RestoreEnd::kCorrupt : RestoreEnd::kMiss;  // once the pages before it are in place
    outcome_.reason = accepted.error().message;
  }
  fetch_next();
}

// Takes over the leading run of pages that are what was asked for; the error tells about the first that is
// not.
Status RestoreTransfer::accept(const wire::LookupReply& reply) {
  const int asked = static_cast<int>(pages_.size());
  for (int i = 0; i < std::min(reply.pages_size(), asked); ++i) {
    const wire::FoundPage& found = reply.pages(i);
    const auto header = parse_page_header(found.header());
    Status good = header ? check_page(*header, pages_[i], origin_) : Status(header.error());
    bool fits = found.offsets_size() == kernels::kMaxSlabs && found.slab_bytes_size() == kernels::kMaxSlabs;
    for (int s = 0; fits && s < kernels::kMaxSlabs; ++s) {
      fits = found.slab_bytes(s) == pages_[i].slabs[s].size() &&
             link_->inside(found.offsets(s), found.slab_bytes(s));
    }
    if (good && !fits) good = Error{Code::kDataLoss, "slabs of another size"};
    if (!good) {
      std::erase(leases_, found.lease());
      corrupt_.push_back(found.lease());
      return Error{Code::kDataLoss, fmt::format("page {}: {}", i, good.error().message)};
    }
    sources_.push_back({*header, found.lease(), {found.offsets().begin(), found.offsets().end()}});
  }
  if (reply.pages_size() < asked)
    return Error{Code::kNotFound, fmt::format("page {} is not there", sources_.size())};
  return {};
}

void RestoreTransfer::fetch_next() {
  if (stopped_ || fetching_ || verifying_ >= kMaxBatches || next_fetch_ == sources_.size()) {
    return finish_if_idle();
  }
  const size_t first = next_fetch_;
  size_t bytes = 0;
  do {
    bytes += page_bytes(pages_[next_fetch_++]);
  } while (next_fetch_ < sources_.size() &&
           bytes + page_bytes(pages_[next_fetch_]) <= buffers_->standard_bytes());
  auto buffer = buffers_->take(bytes);
  if (!buffer) return stop(RestoreEnd::kFailed, "no memory left to fetch into");
  std::vector<Transfer> batch;
  std::byte* at = buffer->data.get();
  for (size_t p = first; p < next_fetch_; ++p) {
    for (size_t s = 0; s < pages_[p].slabs.size(); ++s) {
      const size_t size = pages_[p].slabs[s].size();
      if (size > 0) batch.push_back({{at, size}, sources_[p].offsets[s]});
      at += size;
    }
  }
  fetching_ = true;
  link_->data.get(
      link_->pool, std::move(batch), deadline_, buffer,
      [self = shared_from_this(), first, count = next_fetch_ - first, buffer](const Status& status) {
        self->fetching_ = false;
        if (!status) return self->stop(RestoreEnd::kFailed, status.error().message);
        if (!self->stopped_) self->verify(first, count, buffer);
      });
}

void RestoreTransfer::verify(size_t first, size_t count, std::shared_ptr<BounceBuffer> buffer) {
  VerifyJob job{.keep_alive = buffer, .cancelled = cancelled_};
  const std::byte* at = buffer->data.get();
  for (size_t p = first; p < first + count; ++p) {
    FetchedPage page{.checksums = sources_[p].header.checksums, .target = pages_[p].slabs};
    for (size_t s = 0; s < page.target.size(); ++s) {
      page.fetched[s] = {at, page.target[s].size()};
      at += page.target[s].size();
    }
    job.pages.push_back(page);
  }
  // Moved on, so that the transfer is never destroyed on the verifier's thread.
  job.done = [self = shared_from_this(), count](size_t good) mutable {
    boost::asio::io_context& io = self->io_;
    boost::asio::post(io, [self = std::move(self), count, good] { self->verified(count, good); });
  };
  if (!verifier_.submit(std::move(job)))
    return stop(RestoreEnd::kFailed, "too many pages wait for verification");
  ++verifying_;
  fetch_next();
}

void RestoreTransfer::verified(size_t count, size_t good) {
  --verifying_;
  const bool counts = !stopped_;
  if (counts) outcome_.restored += good;
  if (counts && good < count) {
    const uint64_t lease = sources_[outcome_.restored].lease;
    std::erase(leases_, lease);
    corrupt_.push_back(lease);
    return stop(RestoreEnd::kCorrupt,
                fmt::format("page {}: slab checksum does not match", outcome_.restored));
  }
  fetch_next();
}

void RestoreTransfer::stop(RestoreEnd end, const std::string& reason) {
  if (!stopped_) {
    stopped_ = true;
    *cancelled_ = true;
    outcome_.end = end;
    outcome_.reason = reason;
  }
  finish_if_idle();
}

// A get that was given up is not waited for: it can only write to its bounce buffer.
void RestoreTransfer::finish_if_idle() {
  const bool complete = answered_ && !fetching_ && next_fetch_ == sources_.size();
  if (!done_ || verifying_ > 0 || !(stopped_ || complete)) return;
  stopped_ = true;
  timer_.cancel();
  if (asked_ && !(leases_.empty() && corrupt_.empty())) {
    wire::Release release;
    release.mutable_leases()->Assign(leases_.begin(), leases_.end());
    release.mutable_corrupt()->Assign(corrupt_.begin(), corrupt_.end());
    // A lost release costs nothing but time: leases expire.
    (void)link_->connection->send(MessageType::kRelease, release.SerializeAsString());
  }
  pages_.clear();
  std::exchange(done_, nullptr)(outcome_);
}

}  // namespace lowkey::kvstore
