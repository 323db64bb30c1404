#include "tests/unit/worker/engine/engine_replica.h"

#include <gtest/gtest.h>

#include <cstring>
#include <sstream>

#include "transport/loopback/loopback_comm.h"

namespace lowkey::worker {

void MemoryStore::put(std::vector<kvstore::PageWrite> pages) {
  std::lock_guard lock(mutex_);
  for (const kvstore::PageWrite& staged : pages) {
    if (staged.arriving) LOWKEY_CHECK(staged.arriving->wait().ok());
    Page page{.header = staged.header};
    for (size_t i = 0; i < staged.slabs.size(); ++i) {
      page.slabs[i].assign(staged.slabs[i].begin(), staged.slabs[i].end());
      if (!staged.slabs[i].empty()) page.header.checksums[i] = slab_checksum(staged.slabs[i]);
    }
    page.header.header_checksum = page.header.compute_checksum();
    pages_[staged.header.identity] = std::move(page);
  }
}

kvstore::RestoreReport MemoryStore::get(const std::vector<kvstore::PageRead>& pages, bool gaps,
                                        kernels::PageCopies* device) const {
  std::lock_guard lock(mutex_);
  kvstore::RestoreReport report{.lossy = lossy_};
  for (const kvstore::PageRead& wanted : pages) {
    if (!gaps && !report.reason.empty()) break;
    const std::string reason = read(wanted, device, &report.bytes);
    if (reason.empty() && report.reason.empty()) ++report.restored;
    if (!reason.empty() && report.reason.empty()) report.reason = reason;
    report.sources.push_back(reason.empty() ? kvstore::PageSource::kHost : kvstore::PageSource::kNone);
  }
  report.sources.resize(pages.size(), kvstore::PageSource::kNone);
  if (bytes_per_second_ > 0) report.seconds = static_cast<double>(report.bytes) / bytes_per_second_;
  return report;
}

std::string MemoryStore::read(const kvstore::PageRead& wanted, kernels::PageCopies* device,
                              uint64_t* bytes) const {
  const auto found = pages_.find(wanted.identity);
  if (found == pages_.end()) return "not in the store";
  const Page& page = found->second;
  if (page.header.header_checksum != page.header.compute_checksum()) return "header";
  if (page.header.tokens_hash != wanted.tokens_hash) return "other tokens";
  for (size_t slab = 0; slab < page.slabs.size(); ++slab) {
    if (wanted.slabs[slab].empty()) continue;
    if (page.slabs[slab].empty()) return "the level is not there any more";
    if (page.slabs[slab].size() != wanted.slabs[slab].size()) return "another layout";
    if (slab_checksum(page.slabs[slab]) != page.header.checksums[slab]) return "checksum";
    if (device) {
      auto* from = const_cast<std::byte*>(page.slabs[slab].data());
      const kernels::PageCopies::Piece piece{wanted.slabs[slab].data(), from, page.slabs[slab].size()};
      if (!device->upload({&piece, 1})) return "the device is lost";
    } else {
      std::memcpy(wanted.slabs[slab].data(), page.slabs[slab].data(), page.slabs[slab].size());
    }
    *bytes += page.slabs[slab].size();
  }
  return "";
}

size_t MemoryStore::pages() const {
  std::lock_guard lock(mutex_);
  return pages_.size();
}

void MemoryStore::forget_all() {
  std::lock_guard lock(mutex_);
  pages_.clear();
}

void MemoryStore::damage_all(int slab) {
  std::lock_guard lock(mutex_);
  for (auto& [identity, page] : pages_) {
    if (!page.slabs[slab].empty()) page.slabs[slab][17] ^= std::byte{1};  // some came without upper levels
  }
}

void MemoryStore::forget_levels(int levels) {
  std::lock_guard lock(mutex_);
  for (auto& [identity, page] : pages_) {
    for (size_t slab = levels; page.header.levels_present >> slab != 0; ++slab) page.slabs[slab].clear();
  }
}

void MemoryStore::forget_if(const std::function<bool(const kernels::PageHeader&)>& lost) {
  std::lock_guard lock(mutex_);
  std::erase_if(pages_, [&](const auto& entry) { return lost(entry.second.header); });
}

EngineReplica::EngineReplica(EngineReplicaOptions options)
    : options_(std::move(options)), ranks_(options_.ranks) {
  options_.engine.executor.model_fingerprint = options_.model_fingerprint;
  auto comms = transport::make_loopback_comms(options_.ranks);
  for (int rank = 0; rank < options_.ranks; ++rank) {
    Rank& mine = ranks_[rank];
    mine.comm = std::move(comms[rank]);
    mine.model = options_.model(rank, options_.ranks);
    const kernels::CacheShape shape = mine.model->config().cache_shape(options_.ranks, options_.dtype);
    const auto layout = kernels::PageLayout::make(options_.spec, shape);
    options_.engine.executor.layout_fingerprint = layout->fingerprint();
    kvstore::PageMemoryOptions memory{.budget = options_.kv_bytes,
                                      .max_tokens = uint64_t(mine.model->config().max_positions)};
    if (options_.archive) memory.archive = options_.archive(shape);
    if (backend(rank) && !backend(rank)->host_accessible())
      memory.allocate = [device = backend(rank)](uint64_t bytes) { return device->allocate(bytes); };
    mine.memory = std::move(kvstore::PageMemory::make(*layout, std::move(memory))).value();
    mine.metrics = std::make_unique<monitoring::Metrics>(
        monitoring::Labels{{"role", "worker"}, {"rank", std::to_string(rank)}});
    mine.queue = std::make_unique<BoundedQueue<Message>>(1024);
  }
  EngineOptions leader = options_.engine;
  leader.executor = executor_options(0);
  engine_ = std::make_unique<Engine>(leader, *ranks_[0].model, *ranks_[0].memory, *ranks_[0].comm, ports(0),
                                     *ranks_[0].metrics);
  for (int rank = 1; rank < options_.ranks; ++rank) {
    Rank& mine = ranks_[rank];
    mine.follower = std::make_unique<Follower>(executor_options(rank), *mine.model, *mine.memory, *mine.comm,
                                               ports(rank), *mine.metrics);
    mine.thread = std::thread([this, rank] { follow(rank); });
  }
}

ExecutorOptions EngineReplica::executor_options(int rank) const {
  ExecutorOptions options = options_.engine.executor;
  options.backend = backend(rank);
  return options;
}

EngineReplica::~EngineReplica() {
  for (Rank& rank : ranks_) {
    rank.queue->close();
    if (rank.thread.joinable()) rank.thread.join();
  }
}

EnginePorts EngineReplica::ports(int rank) {
  EnginePorts ports;
  if (rank == 0) {
    ports.emit = [this](const wire::TokenEvents& events) { on_events(events); };
    ports.publish_plan = [this](const wire::StepPlan& plan) {
      int tokens = 0;
      for (const auto& sequence : plan.sequences()) tokens += sequence.tokens_size();
      largest_step_ = std::max(largest_step_, tokens);
      for (int r = 1; r < options_.ranks; ++r) LOWKEY_CHECK(ranks_[r].queue->try_push(plan));
    };
    ports.prefix_events = [this](const wire::PrefixEvents& events) { prefix_events_.push_back(events); };
    ports.send_restore = [this](const wire::RestoreCommand& command) {
      for (int r = 1; r < options_.ranks; ++r) LOWKEY_CHECK(ranks_[r].queue->try_push(command));
    };
  }
  if (options_.store == nullptr) return ports;
  ports.stores = options_.stores;
  ports.spill = [this, rank](std::vector<kvstore::PageWrite> pages, const auto& done) {
    kvstore::SpillOutcome outcome;
    outcome.failed = std::erase_if(
        pages, [&](const auto& page) { return options_.fail_spill && options_.fail_spill(rank, page); });
    outcome.stored = pages.size();
    for (const kvstore::PageWrite& page : pages) outcome.held.push_back(page.header.identity);
    if (pages.empty()) return done(outcome);
    if (pages.front().arriving) {
      std::lock_guard lock(late_mutex_);
      late_spills_.push_back(std::move(pages));
    } else {
      options_.store->put(std::move(pages));
    }
    done(outcome);
  };
  ports.restore = [this, rank](std::vector<kvstore::PageRead> pages, kvstore::RestoreOptions wanted,
                               std::function<void(const kvstore::RestoreReport&)> done) {
    const bool upper = pages.front().slabs[0].empty();
    auto serve = [store = options_.store, pages = std::move(pages), gaps = wanted.gaps,
                  device = backend(rank) ? backend(rank)->page_copies() : nullptr,
                  done = std::move(done)] { done(store->get(pages, gaps, device)); };
    if (!options_.hold_restore || !options_.hold_restore(rank, upper, serve)) serve();
  };
  return ports;
}

void EngineReplica::follow(int rank) {
  Rank& mine = ranks_[rank];
  while (auto message = mine.queue->pop(Deadline::in(std::chrono::seconds(100)))) {
    if (const auto* plan = std::get_if<wire::StepPlan>(&*message)) {
      if (!mine.follower->execute(*plan).ok()) return;
    } else {
      mine.follower->restore(
          std::get<wire::RestoreCommand>(*message),
          [this, rank](const wire::RestoreResult& result) { engine_->on_restore_result(rank, result); });
    }
  }
}

wire::SamplingParams EngineReplica::greedy() {
  wire::SamplingParams sampling;
  sampling.set_top_p(1);
  return sampling;
}

uint64_t EngineReplica::submit(std::vector<int32_t> prompt, int max_tokens, wire::SamplingParams sampling) {
  const uint64_t id = next_request_++;
  const Status status = try_submit(id, std::move(prompt), max_tokens, std::move(sampling));
  LOWKEY_CHECK(status.ok(), "{}", status.error().message);
  return id;
}

Status EngineReplica::try_submit(uint64_t request_id, std::vector<int32_t> prompt, int max_tokens,
                                 wire::SamplingParams sampling, const std::string& salt) {
  wire::Submit request;
  request.set_request_id(request_id);
  request.mutable_prompt()->Add(prompt.begin(), prompt.end());
  sampling.set_max_tokens(max_tokens);
  *request.mutable_sampling() = std::move(sampling);
  request.set_salt(salt);
  return try_submit(std::move(request));
}

Status EngineReplica::try_submit(wire::Submit request) {
  next_request_ = std::max(next_request_, request.request_id() + 1);
  LOWKEY_TRY(engine_->submit(request));
  ++open_;
  return {};
}

void EngineReplica::on_events(const wire::TokenEvents& events) {
  for (const wire::TokenEvent& event : events.events()) {
    Answer& answer = answers_[event.request_id()];
    EXPECT_EQ(answer.finish, wire::FINISH_NONE) << "an event after the last one";
    if (answer.events.empty()) {
      answer.cached = event.cached_tokens();
      answer.cached_store = event.cached_tokens_store();
    }
    answer.tokens.insert(answer.tokens.end(), event.tokens().begin(), event.tokens().end());
    answer.events.push_back(event);
    answer.finish = event.finish();
    answer.error = event.error();
    answer.error_code = event.error_code();
    if (event.finish() != wire::FINISH_NONE) --open_;
  }
}

double EngineReplica::metric(int rank, const std::string& name, const std::string& label) const {
  const std::string snapshot = ranks_[rank].metrics->serialize();
  std::istringstream page(monitoring::render_page(std::span(&snapshot, 1)).value());
  double sum = 0;
  for (std::string line; std::getline(page, line);) {
    if (!line.starts_with(name + "{") || line.find(label) == std::string::npos) continue;
    sum += std::stod(line.substr(line.rfind(' ') + 1));
  }
  return sum;
}

void EngineReplica::put_late(size_t leave) {
  std::unique_lock lock(late_mutex_);
  while (late_spills_.size() > leave) {
    std::vector<kvstore::PageWrite> pages = std::move(late_spills_.front());
    late_spills_.pop_front();
    lock.unlock();
    options_.store->put(std::move(pages));
    lock.lock();
  }
}

bool EngineReplica::step() {
  const bool worked = engine_->step();
  put_late(2 * ranks_.size());
  if (!worked) put_late(0);
  const EngineState state = engine_->state();
  EXPECT_LE(state.kv_bytes_used, state.kv_bytes_capacity);
  EXPECT_LE(state.kv_bytes_capacity, options_.kv_bytes);
  return worked;
}

void EngineReplica::run() {
  const Deadline deadline = Deadline::in(std::chrono::seconds(100));
  while (open_ > 0 && !deadline.passed()) {
    if (!step()) engine_->wait_for_work(deadline);
  }
  ASSERT_EQ(open_, 0u) << "requests never ended";
  while (step()) {
  }
  check_all_returned();
}

void EngineReplica::run_until(uint64_t request_id) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(100));
  while (answers_[request_id].finish == wire::FINISH_NONE && !deadline.passed()) {
    if (!step()) engine_->wait_for_work(deadline);
  }
  ASSERT_NE(answers_[request_id].finish, wire::FINISH_NONE) << "request " << request_id << " never ended";
}

void EngineReplica::check_all_returned() {
  const EngineState state = engine_->state();
  EXPECT_EQ(state.kv_bytes_used, 0u);
  EXPECT_EQ(state.running + state.waiting, 0u);
}

}  // namespace lowkey::worker
