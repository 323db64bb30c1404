// Rotary position embedding of a model's layers (Su et al. 2021, arXiv:2104.09864) and its scalings to longer
// contexts.
//
// A page of the cache is shared by every sequence with its prefix, so how a position is rotated may depend on
// nothing but the position: not, as in the papers, on how long the sequence has become. Two scalings are
// fixed for the longest context that the model serves: dynamic NTK takes its base there, and LongRoPE its
// long factors unless that context is the original one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops/backend.h"

namespace lowkey::worker {

class JsonFields;

struct RopeConfig {
  enum class Scaling : uint8_t { kNone, kLinear, kDynamic, kYarn, kLlama3, kLongRope };

  double theta = 10000;
  double rotated = 1;  // of a head's features, the front
  Scaling scaling = Scaling::kNone;
  double factor = 1;
  double original_positions = 0;                     // context of the training before scaling
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // YaRN
  bool truncate = true;                              // YaRN: the ramp's ends are whole dimensions
  std::optional<double> attention_factor;            // YaRN, LongRoPE; absent: as published
  double mscale = 0, mscale_all_dim = 0;             // YaRN as DeepSeek has it; 0: absent
  std::vector<double> short_factors, long_factors;   // LongRoPE, [rotated features / 2]

  bool operator==(const RopeConfig&) const = default;

  // Frequencies of heads of `head_dim` features in a model that serves `max_positions`.
  kernels::RopeTable table(int head_dim, int max_positions) const;
  int rotated_features(int head_dim) const { return static_cast<int>(head_dim * rotated); }
  std::string describe() const;  // "theta 500000, llama3 scaling, factor 32"
};

// What the model's other fields say about its positions.
struct RopeContext {
  int head_dim = 0;
  int max_positions = 0;          // max_position_embeddings
  double original_positions = 0;  // original_max_position_embeddings beside the scaling; 0: not there
  bool phi3 = false;              // "su" and "yarn" are old names of LongRoPE there
};

// Reads rope_scaling or rope_parameters, whichever `fields` is, over what `rope` has; errors stay in
// `fields`.
void read_rope_scaling(JsonFields& fields, const RopeContext& context, RopeConfig& rope);

}  // namespace lowkey::worker
