// Weight matrices in 8 or 4 bits: 32 consecutive inputs of an output share a scale, the others are integers
// rounded to nearest, without offset. These are the blocks Q8_0 and Q4_0 of ggml (ggml-org/ggml,
// src/ggml-quants.c), so that what is quantized here equals what such files hold; blocks with an offset
// beside the scale are those of Q4_K, whose scales are halves here. Weight-only rounding in groups: Yao et
// al. 2022, arXiv:2206.01861 (ZeroQuant), Dettmers & Zettlemoyer 2022, arXiv:2212.09720.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

inline constexpr int kWeightBlock = 32;  // inputs that share a scale

// Squares of weights and of what rounding changed; a row's, a matrix's or a model's.
struct RoundingError {
  double error = 0;
  double total = 0;

  RoundingError& operator+=(const RoundingError& other) {
    error += other.error;
    total += other.total;
    return *this;
  }
  double relative_rms() const;  // 0 of nothing
};

// What elements of a block have in common, halves: element = scale * code + offset.
struct FewBitScale {
  uint16_t scale = 0;
  uint16_t offset = 0;

  bool operator==(const FewBitScale&) const = default;
};

// How blocks are held. Offsets: in 4 bits alone.
struct FewBitForm {
  int bits = 0;  // 8 or 4; 0: not in blocks
  bool offsets = false;

  bool operator==(const FewBitForm&) const = default;
};

// W[o, i] = scale[o, i / 32] * code[o, i] (+ offset[o, i / 32]). Codes from -127 to 127 in 8 bits, from -8 to
// 7 in 4; one to a byte here, a backend packs them. Inputs beyond `in` up to the next whole block are zeros.
class FewBitMatrix {
 public:
  // REQUIRES: bits 8 or 4.
  FewBitMatrix(FewBitForm form, int out, int in);
  FewBitMatrix(int bits, int out, int in) : FewBitMatrix(FewBitForm{bits}, out, in) {}

  int bits() const { return form_.bits; }
  FewBitForm form() const { return form_; }
  int out() const { return out_; }
  int in() const { return in_; }
  int blocks() const { return blocks_; }  // of a row

  // Rounds `in` elements of `dtype` from element `first` of `weights` on. REQUIRES: no offsets.
  RoundingError round_row(int row, const void* weights, DType dtype, int64_t first);
  // Takes over a block as it is.
  void set_block(int row, int block, FewBitScale scale, std::span<const int8_t, kWeightBlock> codes);

  FewBitScale scale(int row, int block) const { return scales_[static_cast<size_t>(row) * blocks_ + block]; }
  std::span<const int8_t, kWeightBlock> codes(int row, int block) const {
    return std::span<const int8_t, kWeightBlock>(
        codes_.data() + (static_cast<size_t>(row) * blocks_ + block) * kWeightBlock, kWeightBlock);
  }
  void copy_row(int row, float* target) const;  // `in` values

 private:
  FewBitForm form_;
  int out_, in_, blocks_;
  std::vector<FewBitScale> scales_;  // [out][blocks]
  std::vector<int8_t> codes_;        // [out][blocks][32]
};

}  // namespace lowkey::kernels
