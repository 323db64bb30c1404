// A store and its workers for tests: each a "process" with its own I/O thread, over any transport; and pages
// of random bytes to move between them.
#pragma once

#include <gtest/gtest.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <cstring>
#include <functional>
#include <future>
#include <random>
#include <thread>

#include "kvstore/service/store_service.h"
#include "kvstore/service/store_set.h"
#include "monitoring/metrics.h"

namespace lowkey::kvstore {

inline constexpr Duration kPatience = std::chrono::seconds(20);  // for what must happen; machines are loaded

using MakePlanes = std::function<
    Result<std::pair<std::unique_ptr<transport::ControlPlane>, std::unique_ptr<transport::DataPlane>>>(
        boost::asio::io_context&, transport::ControlOptions, transport::ControlHandlers)>;

inline transport::ControlOptions peer_options(transport::Role role, int world_rank) {
  transport::ControlOptions options;
  options.self.role = role;
  options.self.world_rank = world_rank;
  options.self.host = "one-host";
  options.cluster_secret = "0123456789abcdef0123456789abcdef";
  options.missed_heartbeats = 60;  // a thread that is not scheduled for seconds is not dead
  options.handshake_deadline = kPatience;
  return options;
}

class Process {
 public:
  Process(transport::Role role, int world_rank)
      : metrics({{"role", to_string(role)}, {"rank", std::to_string(world_rank)}}),
        work_(io.get_executor()) {}

