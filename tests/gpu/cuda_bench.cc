// Times of the CUDA backend against what the same device does at best, in the same run; one JSON object.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>

#include "tests/gpu/bench_support.h"
#include "tests/gpu/read_kernel.h"

namespace lowkey::testing {
namespace {

using namespace kernels;

// Best of several numbers of blocks, over memory far beyond the caches.
boost::json::object bench_read(Bench& bench) {
  const size_t bytes = bench.sizes.tiny ? size_t{1} << 16 : size_t{8} << 30;
  const auto memory = bench.backend.allocate(bytes);
  const auto some = bench.floats(std::min<size_t>(bytes / 4, 1 << 24), 9);
  for (size_t at = 0; at < bytes; at += some->size())
    LOWKEY_CUDA_CHECK(cudaMemcpyAsync(memory->data() + at, some->data(), std::min(some->size(), bytes - at),
                                      cudaMemcpyDeviceToDevice, bench.stream));
  const auto result = bench.backend.allocate(64);
  double best = 1e9;
  for (const int blocks : {1056, 2112, 4224}) {
    best = std::min(best, bench.seconds({[&] {
      launch_read(bench.stream, memory->data(), bytes, bench.sizes.of(blocks, 2),
                  reinterpret_cast<uint32_t*>(result->data()));
    }}));
  }
  bench.read_bytes_per_second = double(bytes) / best;
  return {{"bytes", bytes}, {"seconds", best}, {"bytes_per_second", bench.read_bytes_per_second}};
}

double copy_seconds(Bench& bench, std::byte* to, const std::byte* from, size_t bytes, cudaMemcpyKind kind) {
  return bench.seconds({[&] { LOWKEY_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, bench.stream)); }});
}

// A page of 64 tokens of the 8B shape at 4 bits, all heads of all layers: what a restore copies at once.
size_t page_slab_bytes(const BenchSizes& sizes) {
  PageSpec spec = PageSpec::embedded("q4", 4, 0);
  spec.page_tokens = 64;
  return PageLayout::make(spec, {sizes.of(32, 1), 8, 128, DType::kBf16}).value().slab_bytes[0];
}

// Median rate of slabs that lie anywhere on the device, one after the other in what has arrived, `batch`
// bytes at once; 0: it failed.
double restore_rate(Bench& bench, std::byte* device, std::byte* host, size_t bytes, size_t slab,
                    size_t batch) {
  std::vector<PageCopies::Piece> pieces;
  const size_t count = bytes / slab, together = std::max<size_t>(1, batch / slab);
  for (size_t i = 0; i < count; ++i) pieces.push_back({device + i * 7 % count * slab, host + i * slab, slab});
  std::vector<double> times;
  for (int i = 0; i < bench.sizes.of(7, 2); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    for (size_t at = 0; at < count; at += together) {
      const auto some = std::span(pieces).subspan(at, std::min(together, count - at));
      if (!bench.backend.page_copies()->upload(some).ok()) return 0;
    }
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::ranges::sort(times);
  return double(count * slab) / times[times.size() / 2];
}

// Host to device: one long copy from page-locked memory, and about as many bytes as restored slabs.
boost::json::object bench_restore(Bench& bench) {
  const size_t bytes = size_t{1} << bench.sizes.of(30, 18), slab = page_slab_bytes(bench.sizes);
  const auto device = bench.backend.allocate(bytes);
  PageCopies& copies = *bench.backend.page_copies();
  const auto host = copies.staging(bytes);
  if (host == nullptr) return {{"error", "no page-locked memory"}};
  std::memset(host->data(), 0x5a, bytes);
  const double up = copy_seconds(bench, device->data(), host->data(), bytes, cudaMemcpyHostToDevice);
  const double down = copy_seconds(bench, host->data(), device->data(), bytes, cudaMemcpyDeviceToHost);
  // The 8B shape's, whole and as ranks and levels cut it; all at once, and as a store's batches arrive.
  boost::json::array restores;
  for (const auto& [size, batch] : {std::pair(slab, bytes),
                                    {size_t{64} << 10, bytes},
                                    {size_t{16} << 10, bytes},
                                    {size_t{64} << 10, size_t{2} << 20}}) {
    const double rate = restore_rate(bench, device->data(), host->data(), bytes, size, batch);
    restores.push_back(boost::json::object{{"slab_bytes", size},
                                           {"batch_bytes", batch},
                                           {"bytes_per_second", rate},
                                           {"fraction_of_copy", rate * up / double(bytes)}});
  }
  return {{"bytes", bytes},
          {"host_to_device_bytes_per_second", double(bytes) / up},
          {"device_to_host_bytes_per_second", double(bytes) / down},
          {"restores", restores}};
}

boost::json::object run(BenchSizes sizes) {
  const auto backend = cuda::make_cuda_backend(0, DType::kBf16);
  if (!backend.ok()) return {{"error", backend.error().message}};
  Bench bench(sizes, *backend.value());
  boost::json::object results;
  const auto part = [&](const char* name, boost::json::value value) {
    std::fprintf(stderr, "%s: %s\n", name, boost::json::serialize(value).c_str());
    results[name] = std::move(value);
  };
  part("read", bench_read(bench));
  part("restore", bench_restore(bench));
  part("products", bench_products(bench));
  part("decode_attention", bench_decode_attention(bench));
  part("cache_write", bench_cache_write(bench));
  part("layers", bench_layers(bench));
  part("draws", bench_draws(bench));
  part("decode_step", bench_decode_step(bench));
  part("prefill_attention",
       bench_prefill_attention(bench, results["products"].at("operations_per_second").as_double()));
  return results;
}

}  // namespace
}  // namespace lowkey::testing

int main(int argc, char** argv) {
  lowkey::testing::BenchSizes sizes;
  std::string file;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tiny") == 0) {
      sizes.tiny = true;
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      file = argv[++i];
    } else {
      std::fprintf(stderr, "usage: cuda_bench [--tiny] [--json FILE]\n");
      return 2;
    }
  }
  const auto results = lowkey::testing::run(sizes);
  const std::string text = boost::json::serialize(results);
  if (!file.empty()) std::ofstream(file) << text << "\n";
  std::cout << text << std::endl;
  return results.contains("error") ? 77 : 0;
}
