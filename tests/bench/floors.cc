#include "tests/bench/floors.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <dnnl.hpp>
#include <numeric>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/deadline.h"

namespace lowkey::testing {

namespace {

constexpr size_t kStreamBytes = 512u << 20;  // 5 times the largest L3 we have met (105 MB)
constexpr int kRounds = 5;

// Runs work(thread, round) on all threads at once; the shortest time from start to the last one's end.
template <class Work>
double best_of_rounds(int threads, int rounds, Work work) {
  std::vector<Duration> best(rounds, Duration::max());
  TimePoint begin;
  std::barrier start(threads, [&]() noexcept { begin = Clock::now(); });
  int round_done = 0;
  std::barrier stop(threads, [&]() noexcept { best[round_done++] = Clock::now() - begin; });
  std::vector<std::jthread> pool;
  for (int thread = 0; thread < threads; ++thread)
    pool.emplace_back([&, thread] {
      for (int round = 0; round < rounds; ++round) {
        start.arrive_and_wait();
        work(thread);
        stop.arrive_and_wait();
      }
    });
  pool.clear();
  return seconds(*std::ranges::min_element(best));
}

template <int kStreams>
uint64_t read_streams(const uint64_t* data, size_t count) {
  constexpr size_t kStep = 8;  // one cache line per stream and step
  const size_t part = count / kStreams;
  uint64_t sums[kStreams] = {};
  for (size_t i = 0; i + kStep <= part; i += kStep)
    for (int s = 0; s < kStreams; ++s) {
      const uint64_t* line = data + s * part + i;
      sums[s] += (line[0] ^ line[1]) + (line[2] ^ line[3]) + (line[4] ^ line[5]) + (line[6] ^ line[7]);
    }
  uint64_t sum = 0;
  for (const uint64_t s : sums) sum += s;
  return sum;
}

}  // namespace

double best_read_bandwidth(int threads) {
  void* memory = ::mmap(nullptr, kStreamBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  LOWKEY_CHECK(memory != MAP_FAILED, "no {} bytes", kStreamBytes);
  ::madvise(memory, kStreamBytes, MADV_HUGEPAGE);
  auto* data = static_cast<uint64_t*>(memory);
  const size_t count = kStreamBytes / sizeof(uint64_t);
  std::iota(data, data + count, uint64_t{1});
  std::vector<uint64_t> sink(threads * 64);
  double best = 0;
  using Reader = uint64_t (*)(const uint64_t*, size_t);
  for (const Reader reader : {read_streams<1>, read_streams<2>, read_streams<4>, read_streams<8>}) {
    const size_t part = count / threads;
    const double time = best_of_rounds(
        threads, kRounds, [&](int thread) { sink[thread * 64] += reader(data + thread * part, part); });
    best = std::max(best, double(kStreamBytes) / time);
  }
  LOWKEY_CHECK(sink[0] != 0, "the loop was optimized away");
  ::munmap(memory, kStreamBytes);
  return best;
}

double onednn_seconds(std::span<const GemmShape> shapes, int rows, int threads) {
  using Format = dnnl::memory::format_tag;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const auto bf16 = dnnl::memory::data_type::bf16;
  double total = 0;
  for (const GemmShape& shape : shapes) {
    const int part = rows / threads;
    const dnnl::memory::desc x({part, shape.in}, bf16, Format::ab);
    const dnnl::memory::desc any({shape.in, shape.out}, bf16, Format::any);
    const dnnl::memory::desc y({part, shape.out}, dnnl::memory::data_type::f32, Format::ab);
    omp_set_num_threads(1);  // per thread: teams of oneDNN's own would fight for the cores
    const dnnl::matmul::primitive_desc plan(dnnl::matmul::desc(x, any, y), engine);
    const dnnl::matmul matmul(plan);
    dnnl::memory weight(plan.weights_desc(), engine);
    std::fill_n(static_cast<uint16_t*>(weight.get_data_handle()), plan.weights_desc().get_size() / 2, 0x3c00);
    std::vector<dnnl::memory> in, out;
    for (int thread = 0; thread < threads; ++thread) {
      in.emplace_back(x, engine);
      out.emplace_back(y, engine);
      std::fill_n(static_cast<uint16_t*>(in.back().get_data_handle()), x.get_size() / 2, 0x3c00);
    }
    total += best_of_rounds(threads, 4 * kRounds, [&](int thread) {
      omp_set_num_threads(1);
      dnnl::stream stream(engine);
      matmul.execute(stream,
                     {{DNNL_ARG_SRC, in[thread]}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, out[thread]}});
      stream.wait();
    });
  }
  return total;
}

}  // namespace lowkey::testing
