// Chains of operations that backends may fuse: the same bits as the operations one after the other on the
// same backend, and what the reference has.
#include <cmath>

#include "tests/parity/backends.h"

namespace lowkey::kernels::test {
namespace {

class Fused : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    backend = GetParam().make();
    if (backend == nullptr) GTEST_SKIP() << no_device();
    reference = make_reference_backend(GetParam().dtype);
  }

  // Results of body(backend, whether by the chain).
  template <class Body>
  void compare(const std::string& what, const Body& body) {
    const std::vector<float> fused = body(*backend, false);
    EXPECT_EQ(fused, body(*backend, true)) << what;
    // bf16: a value on the edge between two of them may be rounded to either before the next product.
    const double tolerance = GetParam().dtype == DType::kF32 ? 2e-5 : 0.03;
    expect_close(fused, body(*reference, true), tolerance, tolerance, what);
  }
  // A vector in the backend's memory, or none.
  static std::unique_ptr<GuardedTensor> vector(Backend& device, const std::vector<float>& values) {
    if (values.empty()) return nullptr;
    return std::make_unique<GuardedTensor>(device, 1, static_cast<int>(values.size()), values);
  }
  static const float* floats(const std::unique_ptr<GuardedTensor>& vector) {
    return vector ? Tensor(*vector).as<float>() : nullptr;
  }

  std::unique_ptr<Backend> backend, reference;
};

struct MlpCase {
  int rows, in, ffn, out;
  bool bias, accumulate;
  Activation activation;
};

TEST_P(Fused, MlpEqualsItsChain) {
  uint32_t seed = 700;
  for (const MlpCase& c : {MlpCase{1, 64, 96, 64, false, true, Activation::kSilu},
                           MlpCase{1, 43, 51, 20, true, false, Activation::kGeluTanh},
                           MlpCase{2, 43, 64, 100, true, true, Activation::kGeluTanh},
                           MlpCase{2, 600, 40, 24, false, false, Activation::kSilu},
                           MlpCase{3, 64, 51, 64, true, true, Activation::kSilu},
                           MlpCase{9, 43, 40, 33, true, false, Activation::kGeluTanh}}) {
    const auto x = normal_values(size_t(c.rows) * c.in, seed++), norm = normal_values(c.in, seed++);
    const auto w1 = normal_values(size_t(2) * c.ffn * c.in, seed++, 1 / std::sqrt(float(c.in)));
    const auto w2 = normal_values(size_t(c.out) * c.ffn, seed++, 1 / std::sqrt(float(c.ffn)));
    const auto b1 = c.bias ? normal_values(2 * c.ffn, seed++) : std::vector<float>();
    const auto b2 = c.bias ? normal_values(c.out, seed++) : std::vector<float>();
    const auto before = normal_values(size_t(c.rows) * c.out, seed++);
    compare(std::to_string(c.rows) + " rows of " + std::to_string(c.in), [&](Backend& device, bool chain) {
      const auto gate_up = device.pack_linear(w1.data(), DType::kF32, 2 * c.ffn, c.in, c.in);
      const auto down = device.pack_linear(w2.data(), DType::kF32, c.out, c.ffn, c.ffn);
      const auto norms = vector(device, norm), bias1 = vector(device, b1), bias2 = vector(device, b2);
      const GuardedTensor in(device, c.rows, c.in, x), normed(device, c.rows, c.in);
      const GuardedTensor both(device, c.rows, 2 * c.ffn), hidden(device, c.rows, c.ffn);
      const GuardedTensor out(device, c.rows, c.out, before);
      const MlpStep step{.norm = floats(norms),
                         .epsilon = 1e-5f,
                         .gate_up = gate_up.get(),
                         .gate_up_bias = floats(bias1),
                         .activation = c.activation,
                         .down = down.get(),
                         .down_bias = floats(bias2),
                         .accumulate = c.accumulate,
                         .x = in,
                         .normed = normed,
                         .both = both,
                         .hidden = hidden,
                         .y = out};
      chain ? device.Backend::gated_mlp(step) : device.gated_mlp(step);
      return out.values();
    });
  }
}

