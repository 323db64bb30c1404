// transfer_bench [--network] [--gigabytes N]: what spills and restores make of the link between a worker and
// a store, two processes. Payload bandwidth of spilling and of restoring pages, everything counted
// (reservations, lookups, checksums, copies into place), beside bare puts and gets of the same bytes between
// the same pools in the same batches; and how the time of a restore shrinks with the bytes of a page. Shared
// memory, or the network on one host. What is compared is measured in turns, medians over the rounds. Prints
// `name measured target pass|fail`, then everything as one line of JSON.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "kvstore/service/store_set.h"
#include "monitoring/metrics.h"
#include "tests/support/random_profile.h"
#include "tests/support/store_child.h"
#include "transport/host_identity.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::testing {
namespace {

using kvstore::PageRead;
using kvstore::PageWrite;
using transport::Transfer;

constexpr int kRounds = 5;
constexpr Duration kPatience = std::chrono::seconds(120);
constexpr size_t kExactPage = 737'280;  // 135M in bf16: 30 layers, 3 heads of 64 features, 32 tokens
constexpr size_t kSmallPage = 172'800;  // the same with a quarter of the bytes and a little
constexpr size_t kSpillPages = 8;       // of one spill(), as a step gives them away
constexpr size_t kSpillsAtOnce = 10;
constexpr size_t kRestorePages = 256;  // of one restore(): 8,192 tokens
constexpr size_t kLongRestore = 1024;  // 32,768 tokens

struct Options {
  bool network = false;
  size_t bytes = 1ull << 30;
};

// Memory as pools have it: huge pages, touched.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    data_ = static_cast<std::byte*>(
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    LOWKEY_CHECK(data_ != MAP_FAILED, "no memory");
    ::madvise(data_, bytes, MADV_HUGEPAGE);
    uint64_t state = 1;
    for (size_t at = 0; at + 8 <= bytes; at += 8) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::memcpy(data_ + at, &state, 8);
    }
  }
  ~Memory() { ::munmap(data_, bytes_); }
  std::span<std::byte> page(size_t index, size_t size) { return {data_ + index * size, size}; }
  size_t bytes() const { return bytes_; }

 private:
  const size_t bytes_;
  std::byte* data_;
};

