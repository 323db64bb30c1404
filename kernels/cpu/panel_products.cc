#include "kernels/cpu/panel_products.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "kernels/cpu/bf16_gate.h"
#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_ops.h"

namespace lowkey::kernels {
namespace {

// From so many rows for each thread on a block of them pays for reading all weights once more.
constexpr int kRowsOfThread = 64;
// Rows of a block whose inputs and results fit half of a 1 MB L2 cache, beside the panels that pass.
constexpr int kBlockRows = 96;
// Tasks of a product whose outputs are cut, for each thread: what is left when one ends early is small.
constexpr int kTasksOfThread = 16;
// Below this many elements rows are done by the calling thread: a fork costs microseconds.
constexpr int64_t kSerialElements = 16 * 1024;

float* row_of(const Tensor& x, int row) {
  return x.as<float>() + static_cast<size_t>(row) * x.cols;
}

const CpuLinear& cpu(const Linear* weight) {
  return static_cast<const CpuLinear&>(*weight);
}

// Whether somebody reads the attention of one of rows [first, first + count).
bool any_wanted(std::span<const SequenceSlice> sequences, int first, int count) {
  return sequences.empty() || std::any_of(sequences.begin(), sequences.end(), [&](const SequenceSlice& s) {
           return std::max(first, s.first_row + s.unwanted_rows) <
                  std::min(first + count, s.first_row + s.num_rows);
         });
}

// Panels that are multiplied together: their part of the inputs is read from the L2 cache once.
int panels_together(int in) {
  return in > 2048 ? kMaxPanels : 2;
}

}  // namespace

// Where the outputs of a product go: into one tensor after the other.
struct PanelProducts::Outputs {
  std::array<Tensor, 3> targets;
  const float* bias = nullptr;
  bool accumulate = false;

  // Of rows from `row` on, the place of `outs` outputs from `out` on, if they are all of one target and need
  // nothing beside the sums.
  std::pair<float*, ptrdiff_t> direct(int row, int out, int outs) const {
    for (const Tensor& target : targets) {
      if (bias == nullptr && out >= 0 && out + outs <= target.cols)
        return {row_of(target, row) + out, target.cols};
      out -= target.cols;
    }
    return {nullptr, 0};
  }

