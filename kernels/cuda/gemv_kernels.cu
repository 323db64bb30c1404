#include "kernels/cuda/gemv_kernels.h"

#include "kernels/cuda/async_copies.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_math.h"

namespace lowkey::kernels::cuda {
namespace {

// Blocks stay, and take outputs in turn, so that x is fetched and rounded twice per multiprocessor instead of
// once for every few outputs: at 4,096 inputs it is as many bytes as two outputs' weights.
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kLoads = 4;  // 16-byte loads of a lane in flight: 64 KB of a multiprocessor
// Of x in shared memory, all rows together: what every device gives to a block.
constexpr int kTileBytes = 96 << 10;
constexpr int kPrefetchBytes = 8 << 10;  // of a warp's first output, while x is on its way

// 16 bytes of weights or of x as f32.
template <class T>
struct Sixteen;
template <>
struct Sixteen<uint16_t> {
  static constexpr int kCount = 8;
  __device__ static void unpack(const uint4& w, float* f) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f[2 * i] = as_float(words[i] << 16);
      f[2 * i + 1] = as_float(words[i] & 0xffff0000u);
    }
  }
  __device__ static uint16_t rounded(float x) {
    return to_bf16(x);
  }
};
template <>
struct Sixteen<float> {
  static constexpr int kCount = 4;
  __device__ static void unpack(const uint4& w, float* f) {
    f[0] = as_float(w.x);
    f[1] = as_float(w.y);
    f[2] = as_float(w.z);
    f[3] = as_float(w.w);
  }
  __device__ static float rounded(float x) { return x; }
};

template <class T, int kRows>
struct Gemv {
  using Load = Sixteen<T>;
  static constexpr int kLaneStep = kWarpSize * Load::kCount;
  static constexpr int kTile = kTileBytes / static_cast<int>(sizeof(T)) / kRows;
  static_assert(kTile % (kLaneStep * kLoads) == 0, "sums are in one order, whatever the tiles");

  const GemvWeight& weight;
  const GemvInput& input;
  T* const tile;  // [kRows][pitch]
  const int pitch;
  float scales[kRows];  // of the rows' norms
  int lane = threadIdx.x % kWarpSize;

  // Elements [begin, begin + kTile) of x; all threads.
  __device__ void stage(int begin) const {
    const int count = min(kTile, weight.stride - begin);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      for (int i = threadIdx.x; i < count; i += kRowThreads) {
        const int f = begin + i;
        float x = f < weight.in ? input.x[int64_t{r} * weight.in + f] : 0.0f;
        if (input.norm != nullptr && f < weight.in) x = x * scales[r] * input.norm[f];
        tile[r * pitch + i] = Load::rounded(x);
      }
    }
  }
  __device__ const T* row(int output) const {
    return static_cast<const T*>(weight.data) + int64_t{output} * weight.stride;
  }
  __device__ void prefetch(int output) const {
    const int bytes = min(kPrefetchBytes, weight.stride * static_cast<int>(sizeof(T)));
    for (int at = lane * 128; at < bytes; at += kWarpSize * 128)
      prefetch_l2(reinterpret_cast<const std::byte*>(row(output)) + at);
  }
  // Adds one output's products with the tile of x that begins at `begin`; one warp.
  __device__ void add_products(int output, int begin, float (&sums)[kRows]) const {
    const int count = min(kTile, weight.stride - begin);
    const T* from = row(output) + begin;
    for (int first = lane * Load::kCount; first < count; first += kLaneStep * kLoads) {
      uint4 loaded[kLoads];
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
        const int at = first + l * kLaneStep;
        loaded[l] = at < count ? *reinterpret_cast<const uint4*>(from + at) : uint4{0, 0, 0, 0};
      }
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
        const int at = first + l * kLaneStep;
        if (at >= count) break;
        float w[Load::kCount], x[Load::kCount];
        Load::unpack(loaded[l], w);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          Load::unpack(*reinterpret_cast<const uint4*>(tile + r * pitch + at), x);
#pragma unroll
          for (int i = 0; i < Load::kCount; ++i) sums[r] = fmaf(w[i], x[i], sums[r]);
        }
      }
    }
  }
};

