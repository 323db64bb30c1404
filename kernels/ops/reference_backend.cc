#include "kernels/ops/reference_backend.h"

#include <cmath>
#include <cstring>
#include <numbers>

#include "base/check.h"
#include "kernels/ops/attention_reference.h"
#include "kernels/ops/compaction.h"
#include "kernels/ops/host_backend.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels {
namespace {

class ReferenceLinear final : public Linear {
 public:
  ReferenceLinear(const void* weight, DType dtype, int out, int in, int64_t stride, DType to)
      : in_(in), out_(out), weight_(static_cast<size_t>(out) * in) {
    for (int o = 0; o < out; ++o) {
      for (int i = 0; i < in; ++i) {
        weight_[static_cast<size_t>(o) * in + i] =
            round_to(to, load_element(weight, dtype, static_cast<size_t>(o * stride + i)));
      }
    }
  }

  int in_features() const override { return in_; }
  int out_features() const override { return out_; }
  size_t packed_bytes() const override { return weight_.size() * sizeof(float); }
  const float* row(int o) const { return weight_.data() + static_cast<size_t>(o) * in_; }

 private:
  int in_, out_;
  std::vector<float> weight_;
};

float* row_of(const Tensor& x, int row) {
  return x.as<float>() + static_cast<size_t>(row) * x.cols;
}

class ReferenceBackend final : public HostBackend {
 public:
  explicit ReferenceBackend(DType dtype) : dtype_(dtype) {}

  DType dtype() const override { return dtype_; }

  std::unique_ptr<Linear> pack_linear(const void* weight, DType dtype, int out, int in,
                                      int64_t stride) override {
    return std::make_unique<ReferenceLinear>(weight, dtype, out, in, stride, dtype_);
  }
  std::unique_ptr<Linear> pack_embedding(const void* weight, DType dtype, int rows, int cols,
                                         int64_t stride) override {
    return pack_linear(weight, dtype, rows, cols, stride);
  }

  void linear(const Linear& weight, const Tensor& x, const float* bias, bool accumulate,
              const Tensor& y) override {
    const auto& w = static_cast<const ReferenceLinear&>(weight);
    LOWKEY_CHECK(x.cols == w.in_features() && y.cols == w.out_features() && x.rows == y.rows,
                 "linear [{}, {}] on [{}, {}] -> [{}, {}]", w.out_features(), w.in_features(), x.rows, x.cols,
                 y.rows, y.cols);
    std::vector<double> input(x.cols);
    for (int r = 0; r < x.rows; ++r) {
      for (int i = 0; i < x.cols; ++i) input[i] = round_to(dtype_, row_of(x, r)[i]);
      for (int o = 0; o < y.cols; ++o) {
        double sum = bias == nullptr ? 0.0 : bias[o];
        for (int i = 0; i < x.cols; ++i) sum += input[i] * w.row(o)[i];
        if (accumulate) sum += row_of(y, r)[o];
        row_of(y, r)[o] = static_cast<float>(sum);
      }
    }
  }

  void embed(const Linear& embedding, std::span<const int32_t> ids, int first_row, float scale,
             const Tensor& y) override {
    const auto& w = static_cast<const ReferenceLinear&>(embedding);
    for (size_t i = 0; i < ids.size(); ++i) {
      const int64_t row = int64_t{ids[i]} - first_row;
      float* target = row_of(y, static_cast<int>(i));
      if (row >= 0 && row < w.out_features()) {
        for (int c = 0; c < y.cols; ++c) target[c] = scale * w.row(static_cast<int>(row))[c];
      } else {
        std::memset(target, 0, y.cols * sizeof(float));
      }
    }
  }

  void rms_norm(const Tensor& x, const float* weight, float epsilon, const Tensor& y) override {
    for (int r = 0; r < x.rows; ++r) {
      double sum = 0;
      for (int i = 0; i < x.cols; ++i) sum += double{row_of(x, r)[i]} * row_of(x, r)[i];
      const double scale = 1.0 / std::sqrt(sum / x.cols + epsilon);
      for (int i = 0; i < x.cols; ++i)
        row_of(y, r)[i] = static_cast<float>(row_of(x, r)[i] * scale * weight[i]);
    }
  }

  void rope(const RopeTable& table, std::span<const int32_t> positions, const Tensor& x) override {
    const int half = static_cast<int>(table.inv_freq.size());
    for (int r = 0; r < x.rows; ++r) {
      for (int begin = 0; begin < x.cols; begin += table.head_dim) {
        float* head = row_of(x, r) + begin;
        for (int i = 0; i < half; ++i) {
          const double angle = double{table.inv_freq[i]} * positions[r];
          const double c = std::cos(angle) * table.attention_factor;
          const double s = std::sin(angle) * table.attention_factor;
          const double a = head[i], b = head[i + half];
          head[i] = static_cast<float>(a * c - b * s);
          head[i + half] = static_cast<float>(b * c + a * s);
        }
      }
    }
  }

  void gated(Activation activation, const Tensor& gate_up, const Tensor& y) override {
    for (int r = 0; r < y.rows; ++r) {
      for (int i = 0; i < y.cols; ++i) {
        const double gate = row_of(gate_up, r)[i];
        const double inner = std::sqrt(2 / std::numbers::pi) * (gate + 0.044715 * gate * gate * gate);
        const double active = activation == Activation::kSilu ? gate / (1.0 + std::exp(-gate))
                                                              : gate / 2 * (1 + std::tanh(inner));
        row_of(y, r)[i] = static_cast<float>(active * row_of(gate_up, r)[y.cols + i]);
      }
    }
  }

  void soft_cap(float cap, const Tensor& x) override {
    for (int r = 0; r < x.rows; ++r) {
      for (int i = 0; i < x.cols; ++i)
        row_of(x, r)[i] = static_cast<float>(cap * std::tanh(double{row_of(x, r)[i]} / cap));
    }
  }

  void add(const Tensor& x, const Tensor& y) override {
    for (int r = 0; r < x.rows; ++r) {
      for (int i = 0; i < x.cols; ++i) row_of(y, r)[i] += row_of(x, r)[i];
    }
  }

  void attend(const AttentionStep& step) override { attend_reference(step); }

  void compact(const Compaction& compaction) override {
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int i = 0; i < compaction.to->vectors_per_side(); ++i)
        compact_vector(compaction, side, i, encode_vector);
    }
  }

 private:
  DType dtype_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(DType dtype) {
  LOWKEY_CHECK(dtype == DType::kF32 || dtype == DType::kBf16, "backend in {}", to_string(dtype));
  return std::make_unique<ReferenceBackend>(dtype);
}

}  // namespace lowkey::kernels
