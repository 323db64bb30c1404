// Queries on their way to encoded pages: into the coordinates of the keys, and into the operands of the fast
// kernels.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/decode_attention.h"

namespace lowkey::kernels::cuda {

// Fills the biases of `map`, one of step.maps, and its queries; where there is a fast kernel (fast.kind), the
// rounded ones of `fast` instead.
void launch_map_queries(cudaStream_t stream, const StepView& step, const DeviceMap& map,
                        const FastStep& fast);

}  // namespace lowkey::kernels::cuda
