// Every operation of every backend against the plain reference, over sizes that do and do not fill vectors.
#include <cstring>

#include "kernels/page/dtype.h"
#include "tests/unit/kernels/support.h"

namespace lowkey::kernels {
namespace {

using test::expect_close;
using test::GuardedTensor;
using test::normal_values;

class Parity : public testing::TestWithParam<test::BackendCase> {
 protected:
  test::SimdTarget target{GetParam().simd_target};
  std::unique_ptr<Backend> backend = GetParam().make();
  std::unique_ptr<Backend> reference = make_reference_backend(GetParam().dtype);

  // Runs `body(backend, in, out)` on both and compares.
  template <class Body>
  void compare(const std::string& what, int rows, int in_cols, int out_cols, const std::vector<float>& input,
               const std::vector<float>& output, double relative, double absolute, Body body) {
    std::vector<float> results[2];
    for (int i = 0; i < 2; ++i) {
      Backend& device = i == 0 ? *backend : *reference;
      GuardedTensor in(device, rows, in_cols, input);
      auto out = output.empty() ? std::make_unique<GuardedTensor>(device, rows, out_cols)
                                : std::make_unique<GuardedTensor>(device, rows, out_cols, output);
      body(device, in, *out);
      results[i] = out->values();
    }
    expect_close(results[0], results[1], relative, absolute, what);
  }
};

struct LinearShape {
  int rows, in, out;
};

TEST_P(Parity, Linear) {
  uint32_t seed = 1;
  for (LinearShape s : {LinearShape{1, 64, 64}, LinearShape{2, 8, 24}, LinearShape{3, 43, 64},
                        LinearShape{4, 172, 20}, LinearShape{5, 576, 192}, LinearShape{16, 576, 1536},
                        LinearShape{17, 64, 512}, LinearShape{33, 1536, 576}, LinearShape{70, 100, 1000},
                        LinearShape{530, 64, 96}, LinearShape{1, 2048, 3}, LinearShape{7, 1, 1}}) {
    for (int variant = 0; variant < 4; ++variant) {
      const bool has_bias = variant & 1, accumulate = variant & 2;
      const auto x = normal_values(static_cast<size_t>(s.rows) * s.in, seed++);
      const auto w = normal_values(static_cast<size_t>(s.out) * s.in, seed++);
      const auto bias = normal_values(s.out, seed++);
      const auto before =
          accumulate ? normal_values(static_cast<size_t>(s.rows) * s.out, seed++) : std::vector<float>();
      compare(testing::PrintToString(std::array{s.rows, s.in, s.out, variant}), s.rows, s.in, s.out, x,
              before, test::kSumTolerance, test::kSumTolerance * (s.in + 10),
              [&](Backend& device, Tensor in, Tensor out) {
                const auto packed = device.pack_linear(w.data(), DType::kF32, s.out, s.in, s.in);
                EXPECT_EQ(packed->in_features(), s.in);
                EXPECT_EQ(packed->out_features(), s.out);
                EXPECT_GT(packed->packed_bytes(), 0u);
                device.linear(*packed, in, has_bias ? bias.data() : nullptr, accumulate, out);
              });
    }
  }
}

// Weights come in any dtype, and as columns of a wider matrix.
TEST_P(Parity, LinearPacksEveryDtypeAndStride) {
  const int rows = 3, in = 48, out = 80, stride = 61;
  const auto values = normal_values(static_cast<size_t>(out) * stride, 2);
  const auto x = normal_values(static_cast<size_t>(rows) * in, 3);
  for (DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    std::vector<std::byte> weight(values.size() * dtype_bytes(dtype));
    for (size_t i = 0; i < values.size(); ++i) store_element(weight.data(), dtype, i, values[i]);
    compare(to_string(dtype), rows, in, out, x, {}, test::kSumTolerance, test::kSumTolerance * in,
            [&](Backend& device, Tensor a, Tensor b) {
              device.linear(*device.pack_linear(weight.data(), dtype, out, in, stride), a, nullptr, false, b);
            });
  }
}

// Fused or not: the same bits, so that neither devices nor test doubles that lack a fused form differ. In
// pairs of bf16 the gate is computed to what rounding it leaves.
TEST_P(Parity, FusedMlpEqualsItsChain) {
  uint32_t seed = 300;
  struct Case {
    int rows, in, ffn, out;
    bool bias, accumulate;
    Activation activation;
  };
  for (const Case& c : {Case{1, 64, 96, 64, false, true, Activation::kSilu},
                        Case{2, 43, 64, 100, true, false, Activation::kGeluTanh},
                        Case{17, 576, 1536, 576, false, true, Activation::kSilu},
                        Case{33, 64, 80, 64, true, true, Activation::kSilu},  // no whole panels
                        Case{131, 576, 192, 576, true, false, Activation::kGeluTanh},
                        Case{407, 129, 64, 33, false, false, Activation::kSilu}}) {
    const auto x = normal_values(size_t(c.rows) * c.in, seed++), norm = normal_values(c.in, seed++);
    const auto w1 = normal_values(size_t(2) * c.ffn * c.in, seed++), b1 = normal_values(2 * c.ffn, seed++);
    const auto w2 = normal_values(size_t(c.out) * c.ffn, seed++), b2 = normal_values(c.out, seed++);
    const auto before = normal_values(size_t(c.rows) * c.out, seed++);
    const auto gate_up = backend->pack_linear(w1.data(), DType::kF32, 2 * c.ffn, c.in, c.in);
    const auto down = backend->pack_linear(w2.data(), DType::kF32, c.out, c.ffn, c.ffn);
    std::vector<float> results[2];
    for (int i = 0; i < 2; ++i) {
      const GuardedTensor in(*backend, c.rows, c.in, x), normed(*backend, c.rows, c.in);
      const GuardedTensor both(*backend, c.rows, 2 * c.ffn), hidden(*backend, c.rows, c.ffn);
      const GuardedTensor out(*backend, c.rows, c.out, before);
      const MlpStep step{.norm = norm.data(),
                         .epsilon = 1e-5f,
                         .gate_up = gate_up.get(),
                         .gate_up_bias = c.bias ? b1.data() : nullptr,
                         .activation = c.activation,
                         .down = down.get(),
                         .down_bias = c.bias ? b2.data() : nullptr,
                         .accumulate = c.accumulate,
                         .x = in,
                         .normed = normed,
                         .both = both,
                         .hidden = hidden,
                         .y = out};
      i == 0 ? backend->gated_mlp(step) : backend->Backend::gated_mlp(step);
      results[i] = out.values();
    }
    if (GetParam().in_pairs) {
      EXPECT_GT(test::decibel(results[0], results[1]), 55) << c.rows << " rows of " << c.in;
    } else {
      EXPECT_EQ(results[0], results[1]) << c.rows << " rows of " << c.in;
    }
  }
}

TEST_P(Parity, FusedHeadsEqualTheirChain) {
  uint32_t seed = 400;
  struct Case {
    int rows, in, q_heads, kv_heads, dim, rotated;
    bool bias, norms;
  };
  for (const Case& c : {Case{1, 64, 4, 2, 16, 16, false, false}, Case{2, 43, 3, 1, 20, 10, true, true},
                        Case{16, 576, 9, 3, 64, 64, false, false}, Case{70, 100, 4, 4, 8, 8, true, false},
                        Case{131, 576, 9, 3, 64, 64, false, true}, Case{401, 64, 2, 1, 48, 24, true, true}}) {
    const int q_cols = c.q_heads * c.dim, kv_cols = c.kv_heads * c.dim, outs = q_cols + 2 * kv_cols;
    const auto x = normal_values(size_t(c.rows) * c.in, seed++), norm = normal_values(c.in, seed++);
    const auto w = normal_values(size_t(outs) * c.in, seed++), bias = normal_values(outs, seed++);
    const auto q_norm = normal_values(c.dim, seed++), k_norm = normal_values(c.dim, seed++);
    const auto weight = backend->pack_linear(w.data(), DType::kF32, outs, c.in, c.in);
    RopeTable table{.head_dim = c.dim, .inv_freq = {}};
    for (int i = 0; i < c.rotated / 2; ++i)
      table.inv_freq.push_back(std::pow(10000.0f, -2.0f * i / c.rotated));
    std::vector<int32_t> positions;
    for (int i = 0; i < c.rows; ++i) positions.push_back(3 * i + 1);
    std::vector<float> results[2];
    for (int i = 0; i < 2; ++i) {
      const GuardedTensor in(*backend, c.rows, c.in, x), normed(*backend, c.rows, c.in);
      const GuardedTensor qkv(*backend, c.rows, outs), q(*backend, c.rows, q_cols);
      const GuardedTensor k(*backend, c.rows, kv_cols), v(*backend, c.rows, kv_cols);
      const HeadsStep step{.norm = norm.data(),
                           .epsilon = 1e-5f,
                           .weight = weight.get(),
                           .bias = c.bias ? bias.data() : nullptr,
                           .q_norm = c.norms ? q_norm.data() : nullptr,
                           .k_norm = c.norms ? k_norm.data() : nullptr,
                           .rope = &table,
                           .positions = positions,
                           .x = in,
                           .normed = normed,
                           .qkv = qkv,
                           .q = q,
                           .k = k,
                           .v = v};
      i == 0 ? backend->project_heads(step) : backend->Backend::project_heads(step);
      for (const GuardedTensor* part : {&q, &k, &v}) {
        const auto values = part->values();
        results[i].insert(results[i].end(), values.begin(), values.end());
      }
    }
    EXPECT_EQ(results[0], results[1]) << c.rows << " rows of " << c.in;
  }
}

// Tokens may not depend on batch or chunk size: a row of a product is the same bits whatever M is.
TEST_P(Parity, LinearRowsDoNotDependOnTheNumberOfRows) {
  uint32_t seed = 50;
  for (LinearShape s : {LinearShape{0, 64, 192}, LinearShape{0, 43, 64}, LinearShape{0, 576, 1536},
                        LinearShape{0, 1536, 576}, LinearShape{0, 576, 5000}, LinearShape{0, 2048, 512}}) {
    constexpr int kRows = 600;
    const auto x = normal_values(static_cast<size_t>(kRows) * s.in, seed++);
    const auto w = normal_values(static_cast<size_t>(s.out) * s.in, seed++);
    const auto bias = normal_values(s.out, seed++);
    const auto packed = backend->pack_linear(w.data(), DType::kF32, s.out, s.in, s.in);
    auto run = [&](int first, int rows, bool accumulate) {
      const std::vector<float> part(x.begin() + static_cast<size_t>(first) * s.in,
                                    x.begin() + static_cast<size_t>(first + rows) * s.in);
      GuardedTensor in(*backend, rows, s.in, part);
      GuardedTensor out(*backend, rows, s.out, std::vector<float>(static_cast<size_t>(rows) * s.out, 0.125f));
      backend->linear(*packed, in, bias.data(), accumulate, out);
      return out.values();
    };
    for (bool accumulate : {false, true}) {
      const auto whole = run(0, kRows, accumulate);
      for (int rows : {1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 512}) {
        const int first = kRows - rows;
        const auto part = run(first, rows, accumulate);
        ASSERT_EQ(
            std::memcmp(part.data(), whole.data() + static_cast<size_t>(first) * s.out, part.size() * 4), 0)
            << "K " << s.in << " N " << s.out << " M " << rows << " accumulate " << accumulate;
      }
    }
  }
}

TEST_P(Parity, EmbedGathersRowsAndZerosThoseOfOtherRanks) {
  for (int cols : {8, 64, 576}) {
    const int vocabulary = 300, first_row = 100;
    const auto table = normal_values(static_cast<size_t>(vocabulary) * cols, 4);
    const std::vector<int32_t> ids = {100, 399, 99, 400, 0, 163, 164, 227, 100};
    std::vector<float> results[2];
    for (int i = 0; i < 2; ++i) {
      Backend& device = i == 0 ? *backend : *reference;
      const auto embedding = device.pack_embedding(table.data(), DType::kF32, vocabulary, cols, cols);
      GuardedTensor out(device, static_cast<int>(ids.size()), cols);
      device.embed(*embedding, ids, first_row, cols == 64 ? 8.0f : 1.0f, out);
      results[i] = out.values();
    }
    expect_close(results[0], results[1], 0, 0, "embed");
    EXPECT_EQ(results[0][2 * cols], 0.0f);
  }
}

TEST_P(Parity, TiedHeadIsTheEmbedding) {
  const int vocabulary = 1000, cols = 64;
  const auto table = normal_values(static_cast<size_t>(vocabulary) * cols, 5);
  compare("tied head", 3, cols, vocabulary, normal_values(3 * cols, 6), {}, test::kSumTolerance,
          test::kSumTolerance * cols, [&](Backend& device, Tensor in, Tensor out) {
            device.linear(*device.pack_embedding(table.data(), DType::kF32, vocabulary, cols, cols), in,
                          nullptr, false, out);
          });
}

TEST_P(Parity, RmsNorm) {
  for (int cols : {1, 8, 20, 64, 576, 2049}) {
    for (int rows : {1, 5, 64}) {
      const auto weight = normal_values(cols, 7);
      const auto x = normal_values(static_cast<size_t>(rows) * cols, 8, 3.0f);
      auto body = [&](Backend& device, Tensor in, Tensor out) {
        device.rms_norm(in, weight.data(), 1e-5f, out);
      };
      compare("rms_norm", rows, cols, cols, x, {}, test::kFunctionTolerance, 1e-7, body);
      auto in_place = [&](Backend& device, Tensor, Tensor out) {
        device.rms_norm(out, weight.data(), 1e-5f, out);
      };
      compare("rms_norm in place", rows, cols, cols, x, x, test::kFunctionTolerance, 1e-7, in_place);
    }
  }
}

TEST_P(Parity, Rope) {
  for (int head_dim : {4, 8, 20, 64, 128}) {
    RopeTable table{.head_dim = head_dim, .attention_factor = 1.25f};
    for (int i = 0; i < head_dim / 2; ++i) {
      table.inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / head_dim)));
    }
    for (int rows : {1, 3, 70}) {
      std::vector<int32_t> positions(rows);
      for (int i = 0; i < rows; ++i) positions[i] = i * 97 % 8000;
      const auto x = normal_values(static_cast<size_t>(rows) * 3 * head_dim, 9);
      compare("rope", rows, 1, 3 * head_dim, std::vector<float>(rows), x, test::kFunctionTolerance, 4e-6,
              [&](Backend& device, Tensor, Tensor out) { device.rope(table, positions, out); });
    }
  }
}