// Wall time, and CPU time of the I/O thread and of all of this process's threads.
struct Spent {
  double wall = 0, io_cpu = 0, cpu = 0;
};
double cpu_seconds(clockid_t clock) {
  timespec time;
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The worker's side, with the I/O thread that a worker has.
class Worker {
 public:
  Worker(const std::string& store, const std::string& host) : metrics({{"role", "worker"}, {"rank", "1"}}) {
    transport::ControlOptions options;
    options.self.role = transport::Role::kWorker;
    options.self.world_rank = 1;
    options.self.host = host;
    options.cluster_secret = "0123456789abcdef0123456789abcdef";
    auto made = transport::make_ucx_transport(
        io, options,
        {.on_up = [this](const auto& peer) { set->on_up(peer); },
         .on_message =
             [this](const auto& peer, auto type, auto body) {
               if (type == transport::MessageType::kPoolInfo) open(peer, body);
               set->on_message(peer, type, body);
             },
         .on_down = [this](const auto& peer, const Error& error) { set->on_down(peer, error); }});
    LOWKEY_CHECK(made.ok(), "{}", made.error().message);
    control = std::move(made->control);
    data = std::move(made->data);
    set = std::make_unique<kvstore::StoreSet>(io, *data, metrics, origin);
    thread_ = std::thread([this] { io.run(); });
    boost::asio::post(io, [&] {
      control->connect(store, Deadline::in(kPatience), [this](auto connected) {
        LOWKEY_CHECK(connected.ok(), "{}", connected.error().message);
        connection_ = *connected;
      });
    });
    const Deadline deadline = Deadline::in(kPatience);
    while (!pool_open_) {
      LOWKEY_CHECK(!deadline.passed(), "the store does not answer");
      std::this_thread::yield();
    }
  }
  ~Worker() {
    std::promise<void> gone;
    boost::asio::post(io, [&] {
      set.reset();
      pool.reset();
      connection_.reset();
      data.reset();
      control.reset();
      gone.set_value();
    });
    gone.get_future().wait();
    work_.reset();
    thread_.join();
  }

  double io_cpu() {
    clockid_t clock;
    ::pthread_getcpuclockid(thread_.native_handle(), &clock);
    return cpu_seconds(clock);
  }

  kvstore::PageOrigin origin{.model_fingerprint = {1, 2}, .layout_fingerprint = {3, 4}};
  monitoring::Metrics metrics;
  boost::asio::io_context io;
  std::unique_ptr<transport::ControlPlane> control;
  std::unique_ptr<transport::DataPlane> data;
  std::unique_ptr<kvstore::StoreSet> set;
  std::shared_ptr<transport::RemotePool> pool;

 private:
  void open(const transport::ConnectionPtr& peer, std::string_view body) {
    wire::PoolInfo info;
    LOWKEY_CHECK(info.ParseFromArray(body.data(), static_cast<int>(body.size())));
    pool = data->open(peer, info.data_address(), info.remote_handle()).value();
    boost::asio::post(io, [this] { pool_open_ = true; });  // by then the set knows, too
  }

  transport::ConnectionPtr connection_;
  std::atomic<bool> pool_open_ = false;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_ = make_work_guard(io);
  std::thread thread_;
};

// What it takes to move `count` pages, `piece` of them in one go, so many goes at once; start(first, last,
// done) on the I/O thread.
Spent in_turns(Worker& worker, size_t count, size_t piece, size_t at_once,
               const std::function<void(size_t, size_t, std::function<void()>)>& start) {
  struct State {
    size_t next = 0, busy = 0;
    bool posted = false;
    std::promise<void> finished;
    std::function<void()> go_on;
  };
  const auto state = std::make_shared<State>();
  state->go_on = [&start, &worker, count, piece, at_once, self = state.get()] {
    self->posted = false;
    while (self->next < count && self->busy < at_once) {
      const size_t first = std::exchange(self->next, std::min(count, self->next + piece));
      ++self->busy;
      start(first, self->next, [self, &worker] {
        --self->busy;
        if (!std::exchange(self->posted, true)) boost::asio::post(worker.io, self->go_on);
      });
    }
    if (self->next == count && self->busy == 0) self->finished.set_value();
  };
  const TimePoint begin = Clock::now();
  const double cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID), io_cpu = worker.io_cpu();
  boost::asio::post(worker.io, state->go_on);
  state->finished.get_future().wait();
  return {seconds(Clock::now() - begin), worker.io_cpu() - io_cpu,
          cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu};
}

// Bare puts or gets of all pages. `piece` pages to a batch, under one flush.
Spent bare(Worker& worker, bool put, Memory& memory, size_t page, size_t piece, size_t at_once) {
  return in_turns(worker, memory.bytes() / page, piece, at_once, [&](size_t first, size_t last, auto done) {
    std::vector<Transfer> batch;
    for (size_t i = first; i < last; ++i) batch.push_back({memory.page(i, page), i * page});
    const auto ended = [done](const Status& status) {
      LOWKEY_CHECK(status.ok(), "{}", status.error().message);
      done();
    };
    const Deadline deadline = Deadline::in(kPatience);
    put ? worker.data->put(worker.pool, std::move(batch), deadline, nullptr, ended)
        : worker.data->get(worker.pool, std::move(batch), deadline, nullptr, ended);
  });
}

// The pages of one round: new identities, so that the store takes them all.
class Pages {
 public:
  Pages(const kvstore::PageOrigin& origin, Memory& memory, size_t page) : memory_(memory), page_(page) {
    for (size_t i = 0; i < memory.bytes() / page; ++i) {
      kernels::PageHeader header{.levels_present = 1};
      header.model_fingerprint = origin.model_fingerprint;
      header.layout_fingerprint = origin.layout_fingerprint;
      header.rank = origin.rank;
      header.num_ranks = origin.num_ranks;
      header.checksums[0] = slab_checksum(memory.page(i, page));
      headers_.push_back(header);
    }
  }
  size_t count() const { return headers_.size(); }
  void rename(int round) {
    for (size_t i = 0; i < headers_.size(); ++i) {
      headers_[i].identity = hash128(fmt::format("{} {} {}", page_, round, i));
      headers_[i].header_checksum = headers_[i].compute_checksum();
    }
  }
  PageWrite write(size_t i, bool checksummed) const {
    PageWrite write{.header = headers_[i], .checksummed = checksummed};
    write.slabs[0] = memory_.page(i, page_);
    return write;
  }
  PageRead read(size_t i, Memory& target) const {
    PageRead read{.identity = headers_[i].identity};
    read.slabs[0] = target.page(i, page_);
    return read;
  }