  // Runs f on the I/O thread and returns its value.
  template <class F>
  auto on_io(F f) {
    std::packaged_task<decltype(f())()> task(std::move(f));
    auto result = task.get_future();
    boost::asio::post(io, [&] { task(); });
    if (result.wait_for(kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "the I/O thread hangs";
      std::abort();  // the task's captures are on stacks that must not go
    }
    return result.get();
  }
  // Waits, on the I/O thread's own time, until the predicate holds there.
  template <class Predicate>
  bool eventually(Predicate predicate) {
    const Deadline deadline = Deadline::in(kPatience);
    while (!deadline.passed()) {
      if (on_io([&] { return predicate(); })) return true;
      std::this_thread::yield();
    }
    return false;
  }

  // Sum of the series of this process whose line contains all of `parts`.
  double metric(std::initializer_list<std::string> parts) const {
    const std::string one = metrics.serialize();
    const auto page = monitoring::render_page({&one, 1});
    double sum = 0;
    std::istringstream lines(page.value());
    for (std::string line; std::getline(lines, line);) {
      const bool all = std::all_of(parts.begin(), parts.end(),
                                   [&](const auto& part) { return line.find(part) != std::string::npos; });
      if (all && line[0] != '#') sum += std::stod(line.substr(line.rfind(' ')));
    }
    return sum;
  }

  monitoring::Metrics metrics;
  boost::asio::io_context io;
  std::unique_ptr<transport::ControlPlane> control;
  std::unique_ptr<transport::DataPlane> data;

 protected:
  void make(const MakePlanes& make_planes, const transport::ControlOptions& options,
            transport::ControlHandlers handlers) {
    auto planes = make_planes(io, options, std::move(handlers));
    if (!planes) throw std::runtime_error(planes.error().message);
    control = std::move(planes->first);
    data = std::move(planes->second);
  }
  void run() {
    thread_ = std::thread([this] { io.run(); });
  }
  template <class F>
  void stop(F reset) {
    on_io([&] {
      reset();
      data.reset();
      control.reset();
      return 0;
    });
    work_.reset();
    io.stop();
    thread_.join();
  }

 private:
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

class StoreProcess : public Process {
 public:
  StoreProcess(const MakePlanes& make_planes, int world_rank, const StoreService::Options& options)
      : Process(transport::Role::kStore, world_rank) {
    make(make_planes, peer_options(transport::Role::kStore, world_rank),
         {.on_up = [this](const auto& peer) { service->on_up(peer); },
          .on_message = [this](const auto& peer, auto type,
                               auto body) { service->on_message(peer, type, body); },
          .on_down =
              [this](const auto& peer, const auto&) {
                if (service) service->on_down(peer);
              }});
    service = StoreService::make(io, *data, metrics, options).value();
    run();
  }
  ~StoreProcess() {
    stop([this] { service.reset(); });
  }
  StoreLedger ledger() {
    return on_io([this] { return service->ledger(); });
  }

  std::shared_ptr<StoreService> service;
};

struct Restored : RestoreReport {
  size_t pages = 0;  // the leading run
};

class WorkerProcess : public Process {
 public:
  WorkerProcess(const MakePlanes& make_planes, int world_rank, const PageOrigin& origin,
                SpillFormat format = {})
      : Process(transport::Role::kWorker, world_rank) {
    make(make_planes, peer_options(transport::Role::kWorker, world_rank),
         {.on_up =
              [this](const auto& peer) {
                last_store = peer;
                if (set) set->on_up(peer, admits);
              },
          .on_message =
              [this](const auto& peer, auto type, auto body) {
                if (set) set->on_message(peer, type, body);
              },
          .on_down =
              [this](const auto& peer, const Error& error) {
                down_reason = error.message;
                if (set) set->on_down(peer, error);
              }});
    set = std::make_unique<StoreSet>(io, *data, metrics, origin, std::move(format));
    run();
  }
  ~WorkerProcess() {
    stop([this] {
      last_store.reset();
      set.reset();
    });
  }

  // Connects and waits until the store's pool is open.
  transport::ConnectionPtr connect(const std::string& address) {
    std::promise<Result<transport::ConnectionPtr>> promise;
    const size_t before = on_io([&] { return set->num_ready(); });
    on_io([&] {
      control->connect(address, Deadline::in(kPatience),
                       [&](auto result) { promise.set_value(std::move(result)); });
      return 0;
    });
    auto connection = promise.get_future().get();
    EXPECT_TRUE(connection.ok() && eventually([&] { return set->num_ready() == before + 1; }));
    return connection.value();
  }

  std::future<SpillOutcome> start_spill(std::vector<PageWrite> pages, Duration patience = kPatience) {
    auto promise = std::make_shared<std::promise<SpillOutcome>>();
    boost::asio::post(io, [this, promise, pages = std::move(pages), patience]() mutable {
      set->spill(std::move(pages), Deadline::in(patience),
                 [promise](const auto& o) { promise->set_value(o); });
    });
    return promise->get_future();
  }
  SpillOutcome spill(std::vector<PageWrite> pages, Duration patience = kPatience) {
    return wait(start_spill(std::move(pages), patience));
  }
  std::future<Restored> start_restore(std::vector<PageRead> pages, Duration patience = kPatience,
                                      RestoreOptions options = {}) {
    auto promise = std::make_shared<std::promise<Restored>>();
    boost::asio::post(io, [this, promise, pages = std::move(pages), patience, options]() mutable {
      set->restore(std::move(pages), options, Deadline::in(patience), [promise](const RestoreReport& report) {
        promise->set_value({report, report.restored});
      });
    });
    return promise->get_future();
  }
  Restored restore(std::vector<PageRead> pages, Duration patience = kPatience, RestoreOptions options = {}) {
    return wait(start_restore(std::move(pages), patience, options));
  }
  template <class T>
  static T wait(std::future<T> future) {
    if (future.wait_for(2 * kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "no outcome";
      return {};
    }
    return future.get();
  }
  double spilled(const std::string& outcome) const {
    return metric({"lowkey_kv_spill_pages_total", "outcome=\"" + outcome + "\""});
  }
  double restored(const std::string& outcome) const {
    return metric({"lowkey_kv_restore_pages_total", "outcome=\"" + outcome + "\""});
  }

  std::unique_ptr<StoreSet> set;
  // I/O thread.
  bool admits = true;  // stores, at once
  transport::ConnectionPtr last_store;
  std::string down_reason;
};

inline PageOrigin test_origin() {
  return {
      .model_fingerprint = {1, 2}, .layout_fingerprint = {3, 4}, .rank = 1, .num_ranks = 2, .num_levels = 2};
}

// A page of random bytes in two levels (and a sink when asked), and memory to restore it into.
class TestPage {
 public:
  explicit TestPage(uint64_t seed, size_t bytes = 4096, bool sink = false,
                    const PageOrigin& origin = test_origin()) {
    std::mt19937_64 random(seed);
    const size_t sizes[kernels::kMaxSlabs] = {bytes, bytes / 2, sink ? bytes / 4 : 0, 0};
    for (size_t s = 0; s < kernels::kMaxSlabs; ++s) {
      written_[s].resize(sizes[s]);
      read_[s].resize(sizes[s]);
      for (std::byte& b : written_[s]) b = static_cast<std::byte>(random());
      header.checksums[s] = sizes[s] > 0 ? slab_checksum(written_[s]) : 0;
    }
    header.levels_present = 0b11;
    header.read_at_least_level = static_cast<uint8_t>(origin.num_levels - 1);
    header.has_sink = sink;
    header.identity = hash128("page " + std::to_string(seed));
    header.tokens_hash = seed;
    header.model_fingerprint = origin.model_fingerprint;
    header.layout_fingerprint = origin.layout_fingerprint;
    header.rank = origin.rank;
    header.num_ranks = origin.num_ranks;
    header.header_checksum = header.compute_checksum();
  }

  PageWrite write() const {
    PageWrite page{.header = header};
    for (size_t s = 0; s < written_.size(); ++s) page.slabs[s] = written_[s];
    return page;
  }
  PageRead read() {
    PageRead page{.identity = header.identity, .tokens_hash = header.tokens_hash};
    for (size_t s = 0; s < read_.size(); ++s) {
      std::fill(read_[s].begin(), read_[s].end(), std::byte{0xa5});
      page.slabs[s] = read_[s];
    }
    return page;
  }
  // Only these slabs are wanted (bits as in wanted_slabs()).
  PageRead read(uint32_t slabs) {
    read();
    return wanting(slabs);
  }
  // The same, and what was read before stays.
  PageRead wanting(uint32_t slabs) {
    PageRead page{.identity = header.identity, .tokens_hash = header.tokens_hash};
    for (size_t s = 0; s < read_.size(); ++s) {
      if ((slabs >> s & 1) != 0) page.slabs[s] = read_[s];
    }
    return page;
  }
  bool came_back() const { return written_ == read_; }
  bool came_back(size_t slab) const { return written_[slab] == read_[slab]; }
  bool untouched() const {
    for (const auto& slab : read_) {
      for (const std::byte b : slab) {
        if (b != std::byte{0xa5}) return false;
      }
    }
    return true;
  }
  size_t bytes() const { return written_[0].size() + written_[1].size() + written_[2].size(); }

  kernels::PageHeader header;

 private:
  std::array<std::vector<std::byte>, kernels::kMaxSlabs> written_, read_;
};

inline std::vector<TestPage> test_pages(size_t n, size_t bytes = 4096, uint64_t first_seed = 1) {
  std::vector<TestPage> pages;
  for (size_t i = 0; i < n; ++i) pages.emplace_back(first_seed + i, bytes, i == 0);
  return pages;
}
inline std::vector<PageWrite> writes(std::span<const TestPage> pages) {
  std::vector<PageWrite> result;
  for (const TestPage& page : pages) result.push_back(page.write());
  return result;
}
inline std::vector<PageRead> reads(std::span<TestPage> pages) {
  std::vector<PageRead> result;
  for (TestPage& page : pages) result.push_back(page.read());
  return result;
}

}  // namespace lowkey::kvstore
