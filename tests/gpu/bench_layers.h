// Layers of the 8B shape with random weights, for the benchmarks of whole layers and steps.
#pragma once

#include "tests/gpu/bench_support.h"

namespace lowkey::testing {

// Llama-3.1-8B; a tenth of it when tiny.
struct LayerShape {
  int hidden, ffn, heads, kv_heads, dim;
  double weights() const { return double(hidden) * ((heads + 2 * kv_heads) * dim + heads * dim + 3.0 * ffn); }
};
inline constexpr LayerShape kFullLayer{4096, 14336, 32, 8, 128}, kTinyLayer{64, 128, 2, 1, 64};

class Layer {
 public:
  Layer(Bench& bench, const LayerShape& shape, const std::vector<uint16_t>& random) : shape_(shape) {
    const auto pack = [&](int out, int in) {
      return bench.backend.pack_linear(random.data(), kernels::DType::kBf16, out, in, in);
    };
    qkv_ = pack((shape.heads + 2 * shape.kv_heads) * shape.dim, shape.hidden);
    out_ = pack(shape.hidden, shape.heads * shape.dim);
    gate_up_ = pack(2 * shape.ffn, shape.hidden);
    down_ = pack(shape.hidden, shape.ffn);
    norm_ = bench.floats(shape.hidden, 5);
  }

  struct Activations {
    Activations(Bench& bench, const LayerShape& s, int rows) : rows(rows) {
      const auto make = [&](int cols) { return bench.floats(size_t(rows) * cols, 6); };
      hidden = make(s.hidden);
      normed = make(s.hidden);
      qkv = make((s.heads + 2 * s.kv_heads) * s.dim);
      q = make(s.heads * s.dim);
      k = make(s.kv_heads * s.dim);
      v = make(s.kv_heads * s.dim);
      attended = make(s.heads * s.dim);
      gate_up = make(2 * s.ffn);
      mlp = make(s.ffn);
    }
    kernels::Tensor of(const std::unique_ptr<kernels::Buffer>& buffer) const {
      return {buffer->data(), rows, static_cast<int>(buffer->size() / sizeof(float)) / rows};
    }
    int rows;
    std::unique_ptr<kernels::Buffer> hidden, normed, qkv, q, k, v, attended, gate_up, mlp;
  };

  // The whole layer; `attend` between the products.
  void run(kernels::Backend& b, const Activations& a, const kernels::RopeTable& rope,
           std::span<const int32_t> positions, const std::function<void()>& attend) const {
    const auto* norm = reinterpret_cast<const float*>(norm_->data());
    b.project_heads({.norm = norm,
                     .epsilon = 1e-5f,
                     .weight = qkv_.get(),
                     .rope = &rope,
                     .positions = positions,
                     .x = a.of(a.hidden),
                     .normed = a.of(a.normed),
                     .qkv = a.of(a.qkv),
                     .q = a.of(a.q),
                     .k = a.of(a.k),
                     .v = a.of(a.v)});
    attend();
    b.linear(*out_, a.of(a.attended), nullptr, true, a.of(a.hidden));
    b.gated_mlp({.norm = norm,
                 .epsilon = 1e-5f,
                 .gate_up = gate_up_.get(),
                 .down = down_.get(),
                 .accumulate = true,
                 .x = a.of(a.hidden),
                 .normed = a.of(a.normed),
                 .both = a.of(a.gate_up),
                 .hidden = a.of(a.mlp),
                 .y = a.of(a.hidden)});
  }

 private:
  const LayerShape& shape_;
  std::unique_ptr<kernels::Linear> qkv_, out_, gate_up_, down_;
  std::unique_ptr<kernels::Buffer> norm_;
};

inline std::vector<uint16_t> random_bf16(size_t count) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<uint16_t> some(1 << 20), all(count);
  for (uint16_t& x : some) x = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16);
  for (size_t i = 0; i < count; ++i) all[i] = some[i % some.size()];
  return all;
}

inline kernels::RopeTable rope_of(const LayerShape& shape) {
  kernels::RopeTable table{.head_dim = shape.dim};
  for (int i = 0; i < shape.dim / 2; ++i)
    table.inv_freq.push_back(static_cast<float>(std::pow(500000.0, -2.0 * i / shape.dim)));
  return table;
}

}  // namespace lowkey::testing
