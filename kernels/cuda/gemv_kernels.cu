#include "kernels/cuda/gemv_kernels.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kLoads = 4;          // 16-byte loads of a lane in flight
constexpr int kTileFloats = 8192;  // of x in shared memory, all rows together

// 16 bytes of weights as f32.
template <class T>
struct Eight;
template <>
struct Eight<uint16_t> {
  static constexpr int kCount = 8;
  __device__ static void unpack(const uint4& w, float* f) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f[2 * i] = as_float(words[i] << 16);
      f[2 * i + 1] = as_float(words[i] & 0xffff0000u);
    }
  }
  __device__ static float round(float x) {
    return from_bf16(to_bf16(x));
  }
};
template <>
struct Eight<float> {
  static constexpr int kCount = 4;
  __device__ static void unpack(const uint4& w, float* f) {
    f[0] = as_float(w.x);
    f[1] = as_float(w.y);
    f[2] = as_float(w.z);
    f[3] = as_float(w.w);
  }
  __device__ static float round(float x) { return x; }
};

// One warp per output; x by tiles through shared memory, interleaved so that a lane's eight lie together.
template <class T, int kRows>
__global__ void gemv(const T* weight, int out, int in, int stride, const float* x, const float* bias,
                     bool accumulate, float* y) {
  LOWKEY_SHARED(float, tile);
  using Load = Eight<T>;
  constexpr int kTile = kTileFloats / kRows / (kWarpSize * 8) * (kWarpSize * 8);
  const int lane = threadIdx.x % kWarpSize, o = blockIdx.x * kWarps + threadIdx.x / kWarpSize;
  const T* row = weight + int64_t{o < out ? o : 0} * stride;
  float sums[kRows] = {};
  for (int begin = 0; begin < stride; begin += kTile) {
    const int count = min(kTile, stride - begin);
    __syncthreads();
    for (int i = threadIdx.x; i < count * kRows; i += kThreads)
      tile[i / count * kTile + i % count] =
          begin + i % count < in ? Load::round(x[int64_t{i / count} * in + begin + i % count]) : 0.0f;
    __syncthreads();
    for (int first = lane * Load::kCount; first < count; first += kWarpSize * Load::kCount * kLoads) {
      uint4 loaded[kLoads];
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
        const int at = first + l * kWarpSize * Load::kCount;
        loaded[l] = at < count ? *reinterpret_cast<const uint4*>(row + begin + at) : uint4{0, 0, 0, 0};
      }
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
        const int at = first + l * kWarpSize * Load::kCount;
        if (at >= count) break;
        float w[Load::kCount];
        Load::unpack(loaded[l], w);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < Load::kCount; ++i) sums[r] = fmaf(w[i], tile[r * kTile + at + i], sums[r]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = sum_over(sums[r]);
  if (lane != 0 || o >= out) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float* target = y + int64_t{r} * out + o;
    *target = sums[r] + (bias == nullptr ? 0.0f : bias[o]) + (accumulate ? *target : 0.0f);
  }
}

template <class T>
void launch_rows(cudaStream_t stream, const T* weight, int out, int in, int stride, const float* x, int rows,
                 const float* bias, bool accumulate, float* y) {
  const LaunchShape shape{dim3(ceil_div(out, kWarps)), dim3(kThreads), kTileFloats * sizeof(float)};
  switch (rows) {
    case 1:
      return launch(gemv<T, 1>, shape, stream, weight, out, in, stride, x, bias, accumulate, y);
    case 2:
      return launch(gemv<T, 2>, shape, stream, weight, out, in, stride, x, bias, accumulate, y);
    case 4:
      return launch(gemv<T, 4>, shape, stream, weight, out, in, stride, x, bias, accumulate, y);
    case 8:
      return launch(gemv<T, 8>, shape, stream, weight, out, in, stride, x, bias, accumulate, y);
    default:
      break;
  }
  // What is left of a power of two.
  const int part = rows > 4 ? 4 : 2;
  launch_rows(stream, weight, out, in, stride, x, part, bias, accumulate, y);
  launch_rows(stream, weight, out, in, stride, x + int64_t{part} * in, rows - part, bias, accumulate,
              y + int64_t{part} * out);
}

}  // namespace

void launch_gemv(cudaStream_t stream, const void* weight, DType dtype, int out, int in, int stride,
                 const float* x, int rows, const float* bias, bool accumulate, float* y) {
  LOWKEY_CUDA_CHECK(rows >= 1 && rows <= kMaxGemvRows && stride % 8 == 0 ? cudaSuccess
                                                                         : cudaErrorInvalidValue);
  if (dtype == DType::kF32) {
    launch_rows(stream, static_cast<const float*>(weight), out, in, stride, x, rows, bias, accumulate, y);
  } else {
    launch_rows(stream, static_cast<const uint16_t*>(weight), out, in, stride, x, rows, bias, accumulate, y);
  }
}

}  // namespace lowkey::kernels::cuda
