#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/trace.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_linear.h"
#include "kernels/cpu/few_bit_linear.h"
#include "kernels/cpu/matmul_cache.h"
#include "kernels/cpu/panel_products.h"
#include "kernels/cpu/rope_cache.h"
#include "kernels/cpu/row_draw.h"
#include "kernels/cpu/simd_ops.h"
#include "kernels/ops/host_backend.h"

namespace lowkey::kernels {
namespace {

// Elementwise work below this many elements is done by the calling thread: a fork costs microseconds.
constexpr int64_t kSerialElements = 16 * 1024;

// A matrix product runs in blocks of at most this many rows, small enough for a block's results to stay in
// the L2 cache until they are stored.
constexpr int kBlockRows = 128;
// A block that is not a multiple of this is cut into one that is and a rest, so that the number of distinct
// primitives is bounded: 8 + 15 per shape, whatever the batch sizes.
constexpr int kRowStep = 16;

float* row_of(const Tensor& x, int row) {
  return x.as<float>() + static_cast<size_t>(row) * x.cols;
}

int piece_rows(int rows_left) {
  return rows_left >= kRowStep ? rows_left / kRowStep * kRowStep : rows_left;
}

bool in_panels(const Linear& weight) {
  const auto* linear = dynamic_cast<const CpuLinear*>(&weight);
  return linear != nullptr && linear->has_panels();
}

class CpuBackend final : public HostBackend {
 public:
  explicit CpuBackend(const CpuBackendOptions& options)
      : dtype_(options.dtype),
        pool_(options.threads),
        matmuls_(options.threads),
        attention_(pool_, options.bf16_pairs && has_bf16_pairs()),
        panels_(pool_),
        has_panels_(options.dtype == DType::kBf16 && options.bf16_pairs && has_bf16_panels()),
        results_(options.threads),
        draws_(options.threads) {}

  DType dtype() const override { return dtype_; }

  std::unique_ptr<Linear> pack_linear(const void* weight, DType dtype, int out, int in,
                                      int64_t stride) override {
    return std::make_unique<CpuLinear>(pool_, matmuls_, weight, dtype, out, in, stride, dtype_, has_panels_);
  }
  // Packed like any other: a row is gathered from the packed form, which costs nothing beside a layer, and a
  // tied head runs at the full speed of linear().
  std::unique_ptr<Linear> pack_embedding(const void* weight, DType dtype, int rows, int cols,
                                         int64_t stride) override {
    return pack_linear(weight, dtype, rows, cols, stride);
  }
  bool keeps_few_bits() const override { return true; }
  std::unique_ptr<Linear> pack_few_bits(const FewBitMatrix& weight) override {
    return std::make_unique<FewBitLinear>(pool_, weight);
  }

  void linear(const Linear& weight, const Tensor& x, const float* bias, bool accumulate,
              const Tensor& y) override;
  void embed(const Linear& embedding, std::span<const int32_t> ids, int first_row, float scale,
             const Tensor& y) override;
  void rms_norm(const Tensor& x, const float* weight, float epsilon, const Tensor& y) override;
  void rope(const RopeTable& table, std::span<const int32_t> positions, const Tensor& x) override;
  void gated(Activation activation, const Tensor& gate_up, const Tensor& y) override;
  void soft_cap(float cap, const Tensor& x) override;
  void add(const Tensor& x, const Tensor& y) override;
  void draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const TokenDraw> draws,
                   DrawnToken* tokens) override;
  void project_heads(const HeadsStep& step) override;
  void gated_mlp(const MlpStep& step) override;
  void attend(const AttentionStep& step) override {
    const TraceSpan span("attend", {"rows", step.q.rows}, {"bank", step.bank});
    attention_.attend(step);
  }
  void compact(const Compaction& compaction) override {
    const TraceSpan span("compact", {"slots", compaction.num_slots});
    attention_.compact(compaction);
  }

 private:
  // Rows that one primitive does, of one block.
  struct Piece {
    int first_row = 0;
    int rows = 0;
    int block = 0;
  };

  // body(row) for every row; over the pool when the whole is worth a fork.
  template <class Body>
  void for_rows(int rows, int cols, Body body) {
    if (int64_t{rows} * cols < kSerialElements) {
      for (int row = 0; row < rows; ++row) body(row);
      return;
    }
    const int per_task = std::max<int>(1, static_cast<int>(kSerialElements / 2 / cols));
    pool_.parallel_for((rows + per_task - 1) / per_task, [&](int task, int) {
      for (int row = task * per_task; row < std::min(rows, (task + 1) * per_task); ++row) body(row);
    });
  }

