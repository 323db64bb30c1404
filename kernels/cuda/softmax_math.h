// Scores and weights as all the plain attention kernels have them.
#pragma once

#include "kernels/cuda/step_view.h"

namespace lowkey::kernels::cuda {

__device__ __forceinline__ float capped(const StepView& step, float score) {
  return step.soft_cap == 0.0f ? score : step.soft_cap * tanhf(score / step.soft_cap);
}

// e^(x - maximum), 0 where nothing was seen.
__device__ __forceinline__ float weight_of(float x, float maximum) {
  return x == -INFINITY ? 0.0f : expf(x - maximum);
}

}  // namespace lowkey::kernels::cuda
