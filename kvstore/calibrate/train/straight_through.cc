#include "kvstore/calibrate/train/straight_through.h"

#include <vector>

#include "kernels/page/embedded_quantizer.h"

namespace lowkey::kvstore {
namespace {

// Inner boundaries and values of the cells of 2^bits codes.
struct Cells {
  torch::Tensor edges, values;
};

Cells make_cells(int bits) {
  const kernels::EmbeddedTables& tables = kernels::embedded_tables();
  const int cells = 1 << bits, stride = 16 / cells;
  std::vector<float> edges, values;
  for (int i = 0; i < cells; ++i) {
    if (i > 0) edges.push_back(tables.edge[i * stride]);
    values.push_back(kernels::embedded_value(static_cast<uint8_t>(i), bits));
  }
  return {torch::tensor(edges), torch::tensor(values)};
}

torch::Tensor value_of(const torch::Tensor& u, const Cells& cells) {
  return cells.values.index({torch::bucketize(u, cells.edges, /*out_int32=*/false, /*right=*/true)});
}

// Steps of 8 bits are small against everything that is trained here: only the clipping counts.
torch::Tensor coded(const torch::Tensor& u, const torch::Tensor& bits) {
  static const Cells two = make_cells(2), four = make_cells(4);
  torch::Tensor value = torch::where(bits == 4, value_of(u, four), u);
  value = torch::where(bits == 2, value_of(u, two), value);
  return torch::where(bits == 8, u.clamp(-kernels::kEmbeddedEdge, kernels::kEmbeddedEdge), value);
}

}  // namespace

torch::Tensor straight_through(const torch::Tensor& u, const torch::Tensor& bits) {
  const torch::Tensor fixed = u.detach();
  return (u + (coded(fixed, bits) - fixed)) * (bits > 0);
}

torch::Tensor row_norm(const torch::Tensor& u, const torch::Tensor& stored, double edge) {
  const torch::Tensor kept = u * stored;
  const torch::Tensor count = stored.sum(-1, /*keepdim=*/true).clamp_min(1);
  const torch::Tensor rms = (kept.square().sum(-1, true) / count).sqrt();
  return torch::maximum(rms, kept.abs().amax(-1, true) / edge).clamp_min(1e-12);
}

}  // namespace lowkey::kvstore
