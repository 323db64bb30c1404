#include "worker/engine/page_traffic.h"

#include <cstring>
#include <unordered_set>

#include "base/deadline.h"
#include "base/trace.h"
#include "kernels/ops/host_buffer.h"
#include "kvstore/page/page_identity.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using monitoring::Metric;

namespace {

size_t staged_page_bytes(const kernels::PageLayout& layout) {
  size_t bytes = 0;
  for (int i = 0; i < layout.num_slabs(); ++i) bytes += layout.slab_bytes[i];
  return bytes;
}

}  // namespace

PageTraffic::PageTraffic(const PageTrafficOptions& options, kvstore::PageMemory& memory,
                         const EnginePorts& ports, monitoring::Metrics& metrics)
    : options_(options),
      memory_(memory),
      ports_(ports),
      metrics_(metrics),
      staging_(
          StagingPool::create(staged_page_bytes(memory.layout()), ports.spill ? options.staging_bytes : 0,
                              [copies = options.copies](size_t bytes) -> std::unique_ptr<kernels::Buffer> {
                                if (copies) return copies->staging(bytes);
                                return std::make_unique<kernels::HostBuffer>(bytes);
                              })) {}

void PageTraffic::fence() {
  if (options_.copies) options_.copies->fence();
}

Result<std::vector<std::byte*>> PageTraffic::addresses(const wire::PlacedPage& page) const {
  const int levels = memory_.layout().num_levels;
  if (page.slabs_size() != levels && page.slabs_size() != memory_.layout().num_slabs()) {
    return bad_plan(fmt::format("a page with {} slabs", page.slabs_size()));
  }
  std::vector<std::byte*> slabs(page.slabs_size());
  LOWKEY_TRY(slab_addresses(memory_, std::span<const uint32_t>(page.slabs().data(), page.slabs_size()),
                            slabs.data()));
  return slabs;
}

Status PageTraffic::spill(const wire::StepPlan& plan) {
  if (!ports_.spill) return {};
  const TraceSpan span("stage pages to spill", {"pages", plan.spills_size()});
  const TimePoint begin = Clock::now();
  std::vector<kvstore::PageWrite> staged;
  std::vector<SpilledPage> planned;
  Pieces pieces;
  for (const wire::PlacedPage& page : plan.spills()) {
    LOWKEY_ASSIGN(identity, identity_from_bytes(page.identity()));
    LOWKEY_ASSIGN(slabs, addresses(page));
    planned.push_back({identity});
    if (!stage(page, identity, slabs, &staged, &pieces)) {
      metrics_.add(Metric::kSpillOutcomes, 1, {{"outcome", "dropped_staging_full"}});
    }
  }
  auto ended = [spilled = spilled_, on_spilled = on_spilled_, planned = std::move(planned),
                rank = options_.rank,
                ranks = options_.num_ranks](const kvstore::SpillOutcome& outcome) mutable {
    spilled->add(0, outcome.prepare_seconds);
    if (!on_spilled) return;
    const std::unordered_set<Hash128> held(outcome.held.begin(), outcome.held.end());
    for (SpilledPage& page : planned)
      page.held = held.contains(kvstore::rank_identity(page.identity, rank, ranks));
    on_spilled(std::move(planned));
  };
  if (staged.empty()) {
    ended({});
    return {};
  }
  copy(pieces, &staged);
  uint64_t bytes = 0;
  for (const kvstore::PageWrite& page : staged) {
    for (const auto& slab : page.slabs) bytes += slab.size();
  }
  spilled_->add(bytes, seconds(Clock::now() - begin));
  ports_.spill(std::move(staged), std::move(ended));
  return {};
}

void PageTraffic::Spilled::add(uint64_t more, double took) {
  std::lock_guard lock(mutex);
  bytes += more;
  seconds += took;
}

std::pair<uint64_t, double> PageTraffic::take_spilled() {
  std::lock_guard lock(spilled_->mutex);
  return {std::exchange(spilled_->bytes, 0), std::exchange(spilled_->seconds, 0)};
}