// One warp per output, or per pair of a gate and what it lets through.
template <class T, int kRows, Gate kGate>
__global__ void __launch_bounds__(kRowThreads, kBlocksPerMultiprocessor)
    gemv(GemvWeight weight, GemvInput input, GemvOutput output) {
  LOWKEY_SHARED(float, shared);  // scratch of norms, then x
  constexpr int kParts = kGate == Gate::kNone ? 1 : 2;
  const int outputs = weight.out / kParts, warp = threadIdx.x / kWarpSize;
  Gemv<T, kRows> product{weight, input, reinterpret_cast<T*>(shared + kRowWarps),
                         min(Gemv<T, kRows>::kTile, weight.stride)};
  // Neighbouring outputs go to different multiprocessors, so that all have as many.
  const int step = gridDim.x * kRowWarps, own = warp * gridDim.x;
  if (static_cast<int>(blockIdx.x) + own < outputs) product.prefetch(blockIdx.x + own);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    product.scales[r] = 1;
    if (input.norm == nullptr) continue;
    product.scales[r] = row_scale(input.x + int64_t{r} * weight.in, weight.in, input.epsilon, shared);
    __syncthreads();
  }
  const bool whole = weight.stride <= product.kTile;
  if (whole) {
    product.stage(0);
    __syncthreads();
  }
  for (int first = blockIdx.x; first < outputs; first += step) {
    const int o = first + own;
    float sums[kParts][kRows] = {};
    for (int begin = 0; begin < weight.stride; begin += product.kTile) {
      if (!whole) {
        __syncthreads();
        product.stage(begin);
        __syncthreads();
      }
      if (o >= outputs) continue;
#pragma unroll
      for (int part = 0; part < kParts; ++part) product.add_products(o + part * outputs, begin, sums[part]);
    }
    if (o >= outputs) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float values[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        values[part] =
            sum_over(sums[part][r]) + (output.bias == nullptr ? 0.0f : output.bias[o + part * outputs]);
      float* target = output.y + int64_t{r} * outputs + o;
      if (product.lane != 0) continue;
      if constexpr (kGate == Gate::kNone) {
        *target = values[0] + (output.accumulate ? *target : 0.0f);
      } else {
        *target = gated_value<kGate>(values[0], values[1]);
      }
    }
  }
}

template <class T, int kRows>
void launch_rows(cudaStream_t stream, const GemvWeight& weight, const GemvInput& input,
                 const GemvOutput& output, int multiprocessors) {
  const int outputs = output.gate == Gate::kNone ? weight.out : weight.out / 2;
  const int blocks = min(ceil_div(outputs, kRowWarps), multiprocessors * kBlocksPerMultiprocessor);
  const size_t x_bytes = size_t(kRows) * min(Gemv<T, kRows>::kTile, weight.stride) * sizeof(T);
  const LaunchShape shape{dim3(blocks), dim3(kRowThreads), kRowWarps * sizeof(float) + x_bytes};
  switch (output.gate) {
    case Gate::kNone:
      return launch(gemv<T, kRows, Gate::kNone>, shape, stream, weight, input, output);
    case Gate::kSilu:
      return launch(gemv<T, kRows, Gate::kSilu>, shape, stream, weight, input, output);
    case Gate::kGelu:
      return launch(gemv<T, kRows, Gate::kGelu>, shape, stream, weight, input, output);
  }
}

}  // namespace

void launch_gemv(cudaStream_t stream, const GemvWeight& weight, DType dtype, const GemvInput& input,
                 const GemvOutput& output, int multiprocessors) {
  LOWKEY_CUDA_CHECK(input.rows >= 1 && input.rows <= kMaxGemvRows && weight.stride % 8 == 0
                        ? cudaSuccess
                        : cudaErrorInvalidValue);
  const auto run = [&](auto launch_typed) { launch_typed(stream, weight, input, output, multiprocessors); };
  if (dtype == DType::kF32) {
    input.rows == 1 ? run(launch_rows<float, 1>) : run(launch_rows<float, 2>);
  } else {
    input.rows == 1 ? run(launch_rows<uint16_t, 1>) : run(launch_rows<uint16_t, 2>);
  }
}

}  // namespace lowkey::kernels::cuda
