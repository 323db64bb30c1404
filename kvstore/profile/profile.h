// The calibration artefact of one model: bases, means and scales of every stored vector, and what to keep of
// them under which budget. It never changes the model: at full width and rank the output equals the
// uncompressed cache to rounding.
//
// A safetensors file, little-endian, equal profiles give equal bytes. Tensors:
//   encode       F32 [banks, 2, vectors, dim, dim]     side 0 is K, 1 is V; rows are features by descending
//                                                      importance
//   decode       F32, the same shape                   absent when equal to encode
//   mean, scale  F32 [banks, 2, vectors, dim]
//   budget.NAME  U8 [banks, 2, vectors, groups, levels of this budget]
// and as metadata: lowkey_profile (the version), basis, model_fingerprint, num_banks, num_kv_heads, head_dim,
// join, norm, norm_edge, origin.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/hash128.h"
#include "base/result.h"
#include "kernels/page/page_layout.h"

namespace lowkey::kvstore {

inline constexpr int kProfileVersion = 1;

// Of one stored vector: K or V of `join` adjacent KV heads (of the whole model, not of a rank) of one bank.
struct VectorProfile {
  std::vector<float> encode;  // [dim][input_dim], features by descending importance; dim = input_dim
  std::vector<float> decode;  // [dim][input_dim]; the same as encode when orthonormal
  std::vector<float> mean;    // [input_dim]
  std::vector<float> scale;   // [dim], of the features, > 0; standard deviation after the norm, or trained
};

using GroupBits = std::array<uint8_t, kernels::kMaxLevels>;  // bits that each level adds to one group

// What one budget keeps: bits per group of 16 features and level (PageLayout's VectorSpec::bits), for every
// vector.
struct Budget {
  // "4x" (all-bytes ratio at 2,048 tokens), "5x-2x" (of the first level, ..., of all levels), or "keep-0.50"
  // (share of features, no quantizer)
  std::string name;
  std::vector<std::vector<GroupBits>> bits;  // [vector][group][level]
  int levels = 1;
};

struct Profile {
  std::string basis;  // "pca", "weighted", "trained"
  Hash128 model_fingerprint;
  int num_banks = 0, num_kv_heads = 0, head_dim = 0, join = 1;
  bool norm = true;  // embedded codes carry one norm per row
  float norm_edge = 4.5f;
  std::vector<VectorProfile> vectors;  // [bank][side][vector], num_kv_heads / join vectors a side
  std::vector<Budget> budgets;
  std::string origin;  // how it was made: command, text, tokens; for `inspect`

  int dim() const { return join * head_dim; }
  int groups() const { return (dim() + kernels::kGroupFeatures - 1) / kernels::kGroupFeatures; }
  int vectors_per_side() const { return num_kv_heads / join; }
  size_t index(int bank, kernels::Side side, int vector) const {
    return (size_t(bank) * 2 + (side == kernels::Side::kValue)) * vectors_per_side() + vector;
  }
  const Budget* budget(const std::string& name) const;  // null when absent

  // Errors: kBadInput naming file, tensor, expected and found.
  static Result<Profile> read(const std::filesystem::path& file);
  // The same of a file's bytes; `name` stands for the file in errors.
  static Result<Profile> parse(std::span<const std::byte> file, const std::string& name);
  // Replaces the file at once. REQUIRES: sizes as above.
  Status write(const std::filesystem::path& file) const;
};

}  // namespace lowkey::kvstore
