#include "worker/engine/executor.h"

#include <algorithm>
#include <utility>

#include "base/trace.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using kernels::kMaxSlabs;
using monitoring::Metric;

Executor::Executor(const ExecutorOptions& options, Model& model, kvstore::PageMemory& memory,
                   transport::HostComm& comm, const EnginePorts& ports, monitoring::Metrics& metrics)
    : options_(options),
      model_(model),
      memory_(memory),
      comm_(comm),
      staged_(options.backend ? transport::make_staged_comm(comm_, *options.backend)
                              : transport::make_staged_comm(comm_)),
      collectives_(options.collectives ? *options.collectives : *staged_),
      metrics_(metrics),
      pages_({.model_fingerprint = options.model_fingerprint,
              .layout_fingerprint = options.layout_fingerprint,
              .rank = comm.rank(),
              .num_ranks = comm.size(),
              .staging_bytes = options.staging_bytes,
              .copies = options.backend ? options.backend->page_copies() : nullptr},
             memory, ports, metrics) {
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
  pages_.fence();  // pages that were copied may have other owners now
  for (const uint64_t id : plan.released()) tables_.erase(id);
  if (plan.spills_size() > 0) LOWKEY_TRY(pages_.spill(plan));
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
  LOWKEY_TRY(slab_addresses(memory_, slabs, mine));
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
