#include "kernels/cpu/matmul_cache.h"

#include <dlfcn.h>

#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <unordered_map>

#include "base/check.h"
#include "kernels/ops/host_buffer.h"

namespace lowkey::kernels {
namespace {

using dnnl::memory;

memory::data_type data_type(DType dtype) {
  return dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
}

// Debian's oneDNN parallelizes with libgomp, whose team size is a setting of each calling thread. Looked up
// at run time, because oneDNN pulls the library in, not we; a oneDNN built without OpenMP needs no such call.
void use_one_openmp_thread() {
  using SetThreads = void (*)(int);
  static const auto set_threads = reinterpret_cast<SetThreads>(::dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set_threads != nullptr) set_threads(1);
}

// Rows for which the weight format is asked; any number gives the same one (checked when a primitive is
// made).
constexpr int kTypicalRows = 16;

memory::desc weight_desc(int in, int out, DType dtype, const dnnl::engine& engine) {
  const memory::desc x({kTypicalRows, in}, data_type(dtype), memory::format_tag::ab);
  const memory::desc w({in, out}, data_type(dtype), memory::format_tag::any);
  const memory::desc y({kTypicalRows, out}, memory::data_type::f32, memory::format_tag::ab);
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(x, w, y), engine).weights_desc();
}

// Offsets of the positions of one dimension in a blocked format; inner blocks go from outermost to innermost.
std::vector<uint32_t> dimension_offsets(const dnnl_memory_desc_t& desc, int dimension) {
  const dnnl_blocking_desc_t& blocking = desc.format_desc.blocking;
  std::vector<uint32_t> offsets(desc.dims[dimension]);
  for (size_t i = 0; i < offsets.size(); ++i) {
    dnnl_dim_t position = static_cast<dnnl_dim_t>(i), offset = 0, inner_stride = 1;
    for (int b = blocking.inner_nblks - 1; b >= 0; --b) {
      const dnnl_dim_t size = blocking.inner_blks[b];
      if (blocking.inner_idxs[b] == dimension) {
        offset += position % size * inner_stride;
        position /= size;
      }
      inner_stride *= size;
    }
    offsets[i] = static_cast<uint32_t>(offset + position * blocking.strides[dimension]);
  }
  return offsets;
}

}  // namespace

class Matmul {
 public:
  Matmul(const MatmulCall& call, const dnnl::engine& engine, int threads) {
    const memory::desc x({call.rows, call.in}, data_type(call.dtype), memory::format_tag::ab);
    const memory::desc w = weight_desc(call.in, call.out, call.dtype, engine);
    const memory::desc y({call.rows, call.out}, memory::data_type::f32, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // the library's own is tied to one thread
    const dnnl::matmul::primitive_desc primitive_desc(dnnl::matmul::desc(x, w, y), attributes, engine);
    primitive_ = dnnl::matmul(primitive_desc);
    scratch_bytes_ = primitive_desc.scratchpad_desc().get_size();
    for (int i = 0; i < threads; ++i) {
      Arguments& arguments = arguments_.emplace_back();
      arguments[DNNL_ARG_SRC] = memory(x, engine, nullptr);
      arguments[DNNL_ARG_WEIGHTS] = memory(w, engine, nullptr);
      arguments[DNNL_ARG_DST] = memory(y, engine, nullptr);
      arguments[DNNL_ARG_SCRATCHPAD] = memory(primitive_desc.scratchpad_desc(), engine, nullptr);
    }
  }

  size_t scratch_bytes() const { return scratch_bytes_; }

  void run(const dnnl::stream& stream, int thread, const void* x, const void* weight, float* y,
           void* scratch) {
    Arguments& arguments = arguments_[thread];
    arguments[DNNL_ARG_SRC].set_data_handle(const_cast<void*>(x));
    arguments[DNNL_ARG_WEIGHTS].set_data_handle(const_cast<void*>(weight));
    arguments[DNNL_ARG_DST].set_data_handle(y);
    arguments[DNNL_ARG_SCRATCHPAD].set_data_handle(scratch);
    primitive_.execute(stream, arguments);
  }

 private:
  using Arguments = std::unordered_map<int, memory>;
  dnnl::matmul primitive_;
  size_t scratch_bytes_ = 0;
  std::vector<Arguments> arguments_;  // of each thread
};

struct MatmulCache::Impl {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  int threads = 1;
  std::vector<dnnl::stream> streams;                 // of each thread
  std::vector<std::unique_ptr<HostBuffer>> scratch;  // of each thread; as large as any primitive needs
  size_t scratch_bytes = 0;
  std::map<std::tuple<int, int, DType>, WeightFormat> formats;  // by in, out, dtype
  std::map<MatmulCall, std::unique_ptr<Matmul>> matmuls;
};

MatmulCache::MatmulCache(int threads) : impl_(std::make_unique<Impl>()) {
  use_one_openmp_thread();
  impl_->threads = threads;
  impl_->scratch.resize(threads);
  for (int i = 0; i < threads; ++i) impl_->streams.emplace_back(impl_->engine);
}

MatmulCache::~MatmulCache() = default;

const WeightFormat& MatmulCache::weight_format(int in, int out, DType dtype) {
  auto [slot, is_new] = impl_->formats.try_emplace({in, out, dtype});
  if (!is_new) return slot->second;
  use_one_openmp_thread();
  const memory::desc desc = weight_desc(in, out, dtype, impl_->engine);
  LOWKEY_CHECK(desc.data.format_kind == dnnl_blocked && desc.data.extra.flags == 0,
               "oneDNN wants an opaque weight format for [{}, {}]", in, out);
  slot->second = {dimension_offsets(desc.data, 0), dimension_offsets(desc.data, 1), desc.get_size()};
  return slot->second;
}

Matmul* MatmulCache::find(const MatmulCall& call) {
  auto& slot = impl_->matmuls[call];
  if (slot == nullptr) {
    use_one_openmp_thread();
    slot = std::make_unique<Matmul>(call, impl_->engine, impl_->threads);
    if (slot->scratch_bytes() > impl_->scratch_bytes) {
      impl_->scratch_bytes = slot->scratch_bytes();
      for (auto& scratch : impl_->scratch) scratch = std::make_unique<HostBuffer>(impl_->scratch_bytes);
    }
  }
  return slot.get();
}

void MatmulCache::run(Matmul& matmul, int thread, const void* x, const void* weight, float* y) {
  use_one_openmp_thread();
  void* scratch = impl_->scratch[thread] == nullptr ? nullptr : impl_->scratch[thread]->data();
  matmul.run(impl_->streams[thread], thread, x, weight, y, scratch);
}

}  // namespace lowkey::kernels
