#include "worker/engine/executor.h"

#include <algorithm>
#include <cstring>

#include "base/trace.h"
#include "kernels/ops/host_buffer.h"
#include "kvstore/page/page_identity.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using kernels::kMaxSlabs;
using monitoring::Metric;

namespace {

size_t staged_page_bytes(const kernels::PageLayout& layout) {
  size_t bytes = 0;
  for (int i = 0; i < layout.num_slabs(); ++i) bytes += layout.slab_bytes[i];
  return bytes;
}

Error bad_plan(const std::string& what) {
  return Error{Code::kInternal, "step plan: " + what, {}};
}

// Where slabs lie on this rank; null for those that are not there, or not meant.
Status resolve(const kvstore::PageMemory& memory, std::span<const uint32_t> ids, std::byte** out) {
  for (int slab = 0; slab < static_cast<int>(ids.size()); ++slab) {
    const bool there = ids[slab] != kvstore::kNoSlab;
    if (there && ids[slab] >= memory.slabs(slab).max_slabs())
      return bad_plan("a slab beyond this rank's memory");
    out[slab] = there ? memory.slab_address(slab, ids[slab]) : nullptr;
  }
  return {};
}

}  // namespace

Executor::Executor(const ExecutorOptions& options, Model& model, kvstore::PageMemory& memory,
                   transport::HostComm& comm, const EnginePorts& ports, monitoring::Metrics& metrics)
    : options_(options),
      model_(model),
      memory_(memory),
      comm_(comm),
      copies_(options.backend ? options.backend->page_copies() : nullptr),
      staged_(options.backend ? transport::make_staged_comm(comm_, *options.backend)
                              : transport::make_staged_comm(comm_)),
      collectives_(options.collectives ? *options.collectives : *staged_),
      ports_(ports),
      metrics_(metrics),
      staging_(StagingPool::create(staged_page_bytes(memory.layout()),
                                   ports.spill ? options.staging_bytes : 0,
                                   [copies = copies_](size_t bytes) -> std::unique_ptr<kernels::Buffer> {
                                     if (copies) return copies->staging(bytes);
                                     return std::make_unique<kernels::HostBuffer>(bytes);
                                   })) {
  LOWKEY_CHECK(!memory.archive() || options.backend != nullptr, "an archive needs a backend");
  metrics_.set(Metric::kKvBytes, static_cast<double>(memory.capacity_bytes()),
               {{"tier", "device"}, {"state", "capacity"}});
  metrics_.set(Metric::kKvPages, static_cast<double>(memory.max_pages()),
               {{"tier", "device"}, {"state", "capacity"}});
  metrics_.set(Metric::kKvBytesPerToken, memory.bytes_per_token());
  metrics_.set(Metric::kKvCompressionRatio, memory.compression_ratio());
  wire::DeviceTier empty;
  empty.set_slack_bytes(memory.score_capacity_bytes());
  empty.set_free_bytes(memory.capacity_bytes() - empty.slack_bytes());
  report(empty);
}

bool Executor::can_draw() const {
  return model_.draws_tokens() && (comm_.size() == 1 || collectives_.gathers_on_device());
}

const kernels::DrawnToken* Executor::drawn(size_t i) const {
  const auto found = std::ranges::lower_bound(drawn_rows_, static_cast<int32_t>(i));
  return found != drawn_rows_.end() && *found == static_cast<int32_t>(i)
             ? &drawn_[static_cast<size_t>(found - drawn_rows_.begin())]
             : nullptr;
}

Status Executor::execute(const wire::StepPlan& plan, std::span<const kernels::TokenDraw> draws) {
  if (copies_) copies_->fence();  // pages that were copied may have other owners now
  for (const uint64_t id : plan.released()) tables_.erase(id);
  if (plan.spills_size() > 0) LOWKEY_TRY(spill(plan));
  if (plan.sequences_size() > 0) LOWKEY_TRY(run_model(plan, draws));
  if (plan.has_device()) report(plan.device());
  metrics_.add(Metric::kCollectiveSeconds, comm_.take_seconds());
  return {};
}

// How the step's calls came to the device.
void Executor::count_step() {
  const kernels::StepGraphs* const graphs = options_.backend ? options_.backend->step_graphs() : nullptr;
  const kernels::StepGraphs::Counts now = graphs ? graphs->counts() : kernels::StepGraphs::Counts{};
  const char* launch = now.captured > graphs_.captured   ? "captured"
                       : now.replayed > graphs_.replayed ? "replayed"
                                                         : "direct";
  metrics_.add(Metric::kModelSteps, 1, {{"launch", launch}});
  if (graphs == nullptr) return;  // nothing here records: no gauge says how much of it there is
  metrics_.set(Metric::kStepGraphs, static_cast<double>(now.graphs));
  metrics_.set(Metric::kStepGraphBytes, static_cast<double>(now.bytes));
  graphs_ = now;
}

