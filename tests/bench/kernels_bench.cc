// Speed of the CPU kernels: matrix products and attention, each with its rate, beside the read bandwidth and
// the shapes of the 135M and 1B models. Weights and caches are rotated through far more memory than the
// caches hold. usage: kernels_bench [Google Benchmark flags]; threads: LOWKEY_BENCH_THREADS (default 2)
#include <benchmark/benchmark.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/page_encode.h"
#include "kernels/page/dtype.h"
#include "tests/bench/floors.h"

namespace lowkey::kernels {
namespace {

constexpr size_t kColdBytes = size_t{256} << 20;  // several times the last-level cache

int num_threads() {
  const char* text = std::getenv("LOWKEY_BENCH_THREADS");
  return text == nullptr ? 2 : std::atoi(text);
}

std::vector<float> normal_values(size_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& x : values) x = normal(random);
  return values;
}

void read_bandwidth(benchmark::State& state) {
  double best = 0;
  for (auto _ : state) best = std::max(best, lowkey::testing::best_read_bandwidth(num_threads()));
  state.counters["GB/s"] = best * 1e-9;
}
BENCHMARK(read_bandwidth)->Iterations(1)->Unit(benchmark::kMillisecond);

// Arguments: rows, in, out, dtype.
void linear(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0)), in = static_cast<int>(state.range(1)),
            out = static_cast<int>(state.range(2));
  const DType dtype = state.range(3) == 0 ? DType::kBf16 : DType::kF32;
  const auto backend = make_cpu_backend({.dtype = dtype, .threads = num_threads()});
  const auto values = normal_values(static_cast<size_t>(out) * in);
  std::vector<std::unique_ptr<Linear>> weights;
  do {
    weights.push_back(backend->pack_linear(values.data(), DType::kF32, out, in, in));
  } while (weights.size() * weights[0]->packed_bytes() < kColdBytes);
  auto x = normal_values(static_cast<size_t>(rows) * in);
  std::vector<float> y(static_cast<size_t>(rows) * out);
  size_t next = 0;
  for (auto _ : state) {
    backend->linear(*weights[next++ % weights.size()], {x.data(), rows, in}, nullptr, false,
                    {y.data(), rows, out});
  }
  const double calls = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(calls * static_cast<double>(weights[0]->packed_bytes()) * 1e-9,
                                              benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(calls * 2e-9 * rows * in * out, benchmark::Counter::kIsRate);
}
BENCHMARK(linear)
    ->ArgNames({"M", "K", "N", "f32"})
    ->ArgsProduct({{1, 4, 16, 512}, {576}, {1536, 49152}, {0}})
    ->ArgsProduct({{1, 4, 16, 512}, {2048}, {8192}, {0}})
    ->ArgsProduct({{1, 512}, {576}, {1536}, {1}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

enum Format { kExact, kQ8, kFourBits, kMixed };

// kFourBits and kMixed have a basis, a mean and static scales, and 8, 4, 2, 0 bits in the groups when mixed.
PageSpec spec_of(int format, int dim) {
  if (format == kExact) return {};
  if (format == kQ8) return PageSpec::embedded("q8", 8, 4);
  PageSpec spec{.recipe = "basis", .sink_tokens = 4};
  const uint8_t mixed[] = {8, 4, 2, 0};
  for (VectorSpec* vector : {&spec.key, &spec.value}) {
    vector->quantizer = Quantizer::kEmbedded;
    for (int group = 0; group < dim / kGroupFeatures; ++group)
      vector->bits.push_back({format == kMixed ? mixed[group * 4 * kGroupFeatures / dim] : uint8_t{4}});
    vector->encode = normal_values(static_cast<size_t>(dim) * dim);
    vector->decode = vector->encode;
    vector->mean = normal_values(dim);
    vector->scale.assign(dim, 1.0f);
  }
  return spec;
}

// One layer of the 135M shape after `context` tokens, for `sequences` sequences that add `rows` tokens each.
class AttentionBench {
 public:
  AttentionBench(int format, int sequences, int context, int rows)
      : backend_(make_cpu_backend({.dtype = DType::kBf16, .threads = num_threads()})),
        context_(context),
        rows_(rows) {
    const PageSpec spec = spec_of(format, kDim);
    const PageLayout one_bank = PageLayout::make(spec, {1, kHeads, kDim, DType::kBf16}).value();
    const size_t bytes = one_bank.bytes_for_tokens(context) * sequences;
    banks_ = static_cast<int>(std::min<size_t>(1 + kColdBytes / std::max<size_t>(bytes, 1), 30));
    layout_ = PageLayout::make(spec, {banks_, kHeads, kDim, DType::kBf16}).value();
    for (int s = 0; s < sequences; ++s) allocate_sequence(s);
    const size_t total = static_cast<size_t>(std::max(rows, 512)) * sequences;
    q_ = normal_values(total * kQueryHeads * kDim);
    k_ = normal_values(total * kHeads * kDim);
    v_ = normal_values(total * kHeads * kDim);
    out_.resize(q_.size());
    for (int bank = 0; bank < banks_; ++bank) {
      for (int first = 0; first < context; first += 512) step(bank, first, std::min(512, context - first));
    }
  }

  void step(int bank, int first, int rows) {
    slices_.clear();
    for (size_t s = 0; s < tails_.size(); ++s) {
      slices_.push_back({static_cast<int>(s) * rows, rows, first, pointers_[s].data(), page_levels_.data(),
                         tails_[s]->data()});
    }
    const int total = rows * static_cast<int>(tails_.size());
    backend_->attend({&layout_,
                      bank,
                      kQueryHeads,
                      0.125f,
                      {q_.data(), total, kQueryHeads * kDim},
                      {k_.data(), total, kHeads * kDim},
                      {v_.data(), total, kHeads * kDim},
                      {out_.data(), total, kQueryHeads * kDim},
                      /*first_reader=*/true,
                      /*last_reader=*/true,
                      slices_});
  }

  void run(benchmark::State& state) {
    int bank = 0;
    for (auto _ : state) step(bank++ % banks_, context_, rows_);
    const double calls = static_cast<double>(state.iterations()) * static_cast<double>(tails_.size());
    const double bytes = layout_.bytes_per_token() / banks_ * context_;
    state.counters["GB/s"] = benchmark::Counter(calls * bytes * 1e-9, benchmark::Counter::kIsRate);
    const double seen = context_ + rows_ / 2.0;
    state.counters["GFLOP/s"] =
        benchmark::Counter(calls * 4e-9 * rows_ * seen * kQueryHeads * kDim, benchmark::Counter::kIsRate);
  }

 private:
  static constexpr int kHeads = 3, kQueryHeads = 9, kDim = 64;

  void allocate_sequence(int) {
    const int pages = (context_ + rows_) / layout_.page_tokens;
    page_levels_.assign(pages, 1);
    auto& pointers = pointers_.emplace_back(static_cast<size_t>(pages) * kMaxSlabs, nullptr);
    for (int page = 0; page < pages; ++page) {
      for (int slab = 0; slab < layout_.num_slabs(); ++slab) {
        if (slab >= layout_.num_levels && page > 0) continue;
        memory_.push_back(backend_->allocate(layout_.slab_bytes[slab]));
        pointers[static_cast<size_t>(page) * kMaxSlabs + slab] = memory_.back()->data();
      }
    }
    tails_.push_back(backend_->allocate(layout_.tail_bytes));
  }

  std::unique_ptr<Backend> backend_;
  PageLayout layout_;
  int context_, rows_, banks_ = 1;
  std::vector<std::unique_ptr<Buffer>> memory_, tails_;
  std::vector<std::vector<std::byte*>> pointers_;
  std::vector<uint8_t> page_levels_;
  std::vector<SequenceSlice> slices_;
  std::vector<float> q_, k_, v_, out_;
};

void attend(benchmark::State& state) {
  AttentionBench bench(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)),
                       static_cast<int>(state.range(2)), static_cast<int>(state.range(3)));
  bench.run(state);
}
BENCHMARK(attend)
    ->ArgNames({"format", "sequences", "context", "rows"})
    ->ArgsProduct({{kExact, kQ8}, {1}, {512, 2048, 8192}, {1}})
    ->ArgsProduct({{kExact, kQ8}, {16}, {512}, {1}})
    ->ArgsProduct({{kExact, kQ8, kFourBits, kMixed}, {1}, {2048}, {512}})
    ->ArgsProduct({{kExact, kQ8, kFourBits, kMixed}, {1}, {0}, {1024}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

// What the encode benchmark writes, by number; the bases are noise: only their sizes matter.
PageSpec encode_spec(int recipe) {
  if (recipe == 0) return {};
  if (recipe == 1) return PageSpec::embedded("q8", 8, 4);
  PageSpec spec = PageSpec::embedded("4 bits", 4, 4);
  spec.key.bits.resize(4);
  if (recipe == 3) {
    spec.recipe = "8 4 2 0, levels";
    spec.num_levels = 2;
    spec.key.bits = {{4, 4}, {4, 0}, {2, 0}, {0, 0}};
  }
  spec.key.encode = spec.key.decode = normal_values(64 * 64);
  spec.key.mean = normal_values(64);
  spec.key.scale.assign(64, 1.5f);
  spec.value = spec.key;
  return spec;
}

// Complete pages of one layer of the 135M shape, one thread. The rows are in cache, as they are right after
// they are made; the pages are not.
void encode(benchmark::State& state) {
  const PageLayout layout =
      PageLayout::make(encode_spec(static_cast<int>(state.range(0))), {1, 3, 64, DType::kBf16}).value();
  const auto values = normal_values(static_cast<size_t>(layout.page_tokens) * 64);
  std::vector<uint16_t> rows;
  for (float x : values) rows.push_back(f32_to_bf16(x));
  const std::byte* head[] = {reinterpret_cast<const std::byte*>(rows.data())};
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::array<std::byte*, kMaxSlabs>> pages(kColdBytes / layout.slab_bytes[0]);
  for (auto& page : pages) {
    for (int level = 0; level < layout.num_levels; ++level)
      page[level] = memory.emplace_back(layout.slab_bytes[level]).data();
  }
  simd::PageEncoder encoder;
  size_t next = 0;
  const std::clock_t start = std::clock();  // of the processor: one thread
  for (auto _ : state) {
    const PageView page{pages[next++ % pages.size()].data()};
    for (const VectorLayout& vector : layout.vectors) encoder.encode(layout, vector, head, page);
  }
  state.SetLabel(layout.recipe);
  const double tokens = static_cast<double>(state.iterations()) * layout.page_tokens;
  state.counters["ns/token"] = 1e9 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / tokens;
}
BENCHMARK(encode)->ArgName("recipe")->DenseRange(0, 3)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lowkey::kernels

BENCHMARK_MAIN();