// The same row at the same position rotates to the same bits in any batch, also after other positions were
// cached.
TEST_P(Parity, RopeRowsDoNotDependOnTheBatch) {
  const RopeTable table{.head_dim = 8, .inv_freq = {1.0f, 0.1f, 0.01f, 0.001f}};
  const auto x = normal_values(50 * 16, 10);
  std::vector<int32_t> positions(50);
  for (int i = 0; i < 50; ++i) positions[i] = 1000 + 13 * i;
  GuardedTensor whole(*backend, 50, 16, x);
  backend->rope(table, positions, whole);
  for (int i : {49, 0, 7}) {
    GuardedTensor one(*backend, 1, 16, {x.begin() + i * 16, x.begin() + (i + 1) * 16});
    backend->rope(table, std::span(positions).subspan(i, 1), one);
    EXPECT_EQ(std::memcmp(one.values().data(), whole.values().data() + i * 16, 64), 0) << i;
  }
  const RopeTable other{.head_dim = 8, .inv_freq = {1.0f, 0.5f, 0.25f, 0.125f}};
  GuardedTensor a(*backend, 50, 16, x);
  backend->rope(other, positions, a);
  EXPECT_NE(a.values(), whole.values()) << "another table is not the cached one";
}

// A table of fewer frequencies turns the front of every head and leaves the rest.
TEST_P(Parity, RopeOfAPartOfTheHead) {
  const RopeTable table{.head_dim = 20, .inv_freq = {1.0f, 0.4f, 0.1f, 0.02f, 0.01f, 0.003f}};
  const std::vector<int32_t> positions = {0, 3, 977};
  const auto x = normal_values(3 * 40, 14);
  compare("rope", 3, 1, 40, std::vector<float>(3), x, test::kFunctionTolerance, 4e-6,
          [&](Backend& device, Tensor, Tensor out) { device.rope(table, positions, out); });
  GuardedTensor out(*backend, 3, 40, x);
  backend->rope(table, positions, out);
  const auto y = out.values();
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_EQ(y[i] == x[i], i < 40 || i % 20 >= 12) << i;  // position 0 turns nothing
}

