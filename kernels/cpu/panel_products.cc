#include "kernels/cpu/panel_products.h"

#include <algorithm>

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

// Panels that are multiplied together: their part of the inputs is read from the L2 cache once.
int panels_together(int in) {
  return in > 2048 ? kMaxPanels : 2;
}

// Sums of a block of rows from `row` on, of outputs [out, out + outs).
struct Sums {
  const float* data;
  ptrdiff_t stride;
  int row, rows;
  int out, outs;
};

void store(const Sums& sums, const float* bias, bool accumulate, const Tensor& y) {
  simd::store_block({.x = sums.data,
                     .x_stride = sums.stride,
                     .bias = bias == nullptr ? nullptr : bias + sums.out,
                     .accumulate = accumulate,
                     .y = row_of(y, sums.row) + sums.out,
                     .y_stride = y.cols,
                     .rows = sums.rows,
                     .cols = sums.outs});
}

// Into the tensors that they belong to, one after the other.
void split(const Sums& sums, const float* bias, std::initializer_list<const Tensor*> targets) {
  int begin = 0;  // of the target's outputs
  for (const Tensor* target : targets) {
    const int from = std::max(sums.out, begin), end = std::min(sums.out + sums.outs, begin + target->cols);
    if (from < end)
      store({sums.data + (from - sums.out), sums.stride, sums.row, sums.rows, from - begin, end - from},
            bias == nullptr ? nullptr : bias + begin, false, *target);
    begin += target->cols;
  }
}

}  // namespace

PanelProducts::PanelProducts(ComputePool& pool) : pool_(pool), scratch_(pool.threads()) {}

bool PanelProducts::by_rows(int rows) const {
  return rows >= kRowsOfThread * pool_.threads();
}

template <class Body>
void PanelProducts::for_row_blocks(int rows, int in, Body body) {
  const int threads = pool_.threads();
  const int block_rows = in > 4096 ? kBlockRows / 2 : kBlockRows;
  const int blocks = threads * ceil_div(rows, threads * block_rows);
  pool_.parallel_for(blocks, [&](int block, int thread) {
    const int begin = static_cast<int>(int64_t{rows} * block / blocks);
    const int end = static_cast<int>(int64_t{rows} * (block + 1) / blocks);
    if (begin < end) body(begin, end - begin, scratch_[thread]);
  });
}

