// What the device benchmarks share: times by replayed graphs, random data, results as JSON.
#pragma once

#include <algorithm>
#include <boost/json.hpp>
#include <functional>
#include <random>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/stream.h"

namespace lowkey::testing {

// Sizes: of the targets, or tiny ones that only show that everything runs.
struct BenchSizes {
  bool tiny = false;
  int of(int full, int small) const { return tiny ? small : full; }
};

class Bench {
 public:
  Bench(BenchSizes sizes, kernels::Backend& backend)
      : sizes(sizes), backend(backend), stream(static_cast<cudaStream_t>(backend.native_stream())) {}

  // Median seconds of one of `works`, which are run in turn (each on other data, so that caches do not serve
  // it), each captured into a graph once.
  double seconds(const std::vector<std::function<void()>>& works) {
    std::vector<kernels::cuda::UniqueHandle<cudaGraphExec_t>> graphs;
    for (const auto& work : works) {
      work();  // scratch memory, tables and arguments are there when it is captured
      work();
      backend.synchronize();
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t executable = nullptr;
      LOWKEY_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      work();
      LOWKEY_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
      LOWKEY_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
      LOWKEY_CUDA_CHECK(cudaGraphDestroy(graph));
      graphs.emplace_back(executable);
    }
    const auto begin = kernels::cuda::Event::create(cudaEventDefault).value();
    const auto end = kernels::cuda::Event::create(cudaEventDefault).value();
    std::vector<double> times;
    const int rounds = sizes.of(std::max<int>(20, 3 * static_cast<int>(graphs.size())), 2);
    for (int i = 0; i < rounds; ++i) {
      begin.record(stream);
      LOWKEY_CUDA_CHECK(cudaGraphLaunch(graphs[i % graphs.size()].get(), stream));
      end.record(stream);
      LOWKEY_CUDA_CHECK(cudaEventSynchronize(end.get()));
      float milliseconds = 0;
      LOWKEY_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
      if (i >= rounds / 5) times.push_back(milliseconds * 1e-3);  // the first ones warm up
    }
    std::ranges::nth_element(times, times.begin() + static_cast<ptrdiff_t>(times.size() / 2));
    return times[times.size() / 2];
  }

  std::unique_ptr<kernels::Buffer> floats(size_t count, uint32_t seed, float scale = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> some(std::min<size_t>(count, 1 << 20)), all(count);
    for (float& x : some) x = normal(random);
    for (size_t i = 0; i < count; ++i) all[i] = some[i % some.size()];
    auto buffer = backend.allocate(count * sizeof(float));
    backend.upload(std::as_bytes(std::span(all)), buffer->data());
    return buffer;
  }

  const BenchSizes sizes;
  kernels::Backend& backend;
  const cudaStream_t stream;
  double read_bytes_per_second = 0;  // measured first; what fractions are of
};

// cuda_attention_bench.cc, cuda_model_bench.cc and cuda_step_bench.cc.
boost::json::array bench_decode_attention(Bench& bench);
boost::json::object bench_cache_write(Bench& bench);
boost::json::array bench_prefill_attention(Bench& bench, double products_per_second);
boost::json::array bench_draws(Bench& bench);
boost::json::object bench_layers(Bench& bench);
boost::json::object bench_decode_step(Bench& bench);
boost::json::object bench_products(Bench& bench);

}  // namespace lowkey::testing