// Models with local and global layers ask for two tables in turn.
TEST_P(Parity, RopeTablesInTurn) {
  const RopeTable tables[] = {{.head_dim = 4, .inv_freq = {1.0f, 0.1f}},
                              {.head_dim = 4, .inv_freq = {0.5f, 0.01f}},
                              {.head_dim = 4, .inv_freq = {0.25f, 0.001f}}};
  const auto x = normal_values(2 * 8, 15);
  for (const std::vector<int32_t>& positions : {std::vector{4, 9}, {5, 10}}) {
    for (const int table : {0, 1, 0, 1, 2, 0, 1}) {
      compare(std::to_string(table), 2, 1, 8, std::vector<float>(2), x, test::kFunctionTolerance, 4e-6,
              [&](Backend& device, Tensor, Tensor out) { device.rope(tables[table], positions, out); });
    }
  }
}

TEST_P(Parity, GatedActivations) {
  for (int cols : {1, 20, 172, 1536}) {
    for (int rows : {1, 4, 40}) {
      auto x = normal_values(static_cast<size_t>(rows) * 2 * cols, 11, 4.0f);
      x[0] = -200.0f;
      if (cols > 1) x[1] = 200.0f;
      // The exponent of GELU grows with the cube: its rounding counts where the tail is nearly 0.
      for (const auto& [activation, relative, absolute] :
           {std::tuple(Activation::kSilu, test::kFunctionTolerance, 1e-7),
            std::tuple(Activation::kGeluTanh, 1e-5, 1e-6)}) {
        compare("gated", rows, 2 * cols, cols, x, {}, relative, absolute,
                [&](Backend& device, Tensor in, Tensor out) { device.gated(activation, in, out); });
      }
    }
  }
}

