#include "kvstore/calibrate/train/cayley.h"

namespace lowkey::kvstore {

torch::Tensor cayley(const torch::Tensor& x) {
  const torch::Tensor half = (x - x.transpose(-1, -2)) * 0.5;
  const torch::Tensor identity = torch::eye(x.size(-1), x.options());
  return torch::linalg_solve(identity - half, identity + half);
}

}  // namespace lowkey::kvstore
