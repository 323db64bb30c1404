// The embedded codes (kernels/page/embedded_quantizer.h) as an operation with a gradient.
#pragma once

#include <torch/torch.h>

namespace lowkey::kvstore {

// What is read back of u [..., features] when feature f is coded with bits[..., f] bits (0, 2, 4, 8; others
// as u itself: no quantizer), `bits` int64 broadcast to u. Backward: the identity (straight-through
// estimator, Bengio et al. 2013), zero where bits are 0.
torch::Tensor straight_through(const torch::Tensor& u, const torch::Tensor& bits);

// The row norm that u = y / scale is divided by before coding: max(rms, absmax / edge) over the features with
// stored != 0 [..., features], [..., 1]; rounded up to bf16 as embedded_row_scalar(), with the gradient
// of the unrounded norm.
torch::Tensor row_norm(const torch::Tensor& u, const torch::Tensor& stored, double edge);

}  // namespace lowkey::kvstore