// On the host now; on a device begun now, beside the step, and waited for by whoever reads or drops the copy.
void PageTraffic::copy(const Pieces& pieces, std::vector<kvstore::PageWrite>* staged) {
  if (!options_.copies) {
    for (const auto& piece : pieces) std::memcpy(piece.host, piece.device, piece.bytes);
    return;
  }
  struct Arriving {
    std::shared_ptr<void> buffer;
    std::shared_ptr<kernels::CopyTicket> ticket;
    ~Arriving() { (void)ticket->wait(); }  // or the buffer would be reused under the copy
  };
  const std::shared_ptr<kernels::CopyTicket> ticket = options_.copies->begin_download(pieces);
  for (kvstore::PageWrite& page : *staged) {
    page.arriving = ticket;
    auto arriving = std::make_shared<Arriving>();
    arriving->buffer = std::move(page.keep_alive);
    arriving->ticket = ticket;
    page.keep_alive = std::move(arriving);
  }
}

bool PageTraffic::stage(const wire::PlacedPage& page, const Hash128& identity,
                        std::span<std::byte* const> slabs, std::vector<kvstore::PageWrite>* staged,
                        Pieces* pieces) {
  std::shared_ptr<std::byte> buffer = staging_->acquire();
  if (!buffer) return false;
  const kernels::PageLayout& layout = memory_.layout();
  kvstore::PageWrite copy{.checksummed = false};
  kernels::PageHeader& header = copy.header;
  header.read_at_least_level = static_cast<uint8_t>(layout.num_levels - 1);
  header.has_sink = static_cast<int>(slabs.size()) > layout.num_levels;
  header.identity = kvstore::rank_identity(identity, options_.rank, options_.num_ranks);
  header.model_fingerprint = options_.model_fingerprint;
  header.layout_fingerprint = options_.layout_fingerprint;
  header.rank = static_cast<uint16_t>(options_.rank);
  header.num_ranks = static_cast<uint16_t>(options_.num_ranks);
  header.first_token = page.first_token();
  header.tokens_hash = page.tokens_hash();
  std::byte* to = buffer.get();
  for (size_t i = 0; i < slabs.size(); ++i) {
    if (slabs[i] == nullptr) continue;
    if (static_cast<int>(i) < layout.num_levels) header.levels_present |= static_cast<uint8_t>(1u << i);
    const size_t bytes = layout.slab_bytes[i];
    pieces->push_back({slabs[i], to, bytes});
    copy.slabs[i] = {to, bytes};
    to += bytes;
  }
  copy.keep_alive = std::move(buffer);
  staged->push_back(std::move(copy));
  return true;
}

void PageTraffic::restore(const wire::RestoreCommand& command,
                          std::function<void(const wire::RestoreResult&)> done) {
  wire::RestoreResult result;
  result.set_restore_id(command.restore_id());
  std::vector<kvstore::PageRead> reads;
  const auto add = [&](const wire::PlacedPage& page) -> Status {
    LOWKEY_ASSIGN(identity, identity_from_bytes(page.identity()));
    LOWKEY_ASSIGN(slabs, addresses(page));
    kvstore::PageRead& read = reads.emplace_back();
    read.identity = kvstore::rank_identity(identity, options_.rank, options_.num_ranks);
    read.tokens_hash = page.tokens_hash();
    for (size_t i = 0; i < slabs.size(); ++i) {
      if (slabs[i] != nullptr) read.slabs[i] = {slabs[i], memory_.layout().slab_bytes[i]};
    }
    return {};
  };
  Status status = ports_.restore ? Status() : Error{Code::kUnavailable, "this rank has no store", {}};
  for (int i = 0; i < command.pages_size() && status.ok(); ++i) status = add(command.pages(i));
  if (!status.ok()) {
    result.set_first_miss_reason(status.error().message);
    return done(result);
  }
  ports_.restore(std::move(reads), {.gaps = command.gaps()},
                 [result, done = std::move(done)](const kvstore::RestoreReport& report) mutable {
                   result.set_pages_restored(static_cast<uint32_t>(report.restored));
                   result.set_first_miss_reason(report.reason);
                   for (const kvstore::PageSource source : report.sources)
                     result.mutable_sources()->push_back(static_cast<char>(source));
                   result.set_bytes(report.bytes);
                   result.set_seconds(report.seconds);
                   result.set_lossy(report.lossy);
                   done(result);
                 });
}

}  // namespace lowkey::worker
