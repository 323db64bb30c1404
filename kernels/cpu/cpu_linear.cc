#include "kernels/cpu/cpu_linear.h"

#include <algorithm>

#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/matmul_cache.h"
#include "kernels/ops/host_buffer.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels {
namespace {

// oneDNN blocks weights by 64 outputs; a slice is a whole number of these.
constexpr int kBlockOut = 64;
static_assert(kBlockOut % kPanelOut == 0);
// Small enough for the threads to share a layer evenly, large enough for the cost of a call (2 us) not to
// count.
constexpr size_t kSliceBytes = size_t{1} << 20;

// Source rows -> packed weights, by element: `load` reads source element i, `store` converts.
template <class Source, class Target, class Convert>
void pack_rows(const Source* source, int64_t stride, int rows, const std::vector<uint32_t>& in_offset,
               const uint32_t* out_offset, Target* target, Convert convert) {
  const int in = static_cast<int>(in_offset.size());
  for (int o = 0; o < rows; ++o) {
    const Source* row = source + o * stride;
    Target* base = target + out_offset[o];
    for (int i = 0; i < in; ++i) base[in_offset[i]] = convert(row[i]);
  }
}

template <class Target, class FromFloat>
void pack_from(const void* weight, DType dtype, int64_t first, int64_t stride, int rows,
               const WeightFormat& format, Target* target, FromFloat from_float) {
  const auto* bits = static_cast<const uint16_t*>(weight) + first;
  auto pack = [&](const auto* source, auto convert) {
    pack_rows(source, stride, rows, format.in_offset, format.out_offset.data(), target, convert);
  };
  switch (dtype) {
    case DType::kF32:
      return pack(static_cast<const float*>(weight) + first, from_float);
    case DType::kBf16:
      return pack(bits, [&](uint16_t b) { return from_float(bf16_to_f32(b)); });
    case DType::kF16:
      return pack(bits, [&](uint16_t b) { return from_float(f16_to_f32(b)); });
  }
}

// Panels as bf16_panels.h says, of up to `out` outputs.
WeightFormat panel_format(int in, int out) {
  WeightFormat format;
  for (int i = 0; i < in; ++i) format.in_offset.push_back(i / 2 * 2 * kPanelOut + i % 2);
  for (int o = 0; o < out; ++o)
    format.out_offset.push_back(
        static_cast<uint32_t>(o / kPanelOut * panel_elements(in) + o % kPanelOut * 2));
  return format;
}

}  // namespace

CpuLinear::CpuLinear(ComputePool& pool, MatmulCache& cache, const void* weight, DType dtype, int out, int in,
                     int64_t stride, DType packed_dtype, bool panels)
    : in_(in), out_(out), packed_dtype_(packed_dtype) {
  if (panels) panel_format_ = std::make_unique<WeightFormat>();
  plan_slices(cache, pool.threads());
  if (panels) *panel_format_ = panel_format(in, max_slice_out_);
  pool.parallel_for(static_cast<int>(slices_.size()),
                    [&](int task, int) { pack_slice(slices_[task], weight, dtype, stride); });
}

CpuLinear::~CpuLinear() = default;

void CpuLinear::plan_slices(MatmulCache& cache, int threads) {
  const size_t panel_bytes = size_t{kBlockOut} * in_ * dtype_bytes(packed_dtype_);
  const int panels = (out_ + kBlockOut - 1) / kBlockOut;
  int count = static_cast<int>((panels * panel_bytes + kSliceBytes - 1) / kSliceBytes);
  count = std::min(panels, (count + threads - 1) / threads * threads);  // the same number for every thread
  size_t offset = 0;
  for (int i = 0; i < count; ++i) {
    Slice slice;
    slice.first_out = static_cast<int>(int64_t{panels} * i / count) * kBlockOut;
    slice.num_out =
        std::min(out_, static_cast<int>(int64_t{panels} * (i + 1) / count) * kBlockOut) - slice.first_out;
    slice.offset = offset;
    if (panel_format_ != nullptr) {
      slice.format = panel_format_.get();
      offset += (slice.num_out + kPanelOut - 1) / kPanelOut * panel_elements(in_) * sizeof(uint16_t);
    } else {
      slice.format = &cache.weight_format(in_, slice.num_out, packed_dtype_);
      offset += (slice.format->bytes + 63) / 64 * 64;
    }
    max_slice_out_ = std::max(max_slice_out_, slice.num_out);
    slices_.push_back(slice);
  }
  packed_ = std::make_unique<HostBuffer>(offset);
}

void CpuLinear::pack_slice(const Slice& slice, const void* weight, DType dtype, int64_t stride) {
  const WeightFormat& format = *slice.format;
  const int64_t first = slice.first_out * stride;
  std::byte* target = slice_data(slice);
  if (packed_dtype_ == DType::kF32) {
    pack_from(weight, dtype, first, stride, slice.num_out, format, reinterpret_cast<float*>(target),
              [](float x) { return x; });
  } else {
    pack_from(weight, dtype, first, stride, slice.num_out, format, reinterpret_cast<uint16_t*>(target),
              f32_to_bf16);
  }
}

void CpuLinear::copy_row(int row, float* target) const {
  const auto slice = std::upper_bound(slices_.begin(), slices_.end(), row,
                                      [](int r, const Slice& s) { return r < s.first_out; }) -
                     1;
  const WeightFormat& format = *slice->format;
  const std::byte* data = slice_data(*slice);
  const uint32_t base = format.out_offset[row - slice->first_out];
  for (int i = 0; i < in_; ++i) target[i] = load_element(data, packed_dtype_, base + format.in_offset[i]);
}

}  // namespace lowkey::kernels
