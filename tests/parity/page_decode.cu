#include <cuda_runtime.h>

#include <vector>

#include "tests/parity/page_decode.cuh"

namespace lowkey::parity {
namespace {

using namespace kernels;

// One thread per (token, feature).
__global__ void decode_kernel(VectorLayout vector, const Plane* planes, const EmbeddedTables* tables,
                              const unsigned char* slab, int page_tokens, float* rows) {
  const int token = threadIdx.x;
  const int feature = blockIdx.x;
  const Plane plane = planes[vector.first_plane + feature / kGroupFeatures];
  const int f = feature - plane.feature;
  const size_t byte = vector.side == Side::kKey
                          ? (static_cast<size_t>(f / 4) * page_tokens + token) * 4 + f % 4
                          : (static_cast<size_t>(token / 4) * plane.features + f) * 4 + token % 4;
  const unsigned char code = slab[plane.offset + byte];
  const unsigned short scalar_bits =
      reinterpret_cast<const unsigned short*>(slab + vector.scalars_offset)[token];
  const float scalar = __uint_as_float(static_cast<unsigned>(scalar_bits) << 16);
  const float value = __fadd_rn(tables->base[code >> 4], __fmul_rn(tables->step[code >> 4], code & 15));
  rows[token * vector.dim + feature] = __fmul_rn(value, scalar);
}

template <class T>
class DeviceArray {
 public:
  DeviceArray(const T* host, size_t n) : bytes_(n * sizeof(T)) {
    if (cudaMalloc(&data_, bytes_) == cudaSuccess) cudaMemcpy(data_, host, bytes_, cudaMemcpyHostToDevice);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  void read(T* host) const { cudaMemcpy(host, data_, bytes_, cudaMemcpyDeviceToHost); }

 private:
  T* data_ = nullptr;
  size_t bytes_;
};

}  // namespace

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* decode_embedded8(const VectorLayout& vector, const Plane* planes, int num_planes,
                             const EmbeddedTables& tables, const unsigned char* slab, int slab_bytes,
                             int page_tokens, float* rows) {
  const DeviceArray<Plane> device_planes(planes, num_planes);
  const DeviceArray<EmbeddedTables> device_tables(&tables, 1);
  const DeviceArray<unsigned char> device_slab(slab, slab_bytes);
  const DeviceArray<float> device_rows(rows, static_cast<size_t>(page_tokens) * vector.dim);
  decode_kernel<<<vector.dim, page_tokens>>>(vector, device_planes.get(), device_tables.get(),
                                             device_slab.get(), page_tokens, device_rows.get());
  device_rows.read(rows);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace lowkey::parity
