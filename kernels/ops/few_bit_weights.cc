#include "kernels/ops/few_bit_weights.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "kernels/ops/backend.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels {
namespace {

void load_block(const void* weights, DType dtype, int64_t first, int count, float* x) {
  if (dtype == DType::kBf16) {
    const auto* bits = static_cast<const uint16_t*>(weights) + first;
    for (int i = 0; i < count; ++i) x[i] = bf16_to_f32(bits[i]);
    return;
  }
  for (int i = 0; i < count; ++i) x[i] = load_element(weights, dtype, static_cast<size_t>(first + i));
}

// Half away from zero, as ggml rounds.
int8_t round_half_up(float x) {
  return static_cast<int8_t>(static_cast<int>(x + (x < 0 ? -0.5f : 0.5f)));
}

// The largest magnitude becomes 127.
uint16_t round_8(const float* x, int8_t* codes) {
  float most = 0;
  for (int i = 0; i < kWeightBlock; ++i) most = std::max(most, std::abs(x[i]));
  const float scale = most / 127;
  const float inverse = scale > 0 ? 1 / scale : 0;
  for (int i = 0; i < kWeightBlock; ++i) codes[i] = round_half_up(x[i] * inverse);
  return f32_to_f16(scale);
}

// The element of the largest magnitude becomes -8, so that one more code is used on its side.
uint16_t round_4(const float* x, int8_t* codes) {
  float most = 0;
  for (int i = 0; i < kWeightBlock; ++i)
    if (std::abs(x[i]) > std::abs(most)) most = x[i];
  const float scale = most / -8;
  const float inverse = scale != 0 ? 1 / scale : 0;
  for (int i = 0; i < kWeightBlock; ++i) {
    const int code = static_cast<int>(x[i] * inverse + 8.5f) - 8;
    codes[i] = static_cast<int8_t>(std::min(code, 7));
  }
  return f32_to_f16(scale);
}

}  // namespace

double RoundingError::relative_rms() const {
  return total > 0 ? std::sqrt(error / total) : 0;
}

FewBitMatrix::FewBitMatrix(FewBitForm form, int out, int in)
    : form_(form),
      out_(out),
      in_(in),
      blocks_((in + kWeightBlock - 1) / kWeightBlock),
      scales_(static_cast<size_t>(out) * blocks_),
      codes_(static_cast<size_t>(out) * blocks_ * kWeightBlock) {
  LOWKEY_CHECK(form == FewBitForm{8} || form.bits == 4, "weights of {} bits, offsets {}", form.bits,
               form.offsets);
}

RoundingError FewBitMatrix::round_row(int row, const void* weights, DType dtype, int64_t first) {
  LOWKEY_CHECK(row >= 0 && row < out_ && !form_.offsets, "row {} of {}, offsets {}", row, out_,
               form_.offsets);
  RoundingError sums;
  std::array<float, kWeightBlock> x;
  for (int block = 0; block < blocks_; ++block) {
    const int count = std::min(kWeightBlock, in_ - block * kWeightBlock);
    load_block(weights, dtype, first + int64_t{block} * kWeightBlock, count, x.data());
    std::fill(x.begin() + count, x.end(), 0.0f);
    const size_t at = static_cast<size_t>(row) * blocks_ + block;
    int8_t* codes = codes_.data() + at * kWeightBlock;
    scales_[at].scale = form_.bits == 8 ? round_8(x.data(), codes) : round_4(x.data(), codes);
    const float scale = f16_to_f32(scales_[at].scale);
    float error = 0, total = 0;
    for (int i = 0; i < kWeightBlock; ++i) {
      const float off = x[i] - scale * static_cast<float>(codes[i]);
      error += off * off;
      total += x[i] * x[i];
    }
    sums += {error, total};
  }
  return sums;
}

void FewBitMatrix::set_block(int row, int block, FewBitScale scale,
                             std::span<const int8_t, kWeightBlock> codes) {
  LOWKEY_CHECK(row >= 0 && row < out_ && block >= 0 && block < blocks_, "block {}, {} of {}, {}", row, block,
               out_, blocks_);
  const size_t at = static_cast<size_t>(row) * blocks_ + block;
  scales_[at] = scale;
  std::ranges::copy(codes, codes_.begin() + static_cast<int64_t>(at) * kWeightBlock);
}

void FewBitMatrix::copy_row(int row, float* target) const {
  for (int i = 0; i < in_; ++i) {
    const FewBitScale of = scale(row, i / kWeightBlock);
    float& element = target[i];
    element = f16_to_f32(of.scale) * static_cast<float>(codes(row, i / kWeightBlock)[i % kWeightBlock]);
    if (form_.offsets) element += f16_to_f32(of.offset);
  }
}

// Backends without products of few bits have the same weights, expanded.
std::unique_ptr<Linear> Backend::pack_few_bits(const FewBitMatrix& weight) {
  std::vector<float> values(static_cast<size_t>(weight.out()) * weight.in());
  for (int row = 0; row < weight.out(); ++row)
    weight.copy_row(row, values.data() + static_cast<size_t>(row) * weight.in());
  return pack_embedding(values.data(), DType::kF32, weight.out(), weight.in(), weight.in());
}

}  // namespace lowkey::kernels
