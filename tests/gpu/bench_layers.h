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
    b.rms_norm(a.of(a.hidden), norm, 1e-5f, a.of(a.normed));
    b.linear(*qkv_, a.of(a.normed), nullptr, false, a.of(a.qkv));
    b.copy_columns(a.of(a.qkv), 0, a.of(a.q));
    b.copy_columns(a.of(a.qkv), shape_.heads * shape_.dim, a.of(a.k));
    b.copy_columns(a.of(a.qkv), (shape_.heads + shape_.kv_heads) * shape_.dim, a.of(a.v));
    b.rope(rope, positions, a.of(a.q));
    b.rope(rope, positions, a.of(a.k));
    attend();
    b.linear(*out_, a.of(a.attended), nullptr, true, a.of(a.hidden));
    b.rms_norm(a.of(a.hidden), norm, 1e-5f, a.of(a.normed));
    b.linear(*gate_up_, a.of(a.normed), nullptr, false, a.of(a.gate_up));
    b.gated(kernels::Activation::kSilu, a.of(a.gate_up), a.of(a.mlp));
    b.linear(*down_, a.of(a.mlp), nullptr, true, a.of(a.hidden));
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
