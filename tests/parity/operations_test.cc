// Every operation of a backend but attention, over sizes that do and do not fill warps and tiles.
#include "kernels/page/dtype.h"
#include "tests/parity/backends.h"

namespace lowkey::kernels::test {
namespace {

class Operations : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    backend = GetParam().make();
    if (backend == nullptr) GTEST_SKIP() << no_device();
    reference = make_reference_backend(GetParam().dtype);
  }

  // Runs `body(backend, in, out)` on both and compares. Empty `output`: poisoned.
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
  // A vector in the backend's memory.
  static std::unique_ptr<GuardedTensor> vector(Backend& device, const std::vector<float>& values) {
    return std::make_unique<GuardedTensor>(device, 1, static_cast<int>(values.size()), values);
  }

  std::unique_ptr<Backend> backend, reference;
};

struct LinearShape {
  int rows, in, out;
};

TEST_P(Operations, Linear) {
  uint32_t seed = 1;
  for (LinearShape s : {LinearShape{1, 64, 64}, LinearShape{2, 8, 24}, LinearShape{3, 43, 64},
                        LinearShape{1, 43, 7}, LinearShape{2, 2500, 5}, LinearShape{4, 172, 20},
                        LinearShape{17, 64, 51}, LinearShape{2, 25001, 3}}) {  // x in parts
    for (int variant = 0; variant < 4; ++variant) {
      const bool has_bias = variant & 1, accumulate = variant & 2;
      const auto x = normal_values(static_cast<size_t>(s.rows) * s.in, seed++);
      const auto w = normal_values(static_cast<size_t>(s.out) * s.in, seed++);
      const auto bias = normal_values(s.out, seed++);
      const auto before =
          accumulate ? normal_values(static_cast<size_t>(s.rows) * s.out, seed++) : std::vector<float>();
      compare(
          testing::PrintToString(std::array{s.rows, s.in, s.out, variant}), s.rows, s.in, s.out, x, before,
          kSumTolerance, kSumTolerance * (s.in + 10), [&](Backend& device, Tensor in, Tensor out) {
            const auto packed = device.pack_linear(w.data(), DType::kF32, s.out, s.in, s.in);
            EXPECT_EQ(packed->in_features(), s.in);
            EXPECT_EQ(packed->out_features(), s.out);
            const auto on_device = vector(device, bias);
            device.linear(*packed, in, has_bias ? Tensor(*on_device).as<float>() : nullptr, accumulate, out);
          });
    }
  }
}

TEST_P(Operations, LinearPacksEveryDtypeAndStride) {
  const int rows = 3, in = 48, out = 80, stride = 61;
  const auto values = normal_values(static_cast<size_t>(out) * stride, 2);
  const auto x = normal_values(static_cast<size_t>(rows) * in, 3);
  for (DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    std::vector<std::byte> weight(values.size() * dtype_bytes(dtype));
    for (size_t i = 0; i < values.size(); ++i) store_element(weight.data(), dtype, i, values[i]);
    compare(to_string(dtype), rows, in, out, x, {}, kSumTolerance, kSumTolerance * in,
            [&](Backend& device, Tensor a, Tensor b) {
              device.linear(*device.pack_linear(weight.data(), dtype, out, in, stride), a, nullptr, false, b);
            });
  }
}

TEST_P(Operations, EmbedGathersRowsAndZerosThoseOfOtherRanks) {
  for (int cols : {8, 43, 64}) {
    const int vocabulary = 300, first_row = 100;
    const auto table = normal_values(static_cast<size_t>(vocabulary) * cols, 4);
    const std::vector<int32_t> ids = {100, 399, 99, 400, 0, 163, 164, 227, 100};
    compare("embed", static_cast<int>(ids.size()), 1, cols, std::vector<float>(ids.size()), {}, 0, 0,
            [&](Backend& device, Tensor, Tensor out) {
              const auto embedding = device.pack_embedding(table.data(), DType::kF32, vocabulary, cols, cols);
              device.embed(*embedding, ids, first_row, cols == 64 ? 8.0f : 1.0f, out);
            });
  }
}