  // Sums of `rows` rows from `row` on, of outputs [out, out + outs).
  void store(const float* sums, ptrdiff_t stride, int row, int rows, int out, int outs) const {
    int begin = 0;  // of the target's outputs
    for (const Tensor& target : targets) {
      const int from = std::max(out, begin), end = std::min(out + outs, begin + target.cols);
      if (from < end)
        simd::store_block({.x = sums + (from - out),
                           .x_stride = stride,
                           .bias = bias == nullptr ? nullptr : bias + from,
                           .accumulate = accumulate,
                           .y = row_of(target, row) + (from - begin),
                           .y_stride = target.cols,
                           .rows = rows,
                           .cols = end - from});
      begin += target.cols;
    }
  }
};

PanelProducts::PanelProducts(ComputePool& pool) : pool_(pool), scratch_(pool.threads()) {}

bool PanelProducts::by_rows(int rows) const {
  return rows >= kRowsOfThread * pool_.threads();
}

template <class Body>
void PanelProducts::for_row_blocks(int rows, int in, Body body) {
  const int threads = pool_.threads();
  const int block_rows = in > 4096 ? kBlockRows / 2 : kBlockRows;
  const int blocks = threads * ceil_div(rows, threads * block_rows);
  pool_.parallel_parts(blocks, [&](int block, int thread) {
    const int begin = static_cast<int>(int64_t{rows} * block / blocks);
    const int end = static_cast<int>(int64_t{rows} * (block + 1) / blocks);
    if (begin < end) body(begin, end - begin, scratch_[thread]);
  });
}

template <class Body>
void PanelProducts::for_panels(int panels, Body body) {
  const int tasks = std::min(panels, kTasksOfThread * pool_.threads());
  const auto first_of = [&](int task) { return static_cast<int>(int64_t{panels} * task / tasks); };
  pool_.parallel_parts(tasks, [&](int task, int thread) {
    const int begin = first_of(task), end = first_of(task + 1);
    body({begin, end - begin, first_of(pool_.end_of_part(task, tasks))}, scratch_[thread]);
  });
}

template <class Body>
void PanelProducts::for_rows(int rows, int cols, Body body) {
  if (int64_t{rows} * cols < kSerialElements) {
    for (int row = 0; row < rows; ++row) body(row);
    return;
  }
  const int tasks = std::min(rows, 4 * pool_.threads());
  pool_.parallel_for(tasks, [&](int task, int) {
    for (int row = rows * task / tasks; row < rows * (task + 1) / tasks; ++row) body(row);
  });
}

template <class Fill>
PanelProducts::Inputs PanelProducts::make_inputs(std::vector<uint16_t>& memory, int first, int count, int in,
                                                 bool parallel, Fill fill) {
  const ptrdiff_t stride = panel_row_stride(in);
  grow(memory, static_cast<size_t>(count) * stride);
  const auto write = [&](int row) {
    uint16_t* target = memory.data() + row * stride;
    fill(first + row, target);
    if (in % 2 != 0) target[in] = 0;
  };
  if (parallel) {
    for_rows(count, in, write);
  } else {
    for (int row = 0; row < count; ++row) write(row);
  }
  return {memory.data(), stride, count};
}

void PanelProducts::multiply(const CpuLinear& weight, const Inputs& x, int first_row, const Panels& panels,
                             std::vector<float>& sums, const Outputs& outputs) {
  const int together = panels_together(weight.in_features());
  const ptrdiff_t stride = ptrdiff_t{together} * kPanelOut;
  float* y = grow_aligned(sums, static_cast<size_t>(x.count) * stride);
  const int end = panels.first + panels.count;
  for (int panel = panels.first; panel < end; panel += together) {
    PanelProduct product{.x = x.rows,
                         .x_stride = x.stride,
                         .rows = x.count,
                         .in = weight.in_features(),
                         .num_panels = std::min(together, end - panel),
                         .y = y,
                         .y_stride = stride,
                         .accumulate = outputs.accumulate};
    for (int i = 0; i < product.num_panels; ++i) product.panels[i] = weight.panel(panel + i);
    const int next = panel + product.num_panels;
    if (next < panels.follow_to) product.next = weight.panel(next);
    const int out = panel * kPanelOut, outs = product.num_panels * kPanelOut;
    std::tie(product.result, product.result_stride) = outputs.direct(first_row, out, outs);
    multiply_panels(product);
    if (product.result == nullptr)
      outputs.store(y, stride, first_row, x.count, out, std::min(outs, weight.out_features() - out));
  }
}

PanelProducts::Inputs PanelProducts::norm(const float* weight, float epsilon, const Tensor& x, int first,
                                          int count, std::vector<uint16_t>& memory, bool parallel) {
  return make_inputs(memory, first, count, x.cols, parallel, [&](int row, uint16_t* target) {
    simd::rms_norm_row_to_bf16(row_of(x, row), weight, epsilon, target, x.cols);
  });
}

void PanelProducts::linear(const CpuLinear& weight, const Tensor& x, const float* bias, bool accumulate,
                           const Tensor& y) {
  const auto convert = [&](int row, uint16_t* target) {
    simd::f32_to_bf16_row(row_of(x, row), target, x.cols);
  };
  const Outputs outputs{.targets = {y}, .bias = bias, .accumulate = accumulate};
  if (by_rows(x.rows)) {
    return for_row_blocks(x.rows, x.cols, [&](int first, int count, Scratch& scratch) {
      const Inputs inputs = make_inputs(scratch.inputs, first, count, x.cols, false, convert);
      multiply(weight, inputs, first, all_panels(weight), scratch.sums, outputs);
    });
  }
  const Inputs inputs = make_inputs(inputs_, 0, x.rows, x.cols, true, convert);
  for_panels(weight.num_panels(), [&](const Panels& panels, Scratch& scratch) {
    multiply(weight, inputs, 0, panels, scratch.sums, outputs);
  });
}

// Heads normed and rotated, once a row's k and, where it is wanted, q are whole.
void PanelProducts::finish_heads(const HeadsStep& step, const RopeCache::Angles& angles, int row,
                                 bool wants_q) const {
  const int dim = step.rope->head_dim;
  const auto finish = [&](const Tensor& x, const float* weight) {
    float* heads = row_of(x, row);
    for (int begin = 0; begin < x.cols && weight != nullptr; begin += dim)
      simd::rms_norm_row(heads + begin, weight, step.epsilon, heads + begin, dim);
    simd::rotate_heads(heads, x.cols / dim, dim, angles.cos_of(row), angles.sin_of(row),
                       step.rope->inv_freq.size());
  };
  if (wants_q) finish(step.q, step.q_norm);
  finish(step.k, step.k_norm);
}

void PanelProducts::project_heads(const HeadsStep& step, const RopeCache::Angles& angles) {
  const CpuLinear& weight = cpu(step.weight);
  const Outputs outputs{.targets = {step.q, step.k, step.v}, .bias = step.bias};
  const int rows = step.x.rows;
  if (by_rows(rows)) {
    return for_row_blocks(rows, step.x.cols, [&](int first, int count, Scratch& scratch) {
      const Inputs inputs = norm(step.norm, step.epsilon, step.x, first, count, scratch.inputs, false);
      const bool wants_q = any_wanted(step.sequences, first, count);
      Panels panels = all_panels(weight);
      if (!wants_q) panels.first = step.q.cols / kPanelOut;
      panels.count -= panels.first;
      multiply(weight, inputs, first, panels, scratch.sums, outputs);
      for (int row = first; row < first + count; ++row) finish_heads(step, angles, row, wants_q);
    });
  }
  const Inputs inputs = norm(step.norm, step.epsilon, step.x, 0, rows, inputs_, true);
  for_panels(weight.num_panels(), [&](const Panels& panels, Scratch& scratch) {
    multiply(weight, inputs, 0, panels, scratch.sums, outputs);
  });
  for_rows(rows, step.q.cols + step.k.cols, [&](int row) { finish_heads(step, angles, row, true); });
}

// Panels of gate with those of up, into their columns of `hidden`.
void PanelProducts::gate_panels(const MlpStep& step, const Inputs& x, const Panels& panels, uint16_t* hidden,
                                ptrdiff_t hidden_stride, std::vector<float>& sums) {
  const CpuLinear& weight = cpu(step.gate_up);
  const int half = weight.num_panels() / 2, ffn = weight.out_features() / 2;
  float* y = grow_aligned(sums, static_cast<size_t>(x.count) * 2 * kPanelOut);
  for (int panel = panels.first; panel < panels.first + panels.count; ++panel) {
    multiply_panels({.x = x.rows,
                     .x_stride = x.stride,
                     .rows = x.count,
                     .in = weight.in_features(),
                     .panels = {weight.panel(panel), weight.panel(half + panel)},
                     .num_panels = 2,
                     .next = panel + 1 < panels.follow_to ? weight.panel(panel + 1) : nullptr,
                     .y = y,
                     .y_stride = 2 * kPanelOut});
    const int out = panel * kPanelOut;
    const float* bias = step.gate_up_bias;
    gate_block({.gate = y,
                .up = y + kPanelOut,
                .stride = 2 * kPanelOut,
                .gate_bias = bias == nullptr ? nullptr : bias + out,
                .up_bias = bias == nullptr ? nullptr : bias + ffn + out,
                .rows = x.count,
                .gelu = step.activation == Activation::kGeluTanh,
                .y = hidden + out,
                .y_stride = hidden_stride});
  }
}

void PanelProducts::gated_mlp(const MlpStep& step) {
  const CpuLinear &gate_up = cpu(step.gate_up), &down = cpu(step.down);
  const int rows = step.x.rows, ffn = down.in_features(), gates = gate_up.num_panels() / 2;
  const ptrdiff_t stride = panel_row_stride(ffn);
  const Outputs outputs{.targets = {step.y}, .bias = step.down_bias, .accumulate = step.accumulate};
  if (by_rows(rows)) {
    return for_row_blocks(rows, ffn, [&](int first, int count, Scratch& scratch) {
      const Inputs inputs = norm(step.norm, step.epsilon, step.x, first, count, scratch.inputs, false);
      grow(scratch.hidden, static_cast<size_t>(count) * stride);
      gate_panels(step, inputs, {0, gates, gates}, scratch.hidden.data(), stride, scratch.sums);
      multiply(down, {scratch.hidden.data(), stride, count}, first, all_panels(down), scratch.sums, outputs);
    });
  }
  const Inputs inputs = norm(step.norm, step.epsilon, step.x, 0, rows, inputs_, true);
  grow(hidden_, static_cast<size_t>(rows) * stride);
  for_panels(gates, [&](const Panels& panels, Scratch& scratch) {
    gate_panels(step, inputs, panels, hidden_.data(), stride, scratch.sums);
  });
  for_panels(down.num_panels(), [&](const Panels& panels, Scratch& scratch) {
    multiply(down, {hidden_.data(), stride, rows}, 0, panels, scratch.sums, outputs);
  });
}

}  // namespace lowkey::kernels
