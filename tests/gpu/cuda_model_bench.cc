// Layers of the 8B shape: products, one decoded token against the weights' bytes, a long prompt against the
// rate of products.
#include "tests/gpu/bench_layers.h"

namespace lowkey::testing {

using namespace kernels;

// Large products as the backend runs them, conversion of the input included.
boost::json::object bench_products(Bench& bench) {
  const int n = bench.sizes.of(8192, 64);
  const auto weight = random_bf16(size_t(n) * n);
  const auto packed = bench.backend.pack_linear(weight.data(), DType::kBf16, n, n, n);
  const auto x = bench.floats(size_t(n) * n, 8), y = bench.floats(size_t(n) * n, 9);
  const double seconds = bench.seconds({[&] {
    bench.backend.linear(*packed, {x->data(), n, n}, nullptr, false, {y->data(), n, n});
  }});
  return {{"rows", n}, {"seconds", seconds}, {"operations_per_second", 2.0 * n * n * n / seconds}};
}

// Layers without their attention (bench_decode_attention and bench_prefill_attention have that).
boost::json::object bench_layers(Bench& bench) {
  const LayerShape& shape = bench.sizes.tiny ? kTinyLayer : kFullLayer;
  const auto random = random_bf16(size_t(2) * shape.ffn * shape.hidden);
  const RopeTable rope = rope_of(shape);
  std::vector<std::unique_ptr<Layer>> layers;
  const int count = bench.sizes.of(8, 1);  // 3.5 GB: none stays in the caches until its next turn
  for (int i = 0; i < count; ++i) layers.push_back(std::make_unique<Layer>(bench, shape, random));
  boost::json::object result;
  for (const int rows : {1, 64, bench.sizes.of(8192, 16)}) {
    const Layer::Activations activations(bench, shape, rows);
    std::vector<int32_t> positions(rows);
    for (int i = 0; i < rows; ++i) positions[i] = i;
    std::vector<std::function<void()>> works;
    for (const auto& layer : layers)
      works.push_back(
          [&, each = layer.get()] { each->run(bench.backend, activations, rope, positions, [] {}); });
    const double seconds = bench.seconds(works), bytes = 2 * shape.weights();
    result[std::to_string(rows) + "_rows"] =
        boost::json::object{{"seconds_per_layer", seconds},
                            {"weight_bytes", bytes},
                            {"fraction_of_read_bandwidth", bytes / seconds / bench.read_bytes_per_second},
                            {"operations_per_second", 2 * shape.weights() * rows / seconds}};
  }
  return result;
}

}  // namespace lowkey::testing
