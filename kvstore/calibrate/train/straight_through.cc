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

// base[hi] + step[hi] lo, clipped at the outer edges.
torch::Tensor fine_value_of(const torch::Tensor& u) {
  const kernels::EmbeddedTables& tables = kernels::embedded_tables();
  static const torch::Tensor edges = torch::tensor(std::vector<float>(tables.edge, tables.edge + 16));
  static const torch::Tensor base = torch::tensor(std::vector<float>(tables.base, tables.base + 16));
  static const torch::Tensor step = torch::tensor(std::vector<float>(tables.step, tables.step + 16));
  const torch::Tensor cell = torch::bucketize(u, edges.slice(0, 1), /*out_int32=*/false, /*right=*/true);
  const torch::Tensor width = step.index({cell});
  const torch::Tensor low = ((u - edges.index({cell})) / width).floor().clamp(0, 15);
  return base.index({cell}) + width * low;
}

// Only the widths that occur are computed.
torch::Tensor coded(const torch::Tensor& u, const torch::Tensor& bits) {
  static const Cells two = make_cells(2), four = make_cells(4);
  torch::Tensor value = u;
  const auto fill = [&](int64_t width, const auto& value_at) {
    const torch::Tensor here = bits == width;
    if (here.any().item<bool>()) value = torch::where(here, value_at(), value);
  };
  fill(8, [&] { return fine_value_of(u); });
  fill(4, [&] { return value_of(u, four); });
  fill(2, [&] { return value_of(u, two); });
  return value;
}

// The next bf16 at or above, of positive numbers.
torch::Tensor bf16_up(const torch::Tensor& x) {
  return x.view(torch::kInt32).add(0xffff).bitwise_and(~0xffff).view(torch::kFloat32);
}

}  // namespace

torch::Tensor straight_through(const torch::Tensor& u, const torch::Tensor& bits) {
  const torch::Tensor fixed = u.detach();
  return (u + (coded(fixed, bits) - fixed)) * (bits > 0);
}

torch::Tensor row_norm(const torch::Tensor& u, const torch::Tensor& stored, double edge) {
  const torch::Tensor kept = u * stored;
  const torch::Tensor count = stored.sum(-1, /*keepdim=*/true).clamp_min(1);
  // The square root of 0, where nothing is stored, has no gradient.
  const torch::Tensor rms = (kept.square().sum(-1, true) / count + 1e-24).sqrt();
  const torch::Tensor norm = torch::maximum(rms, kept.abs().amax(-1, true) / edge).clamp_min(1e-12);
  return norm * (bf16_up(norm.detach()) / norm.detach());
}

}  // namespace lowkey::kvstore