TEST_P(Parity, SoftCap) {
  for (int cols : {1, 20, 1536}) {
    auto x = normal_values(static_cast<size_t>(4) * cols, 16, 20.0f);
    x[0] = -1e30f;
    x[1] = 1e30f;
    x[2] = 0.0f;
    compare("soft_cap", 4, 1, cols, std::vector<float>(4), x, test::kFunctionTolerance, 1e-5,
            [&](Backend& device, Tensor, Tensor out) { device.soft_cap(30.0f, out); });
  }
}

TEST_P(Parity, AddAndGatherAreExact) {
  for (int cols : {3, 64, 577}) {
    for (int rows : {1, 90}) {
      const auto x = normal_values(static_cast<size_t>(rows) * cols, 12);
      const auto y = normal_values(static_cast<size_t>(rows) * cols, 13);
      compare("add", rows, cols, cols, x, y, 0, 0,
              [&](Backend& device, Tensor in, Tensor out) { device.add(in, out); });
      std::vector<int32_t> picked(rows);
      for (int i = 0; i < rows; ++i) picked[i] = i * 31 % rows;
      compare("gather", rows, cols, cols, x, {}, 0, 0,
              [&](Backend& device, Tensor in, Tensor out) { device.gather_rows(in, picked, out); });
    }
  }
}