// What does not depend on the sequence's table.
Status Executor::check(const wire::PlannedSequence& planned) const {
  const ModelConfig& config = model_.config();
  const auto bad = [&](const std::string& what) {
    return bad_plan(fmt::format("sequence {}: {}", planned.sequence_id(), what));
  };
  if (planned.tokens().empty()) return bad("no tokens");
  if (planned.tail() >= memory_.tails().max_slabs()) return bad("a tail beyond this rank's memory");
  const uint64_t end = uint64_t{planned.first_position()} + planned.tokens_size();
  if (end > static_cast<uint64_t>(config.max_positions) || planned.first_slot() > planned.first_position())
    return bad(fmt::format("{} tokens from position {} and slot {} on", planned.tokens_size(),
                           planned.first_position(), planned.first_slot()));
  const auto unknown = std::ranges::find_if(
      planned.tokens(), [&](int32_t token) { return token < 0 || token >= config.vocab_size; });
  if (unknown != planned.tokens().end()) return bad(fmt::format("token {}", *unknown));
  if (!memory_.archive() && (planned.has_scores() || planned.has_compaction()))
    return bad("tokens to choose, where none are chosen");
  return {};
}

// Brings the sequence's table up to date.
Status Executor::apply(const wire::PlannedSequence& planned, Table* table) {
  LOWKEY_TRY(check(planned));
  if (std::exchange(table->run, runs_) == runs_)
    return bad_plan(fmt::format("sequence {} twice", planned.sequence_id()));
  size_t page = planned.first_page();
  if (page > table->pages()) {
    return bad_plan(fmt::format("sequence {}: pages from {} on, but {} are known", planned.sequence_id(),
                                page, table->pages()));
  }
  table->slabs.resize(page * kMaxSlabs);
  table->page_levels.resize(page);
  std::span<const uint32_t> slabs(planned.slabs().data(), planned.slabs_size());
  for (; !slabs.empty(); ++page) {
    const size_t count = memory_.slabs_of_page(page);
    if (count > slabs.size()) return bad_plan("a page lacks slabs");
    LOWKEY_TRY(enter(slabs.first(count), page, table));
    slabs = slabs.subspan(count);
  }
  for (const wire::PageChange& change : planned.changes()) {
    if (change.page() >= table->pages() || change.slabs_size() != memory_.slabs_of_page(change.page()))
      return bad_plan(fmt::format("sequence {}: a change of page {} with {} slabs", planned.sequence_id(),
                                  change.page(), change.slabs_size()));
    LOWKEY_TRY(
        enter(std::span<const uint32_t>(change.slabs().data(), change.slabs_size()), change.page(), table));
  }
  const size_t page_tokens = memory_.layout().page_tokens;
  const size_t complete = (planned.first_slot() + planned.tokens_size()) / page_tokens;
  if (table->pages() < complete) {
    return bad_plan(fmt::format("sequence {}: {} pages for {} tokens from {}", planned.sequence_id(),
                                table->pages(), planned.tokens_size(), planned.first_slot()));
  }
  for (size_t i = planned.first_slot() / page_tokens; i < complete; ++i) {
    if (table->page_levels[i] != memory_.layout().num_levels)
      return bad_plan(fmt::format("sequence {}: page {} cannot be written", planned.sequence_id(), i));
  }
  return memory_.archive() ? observe(planned, table) : Status();
}

Status Executor::enter(std::span<const uint32_t> slabs, size_t page, Table* table) const {
  table->slabs.resize(std::max(table->slabs.size(), (page + 1) * kMaxSlabs), nullptr);
  table->page_levels.resize(std::max(table->page_levels.size(), page + 1));
  std::byte** mine = &table->slabs[page * kMaxSlabs];
  LOWKEY_TRY(resolve(memory_, slabs, mine));
  const int levels = memory_.layout().num_levels;
  const auto leading = std::find(mine, mine + levels, nullptr) - mine;
  const bool behind =
      std::all_of(slabs.begin(), slabs.end(), [](uint32_t id) { return id == kvstore::kNoSlab; });
  if (behind) {  // the window: never read (kernels::SequenceSlice::page_levels)
    table->page_levels[page] = 0;
    return {};
  }
  const bool sink = static_cast<int>(slabs.size()) == levels || mine[levels] != nullptr;
  if (leading == 0 || !sink) return bad_plan("a page without its first level or its sink");
  table->page_levels[page] = static_cast<uint8_t>(leading);
  return {};
}

