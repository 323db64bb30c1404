// What holding weights in few bits has cost: rounding errors of the matrices of one rank.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "kernels/ops/few_bit_weights.h"

namespace lowkey::worker {

class WeightReport {
 public:
  struct Kind {
    int matrices = 0;
    int bits = 0;           // 8 or 4
    bool as_stored = true;  // nothing was rounded: the file has these blocks
    kernels::RoundingError error;
  };

  // `kind`: "qkv", "o", "gate_up", "down", "embedding" or "head".
  void add(std::string_view kind, const std::string& tensor, int bits, bool as_stored,
           const kernels::RoundingError& error);

  // Matrices of F16 are held in bf16, whose fractions have three bits fewer.
  void note_cut_halves() { cut_halves_ = true; }
  bool cut_halves() const { return cut_halves_; }

  bool empty() const { return kinds_.empty(); }  // no matrix is in few bits
  const std::map<std::string, Kind, std::less<>>& kinds() const { return kinds_; }
  const std::string& worst_tensor() const { return worst_tensor_; }
  double worst_error() const { return worst_error_; }

  // "qkv 4 bits 7.9 %, embedding 8 bits 0.47 %; worst: model.layers.0.mlp.down_proj.weight 9.1 %"
  std::string describe() const;

 private:
  std::map<std::string, Kind, std::less<>> kinds_;
  std::string worst_tensor_;
  double worst_error_ = 0;
  bool cut_halves_ = false;
};

}  // namespace lowkey::worker
