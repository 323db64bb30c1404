// The Cayley map: orthogonal matrices as a smooth function of unconstrained ones.
#pragma once

#include <torch/torch.h>

namespace lowkey::kvstore {

// U = (I - A/2)^-1 (I + A/2) with A = X - X^T, for every matrix of x [..., d, d]. U is a rotation, the
// identity at X = 0; rotations with an eigenvalue -1 are out of reach, so U multiplies a given basis and does
// not replace it (MatryoshkaKV, arXiv:2410.14731, inverts the map instead, which blows up near -1).
torch::Tensor cayley(const torch::Tensor& x);

}  // namespace lowkey::kvstore
