// What the kernel tests share: backends as parameters, seeded data, guarded buffers, tolerances.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/bf16_panels.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/reference_backend.h"

namespace lowkey::kernels::test {

// One backend under test. Another device is another entry in backends().
struct BackendCase {
  std::string name;
  DType dtype = DType::kF32;
  std::function<std::unique_ptr<Backend>()> make;
  int64_t simd_target = 0;  // of Highway; 0: the best one
  bool in_pairs = false;    // exact bf16 rows and pages are attended in pairs of bf16
};

// Restricts Highway to one instruction set while it lives.
class SimdTarget {
 public:
  explicit SimdTarget(int64_t target) { use(target); }
  ~SimdTarget() { use(0); }
  SimdTarget(const SimdTarget&) = delete;

 private:
  static void use(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

inline std::vector<BackendCase> backends() {
  std::vector<BackendCase> cases;
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    for (int threads : {1, 3}) {
      cases.push_back({std::string("cpu_") + to_string(dtype) + "_t" + std::to_string(threads), dtype,
                       [=] { return make_cpu_backend({.dtype = dtype, .threads = threads}); }, 0,
                       dtype == DType::kBf16 && has_bf16_pairs()});
    }
  }
  cases.push_back({"cpu_bf16_t2_onednn", DType::kBf16, [] {
                     return make_cpu_backend({.dtype = DType::kBf16, .threads = 2, .bf16_pairs = false});
                   }});
  return cases;
}

// The CPU backend in Highway alone, on every instruction set that this machine and this build have.
inline std::vector<BackendCase> simd_backends() {
  std::vector<BackendCase> cases;
  const int64_t here = hwy::SupportedTargets() | HWY_EMU128;  // the emulation is always there
  for (int64_t target : {int64_t{HWY_EMU128}, int64_t{HWY_SSE4}, int64_t{HWY_AVX2}, int64_t{HWY_AVX3}}) {
    if ((here & target) == 0) continue;
    for (DType dtype : {DType::kF32, DType::kBf16}) {
      cases.push_back({std::string("cpu_") + to_string(dtype) + "_" + hwy::TargetName(target), dtype,
                       [=] { return make_cpu_backend({.dtype = dtype, .threads = 1, .bf16_pairs = false}); },
                       target});
    }
  }
  return cases;
}

inline void PrintTo(const BackendCase& c, std::ostream* out) {
  *out << c.name;
}

// Relative to the largest magnitude that enters a sum. f32: sums of a few thousand products in another order
// and with fused multiply-adds. bf16: the same, because products of bf16 are exact in f32 and K, V and inputs
// are rounded alike on both sides.
inline constexpr double kSumTolerance = 2e-6;
// Relative, of functions evaluated in f32 (exp, rsqrt, rotation).
inline constexpr double kFunctionTolerance = 4e-6;

inline std::vector<float> normal_values(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& x : values) x = normal(random);
  return values;
}

// A tensor in a backend's memory with guard bytes on both sides; poisoned with NaN until filled.
class GuardedTensor {
 public:
  GuardedTensor(Backend& backend, int rows, int cols) : backend_(backend), rows_(rows), cols_(cols) {
    std::vector<std::byte> image(bytes() + 2 * kGuard, std::byte{kPattern});
    std::memset(image.data() + kGuard, 0xff, bytes());
    buffer_ = backend.allocate(image.size());
    backend.upload(image, buffer_->data());
  }
  GuardedTensor(Backend& backend, int rows, int cols, const std::vector<float>& values)
      : GuardedTensor(backend, rows, cols) {
    EXPECT_EQ(values.size(), static_cast<size_t>(rows) * cols);
    backend.upload(std::as_bytes(std::span(values)), buffer_->data() + kGuard);
  }
  ~GuardedTensor() {
    std::vector<std::byte> image(bytes() + 2 * kGuard);
    backend_.download(buffer_->data(), image);
    size_t damaged = 0;
    for (size_t i = 0; i < kGuard; ++i) {
      damaged += std::to_integer<int>(image[i]) != kPattern;
      damaged += std::to_integer<int>(image[kGuard + bytes() + i]) != kPattern;
    }
    EXPECT_EQ(damaged, 0u) << "bytes written outside a tensor of [" << rows_ << ", " << cols_ << "]";
  }
  GuardedTensor(const GuardedTensor&) = delete;
  operator Tensor() const { return {buffer_->data() + kGuard, rows_, cols_, DType::kF32}; }
  std::vector<float> values() const {
    std::vector<float> values(static_cast<size_t>(rows_) * cols_);
    backend_.download(buffer_->data() + kGuard, std::as_writable_bytes(std::span(values)));
    return values;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr int kPattern = 0x5a;
  size_t bytes() const { return static_cast<size_t>(rows_) * cols_ * sizeof(float); }
  Backend& backend_;
  int rows_, cols_;
  std::unique_ptr<Buffer> buffer_;
};

inline void expect_close(const std::vector<float>& actual, const std::vector<float>& expected,
                         double relative, double absolute, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double bound = absolute + relative * std::fabs(expected[i]);
    ASSERT_LE(std::fabs(double{actual[i]} - expected[i]), bound)
        << what << " element " << i << ": " << actual[i] << ", expected " << expected[i];
  }
}

// Of all together: signal over error.
inline double decibel(const std::vector<float>& actual, const std::vector<float>& expected) {
  double signal = 0, error = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    signal += double{expected[i]} * expected[i];
    error += (double{actual[i]} - expected[i]) * (double{actual[i]} - expected[i]);
  }
  return 10 * std::log10(signal / error);
}

}  // namespace lowkey::kernels::test
