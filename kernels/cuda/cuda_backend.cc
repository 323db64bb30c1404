#include "kernels/cuda/cuda_backend.h"

#include <spdlog/fmt/fmt.h>

#include "base/check.h"
#include "kernels/cuda/argument_copies.h"
#include "kernels/cuda/cuda_attention.h"
#include "kernels/cuda/draw_kernels.h"
#include "kernels/cuda/elementwise_kernels.h"
#include "kernels/cuda/head_kernels.h"
#include "kernels/cuda/page_copies.h"
#include "kernels/cuda/step_recorder.h"
#include "kernels/cuda/weights.h"

namespace lowkey::kernels::cuda {
namespace {

// A head's 4-bit K or V of 64 tokens is 4 KB at d = 128: long enough for a bulk copy, short enough that a
// multiprocessor holds the dozens of pieces in flight that its share of the bandwidth takes.
constexpr int kPageTokens = 64;

class CudaBackend final : public Backend {
 public:
  // Members in the order they are made; freed in the opposite one, the stream last.
  struct Parts {
    Stream stream;
    std::shared_ptr<DevicePool> pool;
    std::unique_ptr<CudaPageCopies> copies;
    Weights weights;
    std::unique_ptr<LayoutCache> layouts;
    CudaAttention attention;
    StepAttention step_attention;
    ArgumentCopies arguments;
  };
  CudaBackend(DType dtype, Parts parts)
      : dtype_(dtype),
        parts_(std::move(parts)),
        stream_(parts_.stream.get()),
        recorder_(parts_.pool, stream_, parts_.step_attention, parts_.arguments) {}
  ~CudaBackend() override { (void)cudaStreamSynchronize(stream_); }

  DType dtype() const override { return dtype_; }
  std::unique_ptr<Buffer> allocate(size_t bytes) override;
  bool host_accessible() const override { return false; }
  void upload(std::span<const std::byte> from, std::byte* to) override;
  void download(const std::byte* from, std::span<std::byte> to) override;
  void synchronize() override { LOWKEY_CUDA_CHECK(cudaStreamSynchronize(stream_)); }
  PageCopies* page_copies() override { return parts_.copies.get(); }
  StepGraphs* step_graphs() override { return &recorder_; }
  int page_tokens() const override { return kPageTokens; }
  void* native_stream() override { return stream_; }

  std::unique_ptr<Linear> pack_linear(const void* weight, DType dtype, int out, int in,
                                      int64_t stride) override;
  std::unique_ptr<Linear> pack_embedding(const void* weight, DType dtype, int rows, int cols,
                                         int64_t stride) override {
    return pack_linear(weight, dtype, rows, cols, stride);
  }
  void linear(const Linear& weight, const Tensor& x, const float* bias, bool accumulate,
              const Tensor& y) override {
    if (x.rows == 0) return;
    parts_.weights.multiply(static_cast<const CudaLinear&>(weight), x, bias, accumulate, y);
  }
  void embed(const Linear& embedding, std::span<const int32_t> ids, int first_row, float scale,
             const Tensor& y) override;
  void rms_norm(const Tensor& x, const float* weight, float epsilon, const Tensor& y) override {
    launch_rms_norm(stream_, x.as<float>(), weight, epsilon, operand_of(y));
  }
  void rope(const RopeTable& table, std::span<const int32_t> positions, const Tensor& x) override;
  void gated(Activation activation, const Tensor& gate_up, const Tensor& y) override {
    launch_gated(stream_, activation == Activation::kSilu ? Gate::kSilu : Gate::kGelu, gate_up.as<float>(),
                 nullptr, operand_of(y));
  }
  void soft_cap(float cap, const Tensor& x) override {
    launch_soft_cap(stream_, cap, int64_t{x.rows} * x.cols, x.as<float>());
  }
  void add(const Tensor& x, const Tensor& y) override {
    launch_add(stream_, x.as<float>(), int64_t{x.rows} * x.cols, y.as<float>());
  }
  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) override {
    launch_gather_rows(stream_, x.as<float>(), parts_.arguments.copy(rows, stream_),
                       static_cast<int>(rows.size()), x.cols, y.as<float>());
  }
  void copy_columns(const Tensor& x, int first, const Tensor& y) override;