Status Executor::run_model(const wire::StepPlan& plan, std::span<const kernels::TokenDraw> draws) {
  std::vector<int32_t> tokens, positions, logit_rows;
  std::vector<kernels::SequenceSlice> slices;
  slices.reserve(plan.sequences_size());
  ++runs_;
  for (const wire::PlannedSequence& planned : plan.sequences()) {
    Table& table = tables_[planned.sequence_id()];
    LOWKEY_TRY(apply(planned, &table));
    slices.push_back({.first_row = static_cast<int>(tokens.size()),
                      .num_rows = planned.tokens_size(),
                      .first_slot = static_cast<int>(planned.first_slot()),
                      .slabs = table.slabs.data(),
                      .page_levels = table.page_levels.data(),
                      .tail = memory_.tail_address(planned.tail()),
                      .archives = memory_.archive() ? table.archives.data() : nullptr,
                      .observer = planned.has_scores() ? &table.observer : nullptr});
    tokens.insert(tokens.end(), planned.tokens().begin(), planned.tokens().end());
    for (int i = 0; i < planned.tokens_size(); ++i) positions.push_back(planned.first_position() + i);
    const auto end = static_cast<int32_t>(tokens.size());
    if (planned.all_logits()) {
      for (int32_t row = end - planned.tokens_size(); row < end; ++row) logit_rows.push_back(row);
    } else if (planned.want_logits()) {
      logit_rows.push_back(end - 1);
    }
  }
  const Deadline deadline = Deadline::in(options_.step_deadline);
  drawn_rows_.clear();
  for (const kernels::TokenDraw& draw : draws) drawn_rows_.push_back(draw.row);
  drawn_.resize(draws.size());
  const Batch batch{.tokens = tokens,
                    .positions = positions,
                    .sequences = slices,
                    .logit_rows = logit_rows,
                    .gather_logits = true,
                    .draws = draws,
                    .drawn = drawn_};
  if (comm_.rank() == 0) gathered_.resize(comm_.size() * logit_rows.size() * model_.vocab_shard());
  {
    const TraceSpan span("model", {"rows", int64_t(tokens.size())}, {"sequences", int64_t(slices.size())});
    LOWKEY_TRY(model_.forward(batch, memory_.layout(), collectives_, deadline, gathered_));
  }
  count_step();
  bool compacted = false;
  for (const wire::PlannedSequence& planned : plan.sequences()) {
    if (!planned.has_compaction()) continue;
    LOWKEY_TRY(compact(planned, &tables_[planned.sequence_id()]));
    compacted = true;
  }
  // The slabs it has read are free from here on, and restores do not wait for the backend.
  if (compacted) options_.backend->synchronize();
  if (comm_.rank() == 0) take_logits(logit_rows.size());
  return {};
}

// Rows as the sampler wants them, out of what the ranks' slices are.
void Executor::take_logits(size_t rows) {
  const size_t shard = model_.vocab_shard(), vocab = model_.config().vocab_size;
  if (comm_.size() == 1 && shard == vocab) return logits_.swap(gathered_);
  logits_.resize(rows * vocab);
  for (size_t rank = 0; rank < static_cast<size_t>(comm_.size()); ++rank) {
    const size_t first = rank * shard;
    if (first >= vocab) break;
    const size_t count = std::min(shard, vocab - first);  // the last shard is padded
    for (size_t row = 0; row < rows; ++row) {
      if (drawn(row) != nullptr) continue;
      const float* from = gathered_.data() + (rank * rows + row) * shard;
      std::copy(from, from + count, logits_.data() + row * vocab + first);
    }
  }
}

std::span<float> Executor::logits(size_t i) {
  const size_t vocab = model_.config().vocab_size;
  return std::span(logits_).subspan(i * vocab, vocab);
}

std::span<const kernels::DrawnToken> Executor::draw(std::span<const float> rows,
                                                    std::span<const kernels::TokenDraw> draws) {
  host_drawn_.resize(draws.size());
  const int vocab = model_.config().vocab_size;
  if (options_.backend && options_.backend->host_accessible()) {
    const kernels::Tensor logits{.data = const_cast<float*>(rows.data()),
                                 .rows = static_cast<int>(rows.size() / vocab),
                                 .cols = vocab};
    options_.backend->draw_tokens(logits, 1, vocab, draws, host_drawn_.data());
  } else {
    for (size_t i = 0; i < draws.size(); ++i)
      host_drawn_[i] = row_draw_.draw(rows.subspan(size_t(draws[i].row) * vocab, vocab), draws[i]);
  }
  return host_drawn_;
}

