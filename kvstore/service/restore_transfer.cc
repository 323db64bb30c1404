#include "kvstore/service/restore_transfer.h"

#include <boost/asio/post.hpp>

#include <algorithm>
#include <bit>

#include "kvstore/service/page_landing.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

using kernels::kMaxSlabs;
using transport::MessageType;
using transport::Transfer;

RestoreTransfer::RestoreTransfer(std::shared_ptr<StoreLink> link, std::shared_ptr<FetchQueue> queue,
                                 const Context& context, uint64_t id, std::vector<PageRead> pages,
                                 const RestoreOptions& options, Deadline deadline, Done done)
    : link_(std::move(link)),
      queue_(std::move(queue)),
      context_(&context),
      io_(link_->io),
      id_(id),
      pages_(std::move(pages)),
      gaps_(options.gaps),
      deadline_(deadline),
      done_(std::move(done)),
      timer_(link_->io),
      into_place_(std::string_view(link_->pool->transport()) == "shm" && !context.format.transcoder &&
                  !context.format.device) {
  outcome_.fates.resize(pages_.size(), PageFate::kOpen);
}

uint64_t RestoreTransfer::stored_bytes(size_t page, size_t slab) const {
  const PageRead& wanted = pages_[page];
  if (!context_->format.transcoder) return wanted.slabs[slab].size();
  // All of the page is needed for any of it.
  const kernels::PageLayout& hot = context_->format.transcoder->hot();
  const kernels::PageLayout& stored = context_->format.transcoder->spilled();
  const bool sink = static_cast<int>(slab) == stored.sink_slab();
  return sink && wanted.slabs[hot.sink_slab()].empty() ? 0 : stored.slab_bytes[slab];
}

uint64_t RestoreTransfer::stored_bytes(size_t page) const {
  uint64_t bytes = 0;
  for (size_t slab = 0; slab < kMaxSlabs; ++slab) bytes += stored_bytes(page, slab);
  return bytes;
}

uint32_t RestoreTransfer::stored_slabs() const {
  uint32_t mask = 0;
  for (size_t page = 0; page < pages_.size(); ++page) {
    for (size_t slab = 0; slab < kMaxSlabs; ++slab) mask |= uint32_t{stored_bytes(page, slab) > 0} << slab;
  }
  return mask;
}

void RestoreTransfer::start() {
  timer_.expires_at(deadline_.at());
  timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (!error) self->fail("store did not answer by the deadline");
  });
  slabs_ = stored_slabs();
  wire::LookupRequest request;
  request.set_id(id_);
  request.set_slabs(slabs_);  // a page that never had one of them, as a sink, does not lack it
  request.set_gaps(gaps_);
  for (const PageRead& page : pages_) request.add_identities(hash128_bytes(page.identity));
  const Status sent = link_->connection->send(MessageType::kLookupRequest, request.SerializeAsString());
  if (!sent) fail(sent.error().message);
}

void RestoreTransfer::on_found(const wire::LookupReply& reply) {
  if (answered_) return;
  answered_ = true;
  for (const auto& page : reply.pages()) leases_.push_back(page.lease());
  if (const Status accepted = accept(reply); !accepted) return fail(accepted.error().message);
  line_up();
}

Status RestoreTransfer::accept(const wire::LookupReply& reply) {
  size_t next = 0;  // page of the request
  bool run = true;
  const auto missing = [&](size_t until) {
    for (; run && next < until; run = gaps_) lose(next++, PageFate::kMiss, "not there");
  };
  for (const wire::FoundPage& found : reply.pages()) {
    const size_t page = gaps_ ? found.index() : next;
    if (page < next || page >= pages_.size())
      return Error{Code::kInvalidArgument, fmt::format("store found page {} of {}", page, pages_.size())};
    missing(page);
    const Status taken = take(page, found);
    if (!taken) {
      const bool corrupt = taken.error().code == Code::kDataLoss;
      if (corrupt) {
        std::erase(leases_, found.lease());
        corrupt_.push_back(found.lease());
      }
      lose(page, corrupt ? PageFate::kCorrupt : PageFate::kMiss, taken.error().message);
      run = gaps_;
    }
    next = page + 1;
    if (!run) break;
  }
  missing(pages_.size());
  end_ = open_ = sources_.size();
  return {};
}

Status RestoreTransfer::take(size_t page, const wire::FoundPage& found) {
  LOWKEY_ASSIGN(header, parse_page_header(found.header()));
  LOWKEY_TRY(check_page(header, pages_[page], context_->origin));
  const auto unfit = [](const char* what) { return Error{Code::kDataLoss, what}; };
  if (found.offsets_size() != int{kMaxSlabs} || found.slab_bytes_size() != int{kMaxSlabs})
    return unfit("another number of slabs");
  Source source{.page = page, .header = header, .lease = found.lease()};
  if (found.tier() == static_cast<uint32_t>(PageSource::kDisk)) source.tier = PageFate::kFromDisk;
  for (int slab = 0; slab < kMaxSlabs; ++slab) {
    const uint64_t expected = stored_bytes(page, slab);
    if (expected == 0) continue;
    if (found.slab_bytes(slab) == 0) return Error{Code::kNotFound, fmt::format("slab {} is not there", slab)};
    if (found.slab_bytes(slab) != expected) return unfit("slabs of another size");
    if (!link_->inside(found.offsets(slab), expected)) return unfit("slabs outside of the store's pool");
    source.offsets[slab] = found.offsets(slab);
  }
  sources_.push_back(source);
  return {};
}