  void draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const TokenDraw> draws,
                   DrawnToken* tokens) override;

  void attend(const AttentionStep& step) override {
    if (parts_.step_attention.active()) return parts_.step_attention.attend(step);
    parts_.attention.attend(step);
  }
  void compact(const Compaction& compaction) override { parts_.attention.compact(compaction); }
  void project_heads(const HeadsStep& step) override;
  void gated_mlp(const MlpStep& step) override {
    if (step.x.rows > 0) parts_.weights.gated_mlp(step);
  }

 private:
  static Operand operand_of(const Tensor& y) { return {y.data, DType::kF32, y.rows, y.cols, y.cols}; }
  HeadsView heads_of(const RopeTable& table, std::span<const int32_t> positions, int rows);

  const DType dtype_;
  Parts parts_;
  const cudaStream_t stream_;
  StepRecorder recorder_;
};

std::unique_ptr<Buffer> CudaBackend::allocate(size_t bytes) {
  auto buffer = parts_.pool->allocate(bytes);
  LOWKEY_CHECK(buffer.ok(), "{}", buffer.error().message);
  LOWKEY_CUDA_CHECK(cudaMemsetAsync(buffer.value().data(), 0, bytes, stream_));
  synchronize();  // restored pages come on a stream of their own: none may be zeroed after it
  return std::make_unique<DeviceBuffer>(std::move(buffer).value());
}

void CudaBackend::upload(std::span<const std::byte> from, std::byte* to) {
  LOWKEY_CUDA_CHECK(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, stream_));
  synchronize();
}

void CudaBackend::download(const std::byte* from, std::span<std::byte> to) {
  LOWKEY_CUDA_CHECK(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_));
  synchronize();
}

std::unique_ptr<Linear> CudaBackend::pack_linear(const void* weight, DType dtype, int out, int in,
                                                 int64_t stride) {
  auto packed = parts_.weights.pack(weight, dtype, dtype_, out, in, stride);
  LOWKEY_CHECK(packed.ok(), "weight [{}, {}]: {}", out, in, packed.error().message);
  return std::move(packed).value();
}

void CudaBackend::embed(const Linear& embedding, std::span<const int32_t> ids, int first_row, float scale,
                        const Tensor& y) {
  const auto& table = static_cast<const CudaLinear&>(embedding);
  launch_embed(stream_, table.weight(), table.dtype(), table.out_features(), table.stride(),
               parts_.arguments.copy(ids, stream_), first_row, scale, static_cast<int>(ids.size()), y.cols,
               y.as<float>());
}

// Without heads.
HeadsView CudaBackend::heads_of(const RopeTable& table, std::span<const int32_t> positions, int rows) {
  LOWKEY_CHECK(static_cast<int>(positions.size()) == rows, "{} rows at {} positions", rows, positions.size());
  return {.rows = rows,
          .head_dim = table.head_dim,
          .inv_freq = parts_.arguments.keep(table.inv_freq, stream_),
          .positions = parts_.arguments.copy(positions, stream_),
          .half = static_cast<int>(table.inv_freq.size()),
          .factor = table.attention_factor};
}

void CudaBackend::rope(const RopeTable& table, std::span<const int32_t> positions, const Tensor& x) {
  LOWKEY_CHECK(x.cols % table.head_dim == 0, "rotation of {} columns, heads of {}", x.cols, table.head_dim);
  HeadsView view = heads_of(table, positions, x.rows);
  view.from = x.as<float>();
  view.q = {.to = x.as<float>(), .heads = x.cols / table.head_dim, .rotated = true};
  launch_place_heads(stream_, view);
}

