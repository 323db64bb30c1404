#include <cublasLt.h>
#include <spdlog/fmt/fmt.h>

#include <map>

#include "base/check.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/gemm.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA recommends for Hopper
constexpr uint32_t kBestAlignment = 256;              // what the library takes operands to have, unless told

// Of all of them: rows of a larger matrix are operands, too, and begin anywhere.
uint32_t common_alignment(const void* x, const void* w, const void* y) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(w) |
                         reinterpret_cast<uintptr_t>(y) | kBestAlignment;
  return static_cast<uint32_t>(bits & -bits);
}

Status lt_status(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return Error{Code::kInternal,
               fmt::format("{}:{}: {}: {}", file, line, call, cublasLtGetStatusString(status))};
}
#define LOWKEY_LT_STATUS(call) lt_status((call), #call, __FILE__, __LINE__)
#define LOWKEY_LT_TRY(call) LOWKEY_TRY(LOWKEY_LT_STATUS(call))

struct LtDeleter {
  void operator()(cublasLtHandle_t handle) const { (void)cublasLtDestroy(handle); }
  void operator()(cublasLtMatmulDesc_t handle) const { (void)cublasLtMatmulDescDestroy(handle); }
  void operator()(cublasLtMatrixLayout_t handle) const { (void)cublasLtMatrixLayoutDestroy(handle); }
  void operator()(cublasLtMatmulPreference_t handle) const { (void)cublasLtMatmulPreferenceDestroy(handle); }
};
template <class Handle>
using LtHandle = std::unique_ptr<std::remove_pointer_t<Handle>, LtDeleter>;

Result<LtHandle<cublasLtMatrixLayout_t>> make_layout(cudaDataType_t type, int rows, int cols) {
  cublasLtMatrixLayout_t layout = nullptr;
  LOWKEY_LT_TRY(cublasLtMatrixLayoutCreate(&layout, type, rows, cols, rows));
  return LtHandle<cublasLtMatrixLayout_t>(layout);
}

// A product, and where its operands lie: an algorithm may want more than 16 bytes of alignment.
using ProductKey = std::pair<GemmShape, uint32_t>;

// Its descriptors and the algorithm that the library's heuristic puts first.
struct Product {
  LtHandle<cublasLtMatmulDesc_t> operation;
  LtHandle<cublasLtMatrixLayout_t> w, x, y;
  cublasLtMatmulAlgo_t algorithm;
};

class CublasLtGemm final : public Gemm {
 public:
  CublasLtGemm(cudaStream_t stream, cublasLtHandle_t handle, DeviceBuffer workspace)
      : stream_(stream), handle_(handle), workspace_(std::move(workspace)) {}

  void multiply(const GemmShape& shape, const void* x, const void* w, float* y) override {
    const ProductKey key{shape, common_alignment(x, w, y)};
    auto found = products_.find(key);
    if (found == products_.end()) {
      auto made = make(shape, key.second);
      LOWKEY_CHECK(made.ok(), "product [{}, {}] on {} rows: {}", shape.out, shape.in, shape.rows,
                   made.error().message);
      found = products_.emplace(key, std::move(made).value()).first;
    }
    const Product& product = found->second;
    const float one = 1, beta = shape.accumulate ? 1.0f : 0.0f;
    const Status status =
        LOWKEY_LT_STATUS(cublasLtMatmul(handle_.get(), product.operation.get(), &one, w, product.w.get(), x,
                                        product.x.get(), &beta, y, product.y.get(), y, product.y.get(),
                                        &product.algorithm, workspace_.data(), kWorkspaceBytes, stream_));
    LOWKEY_CHECK(status.ok(), "{}", status.error().message);
  }

 private:
  // The library's matrices are column-major: y^T [out][rows] = w [in][out]^T x^T [in][rows].
  Result<Product> make(const GemmShape& shape, uint32_t alignment) const {
    const cudaDataType_t type = shape.dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasLtMatmulDesc_t operation = nullptr;
    LOWKEY_LT_TRY(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LtHandle<cublasLtMatmulDesc_t> owner(operation);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    LOWKEY_LT_TRY(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                 sizeof(transposed)));
    LOWKEY_ASSIGN(w, make_layout(type, shape.in, shape.out));
    LOWKEY_ASSIGN(x, make_layout(type, shape.in, shape.rows));
    LOWKEY_ASSIGN(y, make_layout(CUDA_R_32F, shape.out, shape.rows));
    cublasLtMatmulPreference_t preference = nullptr;
    LOWKEY_LT_TRY(cublasLtMatmulPreferenceCreate(&preference));
    const LtHandle<cublasLtMatmulPreference_t> preference_owner(preference);
    const size_t workspace = kWorkspaceBytes;
    LOWKEY_LT_TRY(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                       &workspace, sizeof(workspace)));
    for (const auto operand :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      LOWKEY_LT_TRY(cublasLtMatmulPreferenceSetAttribute(preference, operand, &alignment, sizeof(alignment)));
    cublasLtMatmulHeuristicResult_t best{};
    int count = 0;
    LOWKEY_LT_TRY(cublasLtMatmulAlgoGetHeuristic(handle_.get(), operation, w.get(), x.get(), y.get(), y.get(),
                                                 preference, 1, &best, &count));
    if (count == 0 || best.state != CUBLAS_STATUS_SUCCESS)
      return Error{Code::kInternal, "cuBLASLt has no algorithm for it"};
    return Product{std::move(owner), std::move(w), std::move(x), std::move(y), best.algo};
  }

  cudaStream_t stream_;
  LtHandle<cublasLtHandle_t> handle_;
  DeviceBuffer workspace_;
  std::map<ProductKey, Product> products_;
};

}  // namespace

Result<std::unique_ptr<Gemm>> Gemm::create(cudaStream_t stream) {
  cublasLtHandle_t handle = nullptr;
  LOWKEY_LT_TRY(cublasLtCreate(&handle));
  LtHandle<cublasLtHandle_t> owner(handle);
  LOWKEY_ASSIGN(workspace, DeviceBuffer::create(kWorkspaceBytes));
  return std::unique_ptr<Gemm>(new CublasLtGemm(stream, owner.release(), std::move(workspace)));
}

}  // namespace lowkey::kernels::cuda