  const void* convert_input(const Tensor& x);
  void plan_matmuls(const CpuLinear& weight, int rows);

  DType dtype_;
  ComputePool pool_;
  MatmulCache matmuls_;
  CpuAttention attention_;
  PanelProducts panels_;
  const bool has_panels_;
  RopeCache rope_;
  std::vector<uint16_t> bf16_input_;  // of the product at hand
  FewBitLinear::Scratch few_bit_input_;
  std::vector<Piece> pieces_;
  std::vector<Matmul*> planned_;             // [slice][piece]
  std::vector<std::vector<float>> results_;  // of each thread: one piece of one slice
  std::vector<RowDraw> draws_;               // of each thread
};

// Matrix products take x in dtype().
const void* CpuBackend::convert_input(const Tensor& x) {
  if (dtype_ == DType::kF32) return x.data;
  const size_t elements = static_cast<size_t>(x.rows) * x.cols;
  if (bf16_input_.size() < elements) bf16_input_.resize(elements);
  for_rows(x.rows, x.cols, [&](int row) {
    simd::f32_to_bf16_row(row_of(x, row), bf16_input_.data() + static_cast<size_t>(row) * x.cols, x.cols);
  });
  return bf16_input_.data();
}

void CpuBackend::plan_matmuls(const CpuLinear& weight, int rows) {
  pieces_.clear();
  for (int row = 0; row < rows;) {
    const int block_end = std::min(rows, (row / kBlockRows + 1) * kBlockRows);
    pieces_.push_back({row, piece_rows(block_end - row), row / kBlockRows});
    row += pieces_.back().rows;
  }
  planned_.clear();
  for (const CpuLinear::Slice& slice : weight.slices()) {
    for (const Piece& piece : pieces_) {
      planned_.push_back(matmuls_.find({piece.rows, weight.in_features(), slice.num_out, dtype_}));
    }
  }
  const size_t floats = static_cast<size_t>(std::min(rows, kBlockRows)) * weight.max_slice_out();
  for (auto& result : results_) {
    if (result.size() < floats) result.resize(floats);
  }
}

void CpuBackend::linear(const Linear& weight, const Tensor& x, const float* bias, bool accumulate,
                        const Tensor& y) {
  LOWKEY_CHECK(x.cols == weight.in_features() && y.cols == weight.out_features() && x.rows == y.rows,
               "linear [{}, {}] on [{}, {}] -> [{}, {}]", weight.out_features(), weight.in_features(), x.rows,
               x.cols, y.rows, y.cols);
  if (x.rows == 0) return;
  const TraceSpan span("linear", {"rows", x.rows}, {"out", y.cols});
  if (const auto* few_bits = dynamic_cast<const FewBitLinear*>(&weight))
    return few_bits->multiply(pool_, few_bit_input_, x, bias, accumulate, y);
  const auto& w = static_cast<const CpuLinear&>(weight);
  if (w.has_panels()) return panels_.linear(w, x, bias, accumulate, y);
  const auto* input = static_cast<const std::byte*>(convert_input(x));
  plan_matmuls(w, x.rows);
  const size_t row_bytes = static_cast<size_t>(x.cols) * dtype_bytes(dtype_);
  const int slices = static_cast<int>(w.slices().size()), blocks = pieces_.back().block + 1;
  pool_.parallel_for(slices * blocks, [&](int task, int thread) {
    const CpuLinear::Slice& slice = w.slices()[task % slices];
    float* result = results_[thread].data();
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const Piece& piece = pieces_[i];
      if (piece.block != task / slices) continue;
      matmuls_.run(*planned_[task % slices * pieces_.size() + i], thread, input + piece.first_row * row_bytes,
                   w.slice_data(slice), result);
      for (int row = 0; row < piece.rows; ++row) {
        simd::store_row(result + static_cast<size_t>(row) * slice.num_out,
                        bias == nullptr ? nullptr : bias + slice.first_out, accumulate,
                        row_of(y, piece.first_row + row) + slice.first_out, slice.num_out);
      }
    }
  });
}