TEST_P(Parity, ColumnsAreCopied) {
  for (int cols : {3, 64, 577}) {
    for (int rows : {1, 90}) {
      const auto x = normal_values(static_cast<size_t>(rows) * cols, 14);
      for (int first : {0, cols / 3}) {
        const int width = cols - first - cols / 4;
        compare("columns", rows, cols, width, x, {}, 0, 0,
                [&](Backend& device, Tensor in, Tensor out) { device.copy_columns(in, first, out); });
        GuardedTensor in(*backend, rows, cols, x), out(*backend, rows, width);
        backend->copy_columns(in, first, out);
        const auto copied = out.values();
        for (int row = 0; row < rows; ++row)
          for (int i = 0; i < width; ++i) ASSERT_EQ(copied[row * width + i], x[row * cols + first + i]);
      }
    }
  }
}

TEST_P(Parity, AllocationsAreAlignedAndZeroed) {
  for (size_t bytes : {size_t{1}, size_t{100}, size_t{5} << 20}) {
    const auto buffer = backend->allocate(bytes);
    EXPECT_EQ(buffer->size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    std::vector<std::byte> found(bytes, std::byte{1});
    backend->download(buffer->data(), found);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(found[i], std::byte{0});
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Parity, testing::ValuesIn(test::backends()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(InstructionSets, Parity, testing::ValuesIn(test::simd_backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::kernels
