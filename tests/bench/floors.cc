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

namespace {

// One product of `shape`, with an input and an output for each thread.
class Product {
 public:
  Product(const dnnl::engine& engine, const GemmShape& shape, int rows, int threads) : engine_(engine) {
    using Format = dnnl::memory::format_tag;
    const auto bf16 = dnnl::memory::data_type::bf16;
    const dnnl::memory::desc x({rows, shape.in}, bf16, Format::ab);
    const dnnl::memory::desc any({shape.in, shape.out}, bf16, Format::any);
    const dnnl::memory::desc y({rows, shape.out}, dnnl::memory::data_type::f32, Format::ab);
    const dnnl::matmul::primitive_desc plan(dnnl::matmul::desc(x, any, y), engine);
    matmul_ = dnnl::matmul(plan);
    weight_ = filled(plan.weights_desc());
    for (int thread = 0; thread < threads; ++thread) {
      in_.push_back(filled(x));
      out_.emplace_back(y, engine);
    }
  }

  void run(int thread, dnnl::stream& stream) {
    matmul_.execute(stream,
                    {{DNNL_ARG_SRC, in_[thread]}, {DNNL_ARG_WEIGHTS, weight_}, {DNNL_ARG_DST, out_[thread]}});
  }

 private:
  dnnl::memory filled(const dnnl::memory::desc& desc) {
    dnnl::memory memory(desc, engine_);
    std::fill_n(static_cast<uint16_t*>(memory.get_data_handle()), desc.get_size() / 2, 0x3c00);
    return memory;
  }

  dnnl::engine engine_;
  dnnl::matmul matmul_;
  dnnl::memory weight_;
  std::vector<dnnl::memory> in_, out_;
};

}  // namespace

double onednn_seconds(std::span<const GemmShape> shapes, int repeats, int rows, int threads) {
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  omp_set_num_threads(1);  // per thread: teams of oneDNN's own would fight for the cores
  std::vector<Product> products;
  for (const GemmShape& shape : shapes) products.emplace_back(engine, shape, rows / threads, threads);
  return best_of_rounds(threads, kRounds, [&](int thread) {
    omp_set_num_threads(1);
    dnnl::stream stream(engine);
    for (int repeat = 0; repeat < repeats; ++repeat)
      for (Product& product : products) product.run(thread, stream);
    stream.wait();
  });
}

}  // namespace lowkey::testing