Result<std::vector<std::byte*>> Executor::addresses(const wire::PlacedPage& page) const {
  const int levels = memory_.layout().num_levels;
  if (page.slabs_size() != levels && page.slabs_size() != memory_.layout().num_slabs()) {
    return bad_plan(fmt::format("a page with {} slabs", page.slabs_size()));
  }
  std::vector<std::byte*> slabs(page.slabs_size());
  LOWKEY_TRY(
      resolve(memory_, std::span<const uint32_t>(page.slabs().data(), page.slabs_size()), slabs.data()));
  return slabs;
}

Status Executor::spill(const wire::StepPlan& plan) {
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
                rank = comm_.rank(), ranks = comm_.size()](const kvstore::SpillOutcome& outcome) mutable {
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

void Executor::Spilled::add(uint64_t more, double took) {
  std::lock_guard lock(mutex);
  bytes += more;
  seconds += took;
}

std::pair<uint64_t, double> Executor::take_spilled() {
  std::lock_guard lock(spilled_->mutex);
  return {std::exchange(spilled_->bytes, 0), std::exchange(spilled_->seconds, 0)};
}

// On the host now; on a device begun now, beside the step, and waited for by whoever reads or drops the copy.
void Executor::copy(const Pieces& pieces, std::vector<kvstore::PageWrite>* staged) {
  if (!copies_) {
    for (const auto& piece : pieces) std::memcpy(piece.host, piece.device, piece.bytes);
    return;
  }
  struct Arriving {
    std::shared_ptr<void> buffer;
    std::shared_ptr<kernels::CopyTicket> ticket;
    ~Arriving() { (void)ticket->wait(); }  // or the buffer would be reused under the copy
  };
  const std::shared_ptr<kernels::CopyTicket> ticket = copies_->begin_download(pieces);
  for (kvstore::PageWrite& page : *staged) {
    page.arriving = ticket;
    auto arriving = std::make_shared<Arriving>();
    arriving->buffer = std::move(page.keep_alive);
    arriving->ticket = ticket;
    page.keep_alive = std::move(arriving);
  }
}

bool Executor::stage(const wire::PlacedPage& page, const Hash128& identity, std::span<std::byte* const> slabs,
                     std::vector<kvstore::PageWrite>* staged, Pieces* pieces) {
  std::shared_ptr<std::byte> buffer = staging_->acquire();
  if (!buffer) return false;
  const kernels::PageLayout& layout = memory_.layout();
  kvstore::PageWrite copy{.checksummed = false};
  kernels::PageHeader& header = copy.header;
  header.read_at_least_level = static_cast<uint8_t>(layout.num_levels - 1);
  header.has_sink = static_cast<int>(slabs.size()) > layout.num_levels;
  header.identity = kvstore::rank_identity(identity, comm_.rank(), comm_.size());
  header.model_fingerprint = options_.model_fingerprint;
  header.layout_fingerprint = options_.layout_fingerprint;
  header.rank = static_cast<uint16_t>(comm_.rank());
  header.num_ranks = static_cast<uint16_t>(comm_.size());
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

void Executor::restore(const wire::RestoreCommand& command,
                       std::function<void(const wire::RestoreResult&)> done) {
  wire::RestoreResult result;
  result.set_restore_id(command.restore_id());
  std::vector<kvstore::PageRead> reads;
  const auto add = [&](const wire::PlacedPage& page) -> Status {
    LOWKEY_ASSIGN(identity, identity_from_bytes(page.identity()));
    LOWKEY_ASSIGN(slabs, addresses(page));
    kvstore::PageRead& read = reads.emplace_back();
    read.identity = kvstore::rank_identity(identity, comm_.rank(), comm_.size());
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

void Executor::report(const wire::DeviceTier& device) {
  const auto set = [&](Metric metric, const char* state, uint64_t value) {
    metrics_.set(metric, static_cast<double>(value), {{"tier", "device"}, {"state", state}});
  };
  set(Metric::kKvBytes, "used", device.used_bytes());
  set(Metric::kKvBytes, "evictable", device.evictable_bytes());
  set(Metric::kKvBytes, "free", device.free_bytes());
  set(Metric::kKvBytes, "slack", device.slack_bytes());
  set(Metric::kKvPages, "used", device.used_pages());
  set(Metric::kKvPages, "evictable", device.evictable_pages());
  metrics_.set(Metric::kKvUsage,
               static_cast<double>(device.used_bytes()) / static_cast<double>(memory_.capacity_bytes()));
}

}  // namespace lowkey::worker
