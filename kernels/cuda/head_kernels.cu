#include "kernels/cuda/head_kernels.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_math.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
// Fewer rows than these are spread over blocks by their heads, each of which makes the angles once more.
constexpr int kManyRows = 64;

// Angles are reduced to one turn in f64: positions reach the hundred thousands.
__device__ void fill_turns(const HeadsView& view, float* turns) {
  constexpr double kTurn = 6.283185307179586;
  const double position = view.positions[blockIdx.x];
  for (int i = threadIdx.x; i < view.half; i += kThreads) {
    const double angle = double{view.inv_freq[i]} * position;
    const auto reduced = static_cast<float>(angle - kTurn * rint(angle * (1 / kTurn)));
    turns[i] = cosf(reduced) * view.factor;
    turns[view.half + i] = sinf(reduced) * view.factor;
  }
}

// One head, by a warp: `bias` and `part.norm` may be null. `to` may be `from`: a lane reads what it writes.
__device__ void place_head(const HeadsView& view, const HeadPart& part, const float* turns, const float* from,
                           const float* bias, float* to) {
  const int lane = threadIdx.x % kWarpSize, dim = view.head_dim;
  const auto biased = [&](int f) { return bias == nullptr ? from[f] : from[f] + bias[f]; };
  const float scale = part.norm == nullptr ? 1.0f : short_row_scale(dim, view.epsilon, biased);
  const auto value = [&](int f) {
    return part.norm == nullptr ? biased(f) : biased(f) * scale * part.norm[f];
  };
  const int half = part.rotated ? view.half : 0;
  for (int i = lane; i < half; i += kWarpSize) {
    const float a = value(i), b = value(i + half), c = turns[i], s = turns[half + i];
    to[i] = a * c - b * s;
    to[i + half] = b * c + a * s;
  }
  for (int f = 2 * half + lane; f < dim; f += kWarpSize) to[f] = value(f);
}

// Grid: (rows, shares of the heads).
__global__ void place_heads(HeadsView view) {
  LOWKEY_SHARED(float, turns);  // cosines, then sines
  fill_turns(view, turns);
  __syncthreads();
  const int heads = view.q.heads + view.k.heads + view.v.heads, warp = threadIdx.x / kWarpSize;
  const int64_t row = blockIdx.x;
  for (int h = blockIdx.y * kWarps + warp; h < heads; h += gridDim.y * kWarps) {
    const bool of_q = h < view.q.heads, of_k = !of_q && h < view.q.heads + view.k.heads;
    const HeadPart& part = of_q ? view.q : of_k ? view.k : view.v;
    if (part.to == nullptr) continue;
    const int own = of_q ? h : of_k ? h - view.q.heads : h - view.q.heads - view.k.heads;
    place_head(view, part, turns, view.from + (row * heads + h) * view.head_dim,
               view.bias == nullptr ? nullptr : view.bias + h * view.head_dim,
               part.to + (row * part.heads + own) * view.head_dim);
  }
}

}  // namespace

void launch_place_heads(cudaStream_t stream, const HeadsView& view) {
  const int heads = view.q.heads + view.k.heads + view.v.heads;
  const int shares = view.rows < kManyRows ? ceil_div(heads, kWarps) : 1;
  launch(place_heads, {dim3(view.rows, shares), dim3(kThreads), 2 * view.half * sizeof(float)}, stream, view);
}

}  // namespace lowkey::kernels::cuda