template <class Body>
void PanelProducts::for_panels(int panels, Body body) {
  const int tasks = std::min(panels, kTasksOfThread * pool_.threads());
  pool_.parallel_for(tasks, [&](int task, int thread) {
    const int begin = static_cast<int>(int64_t{panels} * task / tasks);
    const int end = static_cast<int>(int64_t{panels} * (task + 1) / tasks);
    body(begin, end - begin, scratch_[thread]);
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

template <class Store>
void PanelProducts::multiply(const CpuLinear& weight, const Inputs& x, int first, int count,
                             std::vector<float>& sums, Store store) {
  const int together = panels_together(weight.in_features());
  const ptrdiff_t stride = ptrdiff_t{together} * kPanelOut;
  grow(sums, static_cast<size_t>(x.count) * stride);
  for (int panel = first; panel < first + count; panel += together) {
    PanelProduct product{.x = x.rows,
                         .x_stride = x.stride,
                         .rows = x.count,
                         .in = weight.in_features(),
                         .num_panels = std::min(together, first + count - panel),
                         .y = sums.data(),
                         .y_stride = stride};
    for (int i = 0; i < product.num_panels; ++i) product.panels[i] = weight.panel(panel + i);
    if (panel + product.num_panels < weight.num_panels())
      product.next = weight.panel(panel + product.num_panels);
    multiply_panels(product);
    const int out = panel * kPanelOut;
    store(out, std::min(product.num_panels * kPanelOut, weight.out_features() - out), sums.data(), stride);
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
  const auto run = [&](const Inputs& inputs, int first_row, int first, int count, Scratch& scratch) {
    multiply(weight, inputs, first, count, scratch.sums,
             [&](int out, int outs, const float* sums, ptrdiff_t stride) {
               store({sums, stride, first_row, inputs.count, out, outs}, bias, accumulate, y);
             });
  };
  if (by_rows(x.rows)) {
    return for_row_blocks(x.rows, x.cols, [&](int first, int count, Scratch& scratch) {
      run(make_inputs(scratch.inputs, first, count, x.cols, false, convert), first, 0, weight.num_panels(),
          scratch);
    });
  }
  const Inputs inputs = make_inputs(inputs_, 0, x.rows, x.cols, true, convert);
  for_panels(weight.num_panels(),
             [&](int first, int count, Scratch& scratch) { run(inputs, 0, first, count, scratch); });
}

// Heads normed and rotated, once a row's q and k are whole.
void PanelProducts::finish_heads(const HeadsStep& step, const RopeCache::Angles& angles, int row) const {
  const int dim = step.rope->head_dim;
  const auto finish = [&](const Tensor& x, const float* weight) {
    for (int begin = 0; begin < x.cols; begin += dim) {
      float* head = row_of(x, row) + begin;
      if (weight != nullptr) simd::rms_norm_row(head, weight, step.epsilon, head, dim);
      simd::rotate_row(head, angles.cos_of(row), angles.sin_of(row), step.rope->inv_freq.size());
    }
  };
  finish(step.q, step.q_norm);
  finish(step.k, step.k_norm);
}

void PanelProducts::project_heads(const HeadsStep& step, const RopeCache::Angles& angles) {
  const CpuLinear& weight = cpu(step.weight);
  const auto run = [&](const Inputs& inputs, int first_row, int first, int count, Scratch& scratch) {
    multiply(
        weight, inputs, first, count, scratch.sums,
        [&](int out, int outs, const float* sums, ptrdiff_t stride) {
          split({sums, stride, first_row, inputs.count, out, outs}, step.bias, {&step.q, &step.k, &step.v});
        });
  };
  const int rows = step.x.rows;
  if (by_rows(rows)) {
    return for_row_blocks(rows, step.x.cols, [&](int first, int count, Scratch& scratch) {
      run(norm(step.norm, step.epsilon, step.x, first, count, scratch.inputs, false), first, 0,
          weight.num_panels(), scratch);
      for (int row = first; row < first + count; ++row) finish_heads(step, angles, row);
    });
  }
  const Inputs inputs = norm(step.norm, step.epsilon, step.x, 0, rows, inputs_, true);
  for_panels(weight.num_panels(),
             [&](int first, int count, Scratch& scratch) { run(inputs, 0, first, count, scratch); });
  for_rows(rows, step.q.cols + step.k.cols, [&](int row) { finish_heads(step, angles, row); });
}

// Panels [first, first + count) of gate with those of up, into their columns of `hidden`.
void PanelProducts::gate_panels(const MlpStep& step, const Inputs& x, int first, int count, uint16_t* hidden,
                                ptrdiff_t hidden_stride, std::vector<float>& sums) {
  const CpuLinear& weight = cpu(step.gate_up);
  const int half = weight.num_panels() / 2, ffn = weight.out_features() / 2;
  grow(sums, static_cast<size_t>(x.count) * 2 * kPanelOut);
  for (int panel = first; panel < first + count; ++panel) {
    multiply_panels({.x = x.rows,
                     .x_stride = x.stride,
                     .rows = x.count,
                     .in = weight.in_features(),
                     .panels = {weight.panel(panel), weight.panel(half + panel)},
                     .num_panels = 2,
                     .next = weight.panel(panel + 1),
                     .y = sums.data(),
                     .y_stride = 2 * kPanelOut});
    const int out = panel * kPanelOut;
    const float* bias = step.gate_up_bias;
    simd::gate_block_to_bf16({.gate = sums.data(),
                              .up = sums.data() + kPanelOut,
                              .stride = 2 * kPanelOut,
                              .gate_bias = bias == nullptr ? nullptr : bias + out,
                              .up_bias = bias == nullptr ? nullptr : bias + ffn + out,
                              .rows = x.count,
                              .cols = kPanelOut,
                              .gelu = step.activation == Activation::kGeluTanh,
                              .y = hidden + out,
                              .y_stride = hidden_stride});
  }
}

void PanelProducts::gated_mlp(const MlpStep& step) {
  const CpuLinear &gate_up = cpu(step.gate_up), &down = cpu(step.down);
  const int rows = step.x.rows, ffn = down.in_features(), gates = gate_up.num_panels() / 2;
  const ptrdiff_t stride = panel_row_stride(ffn);
  const auto run_down = [&](const Inputs& hidden, int first_row, int first, int count, Scratch& scratch) {
    multiply(down, hidden, first, count, scratch.sums,
             [&](int out, int outs, const float* sums, ptrdiff_t sums_stride) {
               store({sums, sums_stride, first_row, hidden.count, out, outs}, step.down_bias, step.accumulate,
                     step.y);
             });
  };
  if (by_rows(rows)) {
    return for_row_blocks(rows, ffn, [&](int first, int count, Scratch& scratch) {
      const Inputs inputs = norm(step.norm, step.epsilon, step.x, first, count, scratch.inputs, false);
      grow(scratch.hidden, static_cast<size_t>(count) * stride);
      gate_panels(step, inputs, 0, gates, scratch.hidden.data(), stride, scratch.sums);
      run_down({scratch.hidden.data(), stride, count}, first, 0, down.num_panels(), scratch);
    });
  }
  const Inputs inputs = norm(step.norm, step.epsilon, step.x, 0, rows, inputs_, true);
  grow(hidden_, static_cast<size_t>(rows) * stride);
  for_panels(gates, [&](int first, int count, Scratch& scratch) {
    gate_panels(step, inputs, first, count, hidden_.data(), stride, scratch.sums);
  });
  for_panels(down.num_panels(), [&](int first, int count, Scratch& scratch) {
    run_down({hidden_.data(), stride, rows}, 0, first, count, scratch);
  });
}

}  // namespace lowkey::kernels