void CudaBackend::project_heads(const HeadsStep& step) {
  if (step.x.rows == 0) return;
  const int dim = step.rope->head_dim;
  LOWKEY_CHECK(step.q.cols % dim == 0 && step.k.cols % dim == 0 && step.v.cols == step.k.cols &&
                   step.qkv.cols == step.q.cols + 2 * step.k.cols,
               "q {}, k {}, v {} of {} columns, heads of {}", step.q.cols, step.k.cols, step.v.cols,
               step.qkv.cols, dim);
  parts_.weights.multiply_normed(static_cast<const CudaLinear&>(*step.weight), step.x, step.norm,
                                 step.epsilon, step.qkv);
  HeadsView view = heads_of(*step.rope, step.positions, step.x.rows);
  view.from = step.qkv.as<float>();
  view.bias = step.bias;
  view.epsilon = step.epsilon;
  view.q = {step.q.as<float>(), step.q.cols / dim, step.q_norm, true};
  view.k = {step.k.as<float>(), step.k.cols / dim, step.k_norm, true};
  view.v = {step.v.as<float>(), step.v.cols / dim};
  // One row's may be in their places already.
  if (step.qkv.data == step.q.data && step.bias == nullptr) view.v.to = nullptr;
  launch_place_heads(stream_, view);
}

void CudaBackend::copy_columns(const Tensor& x, int first, const Tensor& y) {
  LOWKEY_CHECK(first >= 0 && first + y.cols <= x.cols && x.rows == y.rows,
               "columns {} of [{}, {}] -> [{}, {}]", first, x.rows, x.cols, y.rows, y.cols);
  launch_copy_columns(stream_, x.as<float>(), x.cols, first, y.rows, y.cols, y.as<float>());
}

void CudaBackend::draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const TokenDraw> draws,
                              DrawnToken* tokens) {
  LOWKEY_CHECK(
      parts >= 1 && logits.rows % parts == 0 && vocab <= parts * logits.cols && vocab < kMaxDrawVocab,
      "{} tokens in {} pieces of [{}, {}]", vocab, parts, logits.rows / parts, logits.cols);
  static_assert(sizeof(TokenDraw) % sizeof(int32_t) == 0);
  const std::span words(reinterpret_cast<const int32_t*>(draws.data()),
                        draws.size() * sizeof(TokenDraw) / sizeof(int32_t));
  launch_draw_tokens(stream_,
                     {logits.as<float>(), int64_t{logits.rows} / parts * logits.cols, logits.cols, vocab},
                     reinterpret_cast<const TokenDraw*>(parts_.arguments.copy(words, stream_)),
                     static_cast<int>(draws.size()), tokens);
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(int device, DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBf16)
    return Error{Code::kUsage, fmt::format("CUDA backend in {}: expected f32 or bf16", to_string(dtype))};
  LOWKEY_CUDA_TRY(cudaSetDevice(device));
  LOWKEY_ASSIGN(stream, Stream::create());
  const cudaStream_t view = stream.get();
  LOWKEY_ASSIGN(copies, CudaPageCopies::create(device, view));
  const auto pool = DevicePool::create();
  cudaDeviceProp properties;
  LOWKEY_CUDA_TRY(cudaGetDeviceProperties(&properties, device));
  LOWKEY_ASSIGN(weights, Weights::create(pool, view, properties.multiProcessorCount));
  const DeviceLimits limits{properties.multiProcessorCount,
                            static_cast<uint32_t>(properties.sharedMemPerBlockOptin)};
  auto layouts = std::make_unique<LayoutCache>(view);
  LOWKEY_ASSIGN(attention, CudaAttention::create(pool, view, *layouts, limits));
  LOWKEY_ASSIGN(step_attention, StepAttention::create(pool, view, *layouts, limits));
  LOWKEY_ASSIGN(arguments, ArgumentCopies::create());
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(
      dtype,
      CudaBackend::Parts{std::move(stream), pool, std::move(copies), std::move(weights), std::move(layouts),
                         std::move(attention), std::move(step_attention), std::move(arguments)}));
}

}  // namespace lowkey::kernels::cuda