// The residual stream is both what an MLP reads and what it adds to.
TEST_P(Fused, MlpAddsToItsInput) {
  const int rows = 2, in = 64, ffn = 48;
  const auto x = normal_values(size_t(rows) * in, 1), norm = normal_values(in, 2);
  const auto w1 = normal_values(size_t(2) * ffn * in, 3, 0.1f), w2 = normal_values(size_t(in) * ffn, 4, 0.1f);
  compare("in place", [&](Backend& device, bool chain) {
    const auto gate_up = device.pack_linear(w1.data(), DType::kF32, 2 * ffn, in, in);
    const auto down = device.pack_linear(w2.data(), DType::kF32, in, ffn, ffn);
    const auto norms = vector(device, norm);
    const GuardedTensor residual(device, rows, in, x), normed(device, rows, in);
    const GuardedTensor both(device, rows, 2 * ffn), hidden(device, rows, ffn);
    const MlpStep step{.norm = floats(norms),
                       .epsilon = 1e-5f,
                       .gate_up = gate_up.get(),
                       .down = down.get(),
                       .accumulate = true,
                       .x = residual,
                       .normed = normed,
                       .both = both,
                       .hidden = hidden,
                       .y = residual};
    chain ? device.Backend::gated_mlp(step) : device.gated_mlp(step);
    return residual.values();
  });
}

struct HeadsCase {
  int rows, in, q_heads, kv_heads, dim, rotated;
  bool bias, norms, in_place;
  int unwanted = 0;  // leading rows
};

TEST_P(Fused, HeadsEqualTheirChain) {
  uint32_t seed = 800;
  for (const HeadsCase& c :
       {HeadsCase{1, 64, 4, 2, 16, 16, false, false, false}, HeadsCase{1, 43, 3, 1, 40, 40, true, true, true},
        HeadsCase{1, 64, 2, 2, 64, 64, false, false, true}, HeadsCase{2, 43, 3, 1, 20, 10, true, true, false},
        HeadsCase{2, 64, 9, 3, 64, 64, false, true, false}, HeadsCase{5, 100, 4, 4, 8, 8, true, false, false},
        HeadsCase{70, 24, 2, 1, 48, 24, true, true, false},
        HeadsCase{300, 64, 4, 2, 32, 32, false, true, false, 290},
        HeadsCase{140, 43, 3, 1, 20, 20, true, false, false, 140}}) {
    const int q_cols = c.q_heads * c.dim, kv_cols = c.kv_heads * c.dim, outs = q_cols + 2 * kv_cols;
    const auto x = normal_values(size_t(c.rows) * c.in, seed++), norm = normal_values(c.in, seed++);
    const auto w = normal_values(size_t(outs) * c.in, seed++, 1 / std::sqrt(float(c.in)));
    const auto bias = c.bias ? normal_values(outs, seed++) : std::vector<float>();
    const auto q_norm = c.norms ? normal_values(c.dim, seed++) : std::vector<float>();
    const auto k_norm = c.norms ? normal_values(c.dim, seed++) : std::vector<float>();
    RopeTable table{.head_dim = c.dim, .inv_freq = {}};
    for (int i = 0; i < c.rotated / 2; ++i)
      table.inv_freq.push_back(std::pow(10000.0f, -2.0f * i / c.rotated));
    std::vector<int32_t> positions;
    for (int i = 0; i < c.rows; ++i) positions.push_back(3 * i + 1);
    const SequenceSlice slice{.num_rows = c.rows, .unwanted_rows = c.unwanted};
    compare(std::to_string(c.rows) + " rows of " + std::to_string(c.in), [&](Backend& device, bool chain) {
      const auto weight = device.pack_linear(w.data(), DType::kF32, outs, c.in, c.in);
      const auto norms = vector(device, norm), biases = vector(device, bias);
      const auto q_norms = vector(device, q_norm), k_norms = vector(device, k_norm);
      const GuardedTensor in(device, c.rows, c.in, x), normed(device, c.rows, c.in);
      const GuardedTensor qkv(device, c.rows, outs), split(device, c.rows, outs);
      float* place = Tensor(c.in_place ? qkv : split).as<float>();
      const auto part = [&](int cols) {
        const Tensor tensor{.data = place, .rows = c.rows, .cols = cols};
        place += size_t(c.rows) * cols;
        return tensor;
      };
      const Tensor q = part(q_cols), k = part(kv_cols), v = part(kv_cols);
      const HeadsStep step{.norm = floats(norms),
                           .epsilon = 1e-5f,
                           .weight = weight.get(),
                           .bias = floats(biases),
                           .q_norm = floats(q_norms),
                           .k_norm = floats(k_norms),
                           .rope = &table,
                           .positions = positions,
                           .sequences = {&slice, 1},
                           .x = in,
                           .normed = normed,
                           .qkv = qkv,
                           .q = q,
                           .k = k,
                           .v = v};
      chain ? device.Backend::project_heads(step) : device.project_heads(step);
      std::vector<float> values = (c.in_place ? qkv : split).values();
      std::fill_n(values.begin(), size_t(c.unwanted) * q_cols, 0.0f);
      return values;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Fused, testing::ValuesIn(parity_backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::kernels::test
