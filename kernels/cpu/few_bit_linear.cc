#include "kernels/cpu/few_bit_linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/few_bit_kernels.h"
#include "kernels/ops/few_bit_weights.h"
#include "kernels/ops/host_buffer.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels {
namespace {

// As in CpuLinear: a slice stays in the L2 cache while a block of rows passes.
constexpr size_t kSliceBytes = size_t{512} << 10;
constexpr int kBlockRows = 96;  // whole tiles of the kernel

// A word of four codes as it is stored: 8 bits 128 too large; in 4 bits `low` and `high` share the bytes, 8
// too large (mod 16 that is the highest bit turned).
uint32_t word_8(const int8_t* codes) {
  uint32_t word;
  std::memcpy(&word, codes, sizeof(word));
  return word ^ 0x80808080u;
}
uint32_t word_4(const int8_t* low, const int8_t* high) {
  constexpr uint32_t kTop = 0x08080808u, kNibbles = 0x0f0f0f0fu;
  uint32_t a, b;
  std::memcpy(&a, low, sizeof(a));
  std::memcpy(&b, high, sizeof(b));
  return ((a ^ kTop) & kNibbles) | ((b ^ kTop) & kNibbles) << 4;
}

// Of the scale (the offset lies kOffsets behind it) and the first word of output `o` (of 16) of a block (of
// 2) in a record; words are a line apart.
size_t scale_offset(int block, int o) {
  return (size_t(block) * kPanelOutputs + o) * sizeof(uint16_t);
}
size_t word_offset(FewBitForm form, int block, int o) {
  return few_bit_header_bytes(form) + (size_t(block) * form.bits * kPanelOutputs + o) * sizeof(uint32_t);
}
constexpr size_t kOffsets = 2 * kPanelOutputs * sizeof(uint16_t);  // where a record has them
constexpr size_t kWordStride = kPanelOutputs * sizeof(uint32_t);

}  // namespace

FewBitLinear::FewBitLinear(ComputePool& pool, const FewBitMatrix& weight)
    : form_(weight.form()),
      in_(weight.in()),
      out_(weight.out()),
      pairs_((in_ + kPairInputs - 1) / kPairInputs),
      panels_((out_ + kPanelOutputs - 1) / kPanelOutputs),
      packed_(std::make_unique<HostBuffer>(size_t(panels_) * pairs_ * few_bit_record_bytes(form_))) {
  pool.parallel_for(panels_, [&](int panel, int) { pack_panel(weight, panel); });
}

FewBitLinear::~FewBitLinear() = default;

std::byte* FewBitLinear::record(int panel, int pair) const {
  return packed_->data() + (size_t(panel) * pairs_ + pair) * few_bit_record_bytes(form_);
}

// Outputs and inputs beyond the matrix have scale 0.
void FewBitLinear::pack_panel(const FewBitMatrix& weight, int panel) {
  for (int o = 0; o < std::min(kPanelOutputs, out_ - panel * kPanelOutputs); ++o) {
    const int row = panel * kPanelOutputs + o;
    for (int block = 0; block < weight.blocks(); ++block) {
      std::byte* to = record(panel, block / 2);
      const auto [scale, offset] = weight.scale(row, block);
      std::memcpy(to + scale_offset(block % 2, o), &scale, sizeof(scale));
      if (form_.offsets) std::memcpy(to + kOffsets + scale_offset(block % 2, o), &offset, sizeof(offset));
      const int8_t* codes = weight.codes(row, block).data();
      to += word_offset(form_, block % 2, o);
      for (int i = 0; i < form_.bits; ++i, to += kWordStride) {  // 8 words of 4 codes, or 4 of 8
        const uint32_t word =
            form_.bits == 8 ? word_8(codes + 4 * i) : word_4(codes + 4 * i, codes + kWeightBlock / 2 + 4 * i);
        std::memcpy(to, &word, sizeof(word));
      }
    }
  }
}