// Level 0 first; of equals, what fits one batch goes ahead of what needs many.
void RestoreTransfer::line_up() {
  uint64_t bytes = 0;
  for (const Source& source : sources_) bytes += stored_bytes(source.page);
  const int level = std::countr_zero(slabs_);
  queue_->enter(2 * level + (bytes > queue_->batch_bytes()), shared_from_this());
  finish_if_idle();
}

size_t RestoreTransfer::next_batch(size_t most) {
  batch_ = 0;
  size_t bytes = 0;
  while (!stopped_ && next_fetch_ + batch_ < end_) {
    const size_t more = stored_bytes(sources_[next_fetch_ + batch_].page);
    if (batch_ > 0 && bytes + more > most) break;
    bytes += more;
    ++batch_;
  }
  return bytes;
}

void RestoreTransfer::fetch(std::shared_ptr<TransferBuffer> buffer) {
  const size_t first = next_fetch_, count = batch_;
  next_fetch_ += count;
  std::vector<Transfer> batch;
  std::byte* at = buffer->data.get();
  for (size_t i = first; i < first + count; ++i) {
    for (size_t slab = 0; slab < kMaxSlabs; ++slab) {
      const size_t size = stored_bytes(sources_[i].page, slab);
      std::byte* const to = into_place_ ? pages_[sources_[i].page].slabs[slab].data() : at;
      if (size > 0) batch.push_back({{to, size}, sources_[i].offsets[slab]});
      at += size;
    }
  }
  std::shared_ptr<void> keep_alive = into_place_ ? landing_token() : buffer;
  link_->data.get(link_->pool, std::move(batch), deadline_, std::move(keep_alive),
                  [self = shared_from_this(), first, count, buffer](const Status& status) {
                    if (!status) return self->fail(status.error().message);
                    if (!self->stopped_) self->verify(first, count, buffer);
                  });
}

std::shared_ptr<void> RestoreTransfer::landing_token() {
  ++landing_;
  return {this, [self = shared_from_this()](void*) {
            --self->landing_;
            self->finish_if_idle();
          }};
}

void RestoreTransfer::verify(size_t first, size_t count, std::shared_ptr<TransferBuffer> buffer) {
  std::vector<FetchedPage> fetched;
  const std::byte* at = buffer->data.get();
  for (size_t i = first; i < first + count; ++i) {
    FetchedPage page{.checksums = sources_[i].header.checksums, .target = pages_[sources_[i].page].slabs};
    for (size_t slab = 0; slab < kMaxSlabs; ++slab) {
      const size_t size = stored_bytes(sources_[i].page, slab);
      page.fetched[slab] = {into_place_ ? page.target[slab].data() : at, size};
      at += size;
    }
    fetched.push_back(page);
  }
  auto job = [self = shared_from_this(), first, fetched = std::move(fetched),
              buffer = std::move(buffer)]() mutable {
    std::vector<bool> good = land(fetched, self->context_->format, [&](bool last_good) {
      return !*self->cancelled_ && (self->gaps_ || last_good);
    });
    buffer.reset();
    // Moved on, so that the transfer is never destroyed on this thread.
    boost::asio::io_context& io = self->io_;
    boost::asio::post(
        io, [self = std::move(self), first, good = std::move(good)] { self->verified(first, good); });
  };
  if (!context_->bytes.submit(ByteThread::Lane::kRestore, std::move(job)))
    return fail("too many pages wait for verification");
  ++verifying_;
}

void RestoreTransfer::verified(size_t first, const std::vector<bool>& good) {
  --verifying_;
  for (size_t i = 0; i < good.size() && first + i < end_ && !stopped_; ++i) {
    const Source& source = sources_[first + i];
    --open_;
    if (good[i]) {
      outcome_.fates[source.page] = source.tier;
      outcome_.bytes += stored_bytes(source.page);
      continue;
    }
    std::erase(leases_, source.lease);
    corrupt_.push_back(source.lease);
    lose(source.page, PageFate::kCorrupt, "slab checksum does not match");
    if (!gaps_) end_before(first + i);
  }
  finish_if_idle();
}

// Batches may land out of order: what comes before still counts.
void RestoreTransfer::end_before(size_t source) {
  end_ = source;
  open_ = std::count_if(sources_.begin(), sources_.begin() + source,
                        [&](const Source& before) { return outcome_.fates[before.page] == PageFate::kOpen; });
}

void RestoreTransfer::lose(size_t page, PageFate fate, const std::string& reason) {
  outcome_.fates[page] = fate;
  if (page >= first_lost_) return;
  first_lost_ = page;
  outcome_.reason = reason;
}

void RestoreTransfer::fail(const std::string& reason) {
  for (size_t page = 0; !stopped_ && page < pages_.size(); ++page) {
    if (outcome_.fates[page] == PageFate::kOpen) lose(page, PageFate::kFailed, reason);
  }
  stopped_ = true;
  *cancelled_ = true;
  finish_if_idle();
}

// A get that was given up is not waited for where it can only write to its buffer.
void RestoreTransfer::finish_if_idle() {
  if (!done_ || verifying_ > 0 || landing_ > 0 || !(stopped_ || (answered_ && open_ == 0))) return;
  stopped_ = true;
  timer_.cancel();
  std::ranges::replace(outcome_.fates, PageFate::kOpen, PageFate::kMiss);  // behind the end of the run
  if (!(leases_.empty() && corrupt_.empty())) {
    wire::Release release;
    release.mutable_leases()->Assign(leases_.begin(), leases_.end());
    release.mutable_corrupt()->Assign(corrupt_.begin(), corrupt_.end());
    // A lost release costs nothing but time: leases expire.
    (void)link_->connection->send(MessageType::kRelease, release.SerializeAsString());
  }
  std::exchange(done_, nullptr)(std::move(outcome_));
}

}  // namespace lowkey::kvstore