TEST_P(Operations, RmsNorm) {
  for (int cols : {1, 20, 64, 577}) {
    for (int rows : {1, 5}) {
      const auto weight = normal_values(cols, 7);
      const auto x = normal_values(static_cast<size_t>(rows) * cols, 8, 3.0f);
      compare("rms_norm", rows, cols, cols, x, {}, kFunctionTolerance, 1e-7,
              [&](Backend& device, Tensor in, Tensor out) {
                const auto on_device = vector(device, weight);
                device.rms_norm(in, Tensor(*on_device).as<float>(), 1e-5f, out);
              });
      compare("rms_norm in place", rows, cols, cols, x, x, kFunctionTolerance, 1e-7,
              [&](Backend& device, Tensor, Tensor out) {
                const auto on_device = vector(device, weight);
                device.rms_norm(out, Tensor(*on_device).as<float>(), 1e-5f, out);
              });
    }
  }
}

TEST_P(Operations, Rope) {
  for (int head_dim : {4, 20, 64, 128}) {
    RopeTable table{.head_dim = head_dim, .attention_factor = 1.25f};
    for (int i = 0; i < head_dim / 2; ++i)
      table.inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / head_dim)));
    for (int rows : {1, 7}) {
      std::vector<int32_t> positions(rows);
      for (int i = 0; i < rows; ++i) positions[i] = i * 9700 % 131072;
      const auto x = normal_values(static_cast<size_t>(rows) * 3 * head_dim, 9);
      compare("rope", rows, 1, 3 * head_dim, std::vector<float>(rows), x, kFunctionTolerance, 4e-6,
              [&](Backend& device, Tensor, Tensor out) { device.rope(table, positions, out); });
    }
  }
}

TEST_P(Operations, SiluMul) {
  for (int cols : {1, 20, 172}) {
    for (int rows : {1, 4}) {
      auto x = normal_values(static_cast<size_t>(rows) * 2 * cols, 11, 4.0f);
      x[0] = -200.0f;
      if (cols > 1) x[1] = 200.0f;
      for (const auto& [activation, relative, absolute] :
           {std::tuple(Activation::kSilu, kFunctionTolerance, 1e-7),
            std::tuple(Activation::kGeluTanh, 1e-5, 1e-6)}) {
        compare("gated", rows, 2 * cols, cols, x, {}, relative, absolute,
                [&](Backend& device, Tensor in, Tensor out) { device.gated(activation, in, out); });
      }
    }
  }
}

TEST_P(Operations, CopiesAndSumsAreExact) {
  for (int cols : {3, 64, 577}) {
    for (int rows : {1, 9}) {
      const auto x = normal_values(static_cast<size_t>(rows) * cols, 12);
      const auto y = normal_values(static_cast<size_t>(rows) * cols, 13);
      compare("add", rows, cols, cols, x, y, 0, 0,
              [&](Backend& device, Tensor in, Tensor out) { device.add(in, out); });
      std::vector<int32_t> picked(rows);
      for (int i = 0; i < rows; ++i) picked[i] = i * 31 % rows;
      compare("gather", rows, cols, cols, x, {}, 0, 0,
              [&](Backend& device, Tensor in, Tensor out) { device.gather_rows(in, picked, out); });
      compare("columns", rows, cols, cols - cols / 2, x, {}, 0, 0,
              [&](Backend& device, Tensor in, Tensor out) { device.copy_columns(in, cols / 2, out); });
    }
  }
}

