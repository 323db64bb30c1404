// Products with weights in panels (kernels/cpu/bf16_panels.h), and what comes before and after them, in one
// pass over the pool each. Inputs become bf16 once, results leave f32 sums only as what the next operation
// reads.
//
// Many rows are cut by rows: a block's inputs and results stay in the L2 cache of one thread while all
// weights pass. Few are cut by outputs: every weight is read once, by one thread. The bits are the same.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/cpu_linear.h"
#include "kernels/cpu/rope_cache.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class ComputePool;

class PanelProducts {
 public:
  explicit PanelProducts(ComputePool& pool);

  // As in Backend. REQUIRES: all weights have panels; gated_mlp: whole panels of gate and of up.
  void linear(const CpuLinear& weight, const Tensor& x, const float* bias, bool accumulate, const Tensor& y);
  void project_heads(const HeadsStep& step, const RopeCache::Angles& angles);
  void gated_mlp(const MlpStep& step);

  static bool can_gate(const CpuLinear& gate_up) { return gate_up.out_features() % (2 * kPanelOut) == 0; }

 private:
  // Rows in bf16, as panels want them.
  struct Inputs {
    const uint16_t* rows = nullptr;
    ptrdiff_t stride = 0;
    int count = 0;
  };
  struct Outputs;
  // Some panels of a weight; those up to `follow_to` come next on the same thread, most likely.
  struct Panels {
    int first = 0;
    int count = 0;
    int follow_to = 0;
  };
  struct Scratch {
    std::vector<uint16_t> inputs, hidden;
    std::vector<float> sums;
  };

  bool by_rows(int rows) const;
  // body(first row, rows, scratch) for every block.
  template <class Body>
  void for_row_blocks(int rows, int in, Body body);
  static Panels all_panels(const CpuLinear& weight) { return {0, weight.num_panels(), weight.num_panels()}; }
  // body(Panels, scratch) for parts of `panels`.
  template <class Body>
  void for_panels(int panels, Body body);
  // body(row) for every row.
  template <class Body>
  void for_rows(int rows, int cols, Body body);
  // fill(row, target) writes `in` elements of each of `count` rows from `first` on.
  template <class Fill>
  Inputs make_inputs(std::vector<uint16_t>& memory, int first, int count, int in, bool parallel, Fill fill);
  // x's rows, the first of which is `first_row` of the outputs, with the panels.
  void multiply(const CpuLinear& weight, const Inputs& x, int first_row, const Panels& panels,
                std::vector<float>& sums, const Outputs& outputs);

  Inputs norm(const float* weight, float epsilon, const Tensor& x, int first, int count,
              std::vector<uint16_t>& memory, bool parallel);
  void gate_panels(const MlpStep& step, const Inputs& x, const Panels& panels, uint16_t* hidden,
                   ptrdiff_t hidden_stride, std::vector<float>& sums);
  void finish_heads(const HeadsStep& step, const RopeCache::Angles& angles, int row, bool wants_q) const;

  ComputePool& pool_;
  std::vector<Scratch> scratch_;           // of each thread
  std::vector<uint16_t> inputs_, hidden_;  // of all rows, where outputs are cut
};

}  // namespace lowkey::kernels