 private:
  Memory& memory_;
  const size_t page_;
  std::vector<kernels::PageHeader> headers_;
};

Spent spill(Worker& worker, const Pages& pages, bool checksummed) {
  return in_turns(worker, pages.count(), kSpillPages, kSpillsAtOnce,
                  [&](size_t first, size_t last, auto done) {
                    std::vector<PageWrite> writes;
                    for (size_t i = first; i < last; ++i) writes.push_back(pages.write(i, checksummed));
                    worker.set->spill(std::move(writes), Deadline::in(kPatience),
                                      [done, n = last - first](const kvstore::SpillOutcome& outcome) {
                                        LOWKEY_CHECK(outcome.stored == n, "{} of {} stored: {}",
                                                     outcome.stored, n, outcome.reason);
                                        done();
                                      });
                  });
}

Spent restore(Worker& worker, const Pages& pages, Memory& target, size_t piece, size_t at_once) {
  return in_turns(worker, pages.count(), piece, at_once, [&](size_t first, size_t last, auto done) {
    std::vector<PageRead> reads;
    for (size_t i = first; i < last; ++i) reads.push_back(pages.read(i, target));
    worker.set->restore(std::move(reads), {}, Deadline::in(kPatience),
                        [done, n = last - first](const kvstore::RestoreReport& report) {
                          LOWKEY_CHECK(report.restored == n, "{} of {}: {}", report.restored, n,
                                       report.reason);
                          done();
                        });
  });
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

class Report {
 public:
  explicit Report(const std::string& link) : link_(link) {}

  void ratio(const char* name, double measured, double target) {
    const std::string full = fmt::format("{}_{}", link_, name);
    std::printf("%-44s %8.3f >= %5.3f %s\n", full.c_str(), measured, target,
                measured >= target ? "pass" : "fail");
    lines_.push_back(boost::json::object{{"name", full}, {"measured", measured}, {"target", target}});
  }
  void value(const std::string& name, double measured) { values_[name] = measured; }
  void print() const {
    const boost::json::object all{{"link", link_}, {"lines", lines_}, {"values", values_}};
    std::printf("%s\n", boost::json::serialize(all).c_str());
  }

 private:
  const std::string link_;
  boost::json::array lines_;
  boost::json::object values_;
};

// Hot bytes per second of one core from exact pages to pages 4 times smaller, and back: best of a few.
void recode(Report& report) {
  const kvstore::ModelShape model{.name = "135M", .num_layers = 30, .num_kv_heads = 3, .head_dim = 64};
  const auto small =
      kvstore::parse_recipe("name: 4x\nfeatures: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n", "4x");
  const kvstore::Profile profile = random_profile(model);
  const auto hot = kvstore::resolve({}, nullptr, model, 0, 1).value().pages;
  kvstore::PageTranscoder transcoder(hot, kvstore::resolve(*small, &profile, model, 0, 1).value().pages);
  const kernels::PageLayout& spilled = transcoder.spilled();
  LOWKEY_CHECK(hot.slab_bytes[0] == kExactPage, "a page of {} bytes", hot.slab_bytes[0]);
  std::vector<std::byte> hot_bytes(kExactPage, std::byte{0x3f}), spilled_bytes(spilled.slab_bytes[0]);
  double there = 1, back = 1;
  for (int i = 0; i < 20; ++i) {
    const TimePoint begin = Clock::now();
    transcoder.spill({hot_bytes}, {spilled_bytes});
    const TimePoint middle = Clock::now();
    transcoder.restore({spilled_bytes}, {hot_bytes});
    there = std::min(there, seconds(middle - begin));
    back = std::min(back, seconds(Clock::now() - middle));
  }
  report.value("recoding to 4x, hot GB/s of a core", kExactPage / there / 1e9);
  report.value("recoding back, hot GB/s of a core", kExactPage / back / 1e9);
}

int run(const Options& options) {
  const std::string host = options.network ? "" : transport::host_identity();
  const size_t pool = options.bytes + options.bytes / 2;  // all of a round, and some of the one before
  StoreChild store(LOWKEY_STORE_PROCESS, pool, std::chrono::seconds(60), host, kPatience);
  Worker worker(store.address(), host);
  Memory source(options.bytes), target(options.bytes), small_source(options.bytes / 4),
      small_target(options.bytes / 4);
  Pages pages(worker.origin, source, kExactPage), small(worker.origin, small_source, kSmallPage);
  std::map<std::string, std::vector<Spent>> times;
  std::vector<double> put_ratio, staged_ratio, get_ratio, shrink;
  for (int round = 0; round < kRounds; ++round) {
    const auto timed = [&](const char* name, const Spent& spent) {
      times[name].push_back(spent);
      return spent.wall;
    };
    const double put = timed("put", bare(worker, true, source, kExactPage, kSpillPages, kSpillsAtOnce));
    pages.rename(2 * round);
    staged_ratio.push_back(put / timed("spill with checksums", spill(worker, pages, false)));
    pages.rename(2 * round + 1);
    put_ratio.push_back(put / timed("spill", spill(worker, pages, true)));
    const double get = timed("get", bare(worker, false, target, kExactPage, 2, 4));
    get_ratio.push_back(get / timed("restore", restore(worker, pages, target, kRestorePages, 2)));
    LOWKEY_CHECK(std::memcmp(target.page(0, options.bytes).data(), source.page(0, options.bytes).data(),
                             pages.count() * kExactPage) == 0,
                 "other bytes came back");
    small.rename(round);
    spill(worker, small, true);
    // Per page, one restore after the other.
    const double exact =
        timed("restore exact", restore(worker, pages, target, kLongRestore, 1)) / pages.count();
    const double less =
        timed("restore small", restore(worker, small, small_target, kLongRestore, 1)) / small.count();
    shrink.push_back(exact / less / (double(kExactPage) / kSmallPage));
  }
  Report report(options.network ? "network" : "shm");
  report.ratio("spill_over_bare_put", median(put_ratio), 0.8);
  report.ratio("checksummed_spill_over_bare_put", median(staged_ratio), 0.8);
  report.ratio("restore_over_bare_get", median(get_ratio), 0.8);
  report.ratio("restore_time_over_bytes_exact_to_small", median(shrink), 0.85);
  const double gigabytes = static_cast<double>(pages.count() * kExactPage) / 1e9;
  report.value("GB", gigabytes);
  for (const char* what : {"put", "spill", "spill with checksums", "get", "restore"}) {
    const auto rate = [&](double Spent::*time) {
      std::vector<double> rates;
      for (const Spent& spent : times[what]) rates.push_back(gigabytes / (spent.*time));
      return median(rates);
    };
    report.value(fmt::format("{} GB/s", what), rate(&Spent::wall));
    report.value(fmt::format("{} GB per second of the I/O thread", what), rate(&Spent::io_cpu));
    report.value(fmt::format("{} GB per second of all threads", what), rate(&Spent::cpu));
  }
  recode(report);
  report.print();
  return 0;
}

}  // namespace
}  // namespace lowkey::testing

int main(int argc, char** argv) {
  spdlog::set_level(spdlog::level::err);
  lowkey::testing::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--network") {
      options.network = true;
    } else if (arg == "--gigabytes" && i + 1 < argc) {
      options.bytes = static_cast<size_t>(std::stod(argv[++i]) * (1ull << 30));
    } else {
      std::fprintf(stderr, "transfer_bench [--network] [--gigabytes N]\n");
      return 2;
    }
  }
  return lowkey::testing::run(options);
}