void CpuBackend::project_heads(const HeadsStep& step) {
  if (!in_panels(*step.weight) || step.x.rows == 0) return Backend::project_heads(step);
  const TraceSpan span("heads", {"rows", step.x.rows}, {"out", step.qkv.cols});
  panels_.project_heads(step, rope_.find(*step.rope, step.positions));
}

void CpuBackend::gated_mlp(const MlpStep& step) {
  const bool fused = in_panels(*step.gate_up) && in_panels(*step.down) && step.x.rows > 0 &&
                     PanelProducts::can_gate(static_cast<const CpuLinear&>(*step.gate_up));
  if (!fused) return Backend::gated_mlp(step);
  const TraceSpan span("mlp", {"rows", step.x.rows}, {"ffn", step.hidden.cols});
  panels_.gated_mlp(step);
}

void CpuBackend::embed(const Linear& embedding, std::span<const int32_t> ids, int first_row, float scale,
                       const Tensor& y) {
  const TraceSpan span("embed", {"rows", y.rows});
  const auto* few_bits = dynamic_cast<const FewBitLinear*>(&embedding);
  const auto copy_row = [&](int row, float* target) {
    few_bits != nullptr ? few_bits->copy_row(row, target)
                        : static_cast<const CpuLinear&>(embedding).copy_row(row, target);
  };
  for_rows(static_cast<int>(ids.size()), y.cols, [&](int i) {
    const int64_t row = int64_t{ids[i]} - first_row;
    if (row >= 0 && row < embedding.out_features()) {
      copy_row(static_cast<int>(row), row_of(y, i));
      if (scale != 1) simd::scale_row(row_of(y, i), scale, row_of(y, i), y.cols);
    } else {
      std::memset(row_of(y, i), 0, y.cols * sizeof(float));
    }
  });
}

void CpuBackend::rms_norm(const Tensor& x, const float* weight, float epsilon, const Tensor& y) {
  const TraceSpan span("rms norm", {"rows", x.rows});
  for_rows(x.rows, x.cols,
           [&](int row) { simd::rms_norm_row(row_of(x, row), weight, epsilon, row_of(y, row), x.cols); });
}

void CpuBackend::rope(const RopeTable& table, std::span<const int32_t> positions, const Tensor& x) {
  const TraceSpan span("rope", {"rows", x.rows});
  const RopeCache::Angles& angles = rope_.find(table, positions);
  for_rows(x.rows, x.cols, [&](int row) {
    simd::rotate_heads(row_of(x, row), x.cols / table.head_dim, table.head_dim, angles.cos_of(row),
                       angles.sin_of(row), table.inv_freq.size());
  });
}

void CpuBackend::gated(Activation activation, const Tensor& gate_up, const Tensor& y) {
  const TraceSpan span("gated", {"rows", y.rows});
  const auto function = activation == Activation::kSilu ? simd::silu_mul_row : simd::gelu_mul_row;
  for_rows(y.rows, y.cols, [&](int row) {
    function(row_of(gate_up, row), row_of(gate_up, row) + y.cols, row_of(y, row), y.cols);
  });
}

void CpuBackend::soft_cap(float cap, const Tensor& x) {
  const TraceSpan span("soft cap", {"rows", x.rows});
  for_rows(x.rows, x.cols, [&](int row) { simd::soft_cap_row(row_of(x, row), 0, cap, x.cols); });
}

void CpuBackend::add(const Tensor& x, const Tensor& y) {
  for_rows(x.rows, x.cols, [&](int row) { simd::add_row(row_of(x, row), row_of(y, row), x.cols); });
}

void CpuBackend::draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const TokenDraw> draws,
                             DrawnToken* tokens) {
  LOWKEY_CHECK(parts >= 1 && logits.rows % parts == 0 && vocab <= parts * logits.cols,
               "{} tokens in {} pieces of [{}, {}]", vocab, parts, logits.rows / parts, logits.cols);
  const TraceSpan span("draw tokens", {"rows", static_cast<int64_t>(draws.size())});
  pool_.parallel_for(static_cast<int>(draws.size()), [&](int i, int thread) {
    tokens[i] = draws_[thread].draw(logits, parts, vocab, draws[i]);
  });
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options) {
  LOWKEY_CHECK(options.dtype == DType::kF32 || options.dtype == DType::kBf16, "CPU backend in {}",
               to_string(options.dtype));
  return std::make_unique<CpuBackend>(options);
}

}  // namespace lowkey::kernels