TEST_P(Operations, AllocationsAreAlignedAndZeroed) {
  for (size_t bytes : {size_t{1}, size_t{100}, size_t{1} << 20}) {
    const auto buffer = backend->allocate(bytes);
    EXPECT_EQ(buffer->size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    std::vector<std::byte> found(bytes, std::byte{1});
    backend->download(buffer->data(), found);
    EXPECT_EQ(found, std::vector<std::byte>(bytes));
  }
}

class DeviceOperations : public Operations {};

// What spills and restores do beside the steps.
TEST_P(DeviceOperations, PageCopiesSeeWhatWasWrittenBefore) {
  PageCopies* copies = backend->page_copies();
  constexpr size_t kBytes = 10000;
  const auto device = backend->allocate(2 * kBytes);
  const auto host = copies->staging(2 * kBytes);
  for (int round = 0; round < 3; ++round) {
    const std::vector<std::byte> value(2 * kBytes, std::byte(17 + round));
    backend->upload(value, device->data());
    const PageCopies::Piece pieces[] = {{device->data(), host->data() + kBytes, kBytes},
                                        {device->data() + kBytes, host->data(), kBytes}};
    const auto ticket = copies->begin_download(pieces);
    copies->fence();
    backend->upload(std::vector<std::byte>(2 * kBytes, std::byte{1}), device->data());
    ASSERT_TRUE(ticket->wait().ok());
    EXPECT_EQ(std::memcmp(host->data(), value.data(), value.size()), 0);
    ASSERT_TRUE(copies->upload(pieces).ok());
    std::vector<std::byte> found(2 * kBytes);
    backend->download(device->data(), found);
    EXPECT_EQ(found, value);
  }
}

// Slabs of many sizes, one behind the other on the host, to places in another order, with gaps between them;
// one is long, some are no whole words, some lie apart on the host, some are neighbours on both sides.
TEST_P(DeviceOperations, UploadsReachSlabsAnywhere) {
  std::vector<size_t> sizes(300, 4096);                            // more than one launch takes along
  for (int i = 0; i < 90; ++i) sizes.push_back(size_t{64} << 10);  // more than the stages hold
  for (const size_t bytes : {size_t{1} << 20, size_t{5}, size_t{48}, size_t{700'000}, size_t{1040},
                             size_t{999'984}, (size_t{2} << 20) + 32, size_t{17}})
    sizes.push_back(bytes);
  constexpr size_t kGap = 64;
  size_t host_bytes = 0, device_bytes = kGap;
  std::vector<size_t> host_at, device_at(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (i % 37 == 0) host_bytes += 32;
    host_at.push_back(host_bytes);
    host_bytes += sizes[i];
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    const size_t piece = i * 7 % sizes.size();
    device_at[piece] = device_bytes;
    device_bytes += (sizes[piece] + kGap - 1) / kGap * kGap + (i % 3 == 0 ? 0 : kGap);
  }
  const auto host = backend->page_copies()->staging(host_bytes);
  const auto device = backend->allocate(device_bytes);
  std::vector<PageCopies::Piece> pieces;
  for (size_t i = 0; i < sizes.size(); ++i) {
    pieces.push_back({device->data() + device_at[i], host->data() + host_at[i], sizes[i]});
    if (sizes[i] == 64 << 10) {  // in halves
      pieces.back().bytes /= 2;
      pieces.push_back(
          {pieces.back().device + sizes[i] / 2, pieces.back().host + sizes[i] / 2, sizes[i] / 2});
    }
  }
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < host_bytes; ++i) host->data()[i] = std::byte((i * 2654435761u >> 11) + round);
    backend->upload(std::vector<std::byte>(device_bytes, std::byte{0x5a}), device->data());
    ASSERT_TRUE(backend->page_copies()->upload(pieces).ok());
    std::vector<std::byte> expected(device_bytes, std::byte{0x5a}), found(device_bytes);
    for (size_t i = 0; i < sizes.size(); ++i)
      std::memcpy(expected.data() + device_at[i], host->data() + host_at[i], sizes[i]);
    backend->download(device->data(), found);
    EXPECT_TRUE(found == expected) << "round " << round;
  }
  ASSERT_TRUE(backend->page_copies()->upload({}).ok());
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceOperations, testing::ValuesIn(device_cases()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Backends, Operations, testing::ValuesIn(parity_backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::kernels::test