void FewBitLinear::copy_row(int row, float* target) const {
  const int panel = row / kPanelOutputs, o = row % kPanelOutputs;
  for (int block = 0; block * kWeightBlock < in_; ++block) {
    const std::byte* from = record(panel, block / 2);
    uint16_t half, half_offset = 0;
    std::memcpy(&half, from + scale_offset(block % 2, o), sizeof(half));
    if (form_.offsets) std::memcpy(&half_offset, from + kOffsets + scale_offset(block % 2, o), sizeof(half));
    const float scale = f16_to_f32(half), offset = f16_to_f32(half_offset);
    from += word_offset(form_, block % 2, o);
    const int count = std::min(kWeightBlock, in_ - block * kWeightBlock);
    for (int i = 0; i < count; ++i) {
      const bool high = form_.bits == 4 && i >= kWeightBlock / 2;
      const int within = high ? i - kWeightBlock / 2 : i;
      const int byte = static_cast<int>(from[within / 4 * kWordStride + within % 4]);
      const int code = form_.bits == 8 ? byte - 128 : (high ? byte >> 4 : byte & 15) - 8;
      float& element = target[block * kWeightBlock + i];
      element = scale * static_cast<float>(code);
      if (form_.offsets) element += offset;
    }
  }
}

void FewBitLinear::multiply(ComputePool& pool, Scratch& scratch, const Tensor& x, const float* bias,
                            bool accumulate, const Tensor& y) const {
  const size_t row_codes = size_t(pairs_) * kPairInputs, row_blocks = size_t(pairs_) * 2;
  if (scratch.codes.size() < x.rows * row_codes) scratch.codes.resize(x.rows * row_codes);
  if (scratch.scales.size() < x.rows * row_blocks) {
    scratch.scales.resize(x.rows * row_blocks);
    scratch.sums.resize(x.rows * row_blocks);
    scratch.starts.resize(x.rows * row_blocks);
  }
  const auto round = [&](int row, int) {
    simd::round_row(x.as<float>() + size_t(row) * x.cols, in_, pairs_, form_.bits,
                    scratch.codes.data() + row * row_codes, scratch.scales.data() + row * row_blocks,
                    scratch.starts.data() + row * row_blocks, scratch.sums.data() + row * row_blocks);
  };
  if (x.rows < 4) {
    for (int row = 0; row < x.rows; ++row) round(row, 0);
  } else {
    pool.parallel_for(x.rows, round);
  }

  const size_t panel_bytes = size_t(pairs_) * few_bit_record_bytes(form_);
  const int threads = pool.threads();
  int slices = static_cast<int>((panels_ * panel_bytes + kSliceBytes - 1) / kSliceBytes);
  slices = std::min(panels_, (slices + threads - 1) / threads * threads);
  const int blocks = (x.rows + kBlockRows - 1) / kBlockRows;
  pool.parallel_for(slices * blocks, [&](int task, int) {
    const int slice = task % slices, first_row = task / slices * kBlockRows;
    const int first = static_cast<int>(int64_t(panels_) * slice / slices),
              last = static_cast<int>(int64_t(panels_) * (slice + 1) / slices);
    const int first_out = first * kPanelOutputs;
    simd::few_bit_product({.form = form_,
                           .panels = record(first, 0),
                           .num_panels = last - first,
                           .x = {.codes = scratch.codes.data() + first_row * row_codes,
                                 .scales = scratch.scales.data() + first_row * row_blocks,
                                 .starts = scratch.starts.data() + first_row * row_blocks,
                                 .sums = scratch.sums.data() + first_row * row_blocks,
                                 .pairs = pairs_},
                           .rows = std::min(kBlockRows, x.rows - first_row),
                           .y = y.as<float>() + size_t(first_row) * y.cols + first_out,
                           .y_stride = static_cast<size_t>(y.cols),
                           .outputs = std::min(out_, last * kPanelOutputs) - first_out,
                           .bias = bias == nullptr ? nullptr : bias + first_out,
                           .accumulate = accumulate});
  });
}

}  // namespace lowkey::kernels
