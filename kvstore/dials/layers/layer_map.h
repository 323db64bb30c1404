// The dial `layers`: which layers own a K/V stream (a bank), and which read another's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace lowkey::kvstore {

// kNone: every layer that has its own K and V owns a bank. kModel: the same, and the model must share some
// of its layers (kv_producer in config.json).
enum class LayerShare : uint8_t { kNone, kModel };

// Which bank every layer reads; banks are numbered in the order of their producers.
struct LayerMap {
  std::vector<int> bank_of_layer;
  std::vector<int> producer_of_bank;
  int num_banks() const { return static_cast<int>(producer_of_bank.size()); }
};

// `kv_producer`: layer -> layer whose K and V it reads (CLA, arXiv:2405.12981; MLKV, arXiv:2406.09297);
// empty: its own. A layer without K and V of its own has nothing else to read, so the model's map holds under
// every recipe. Errors: kUsage when the recipe asks for sharing and the model has none; kBadInput when a
// producer is not an earlier layer (or itself) that produces.
Result<LayerMap> make_layer_map(LayerShare share, int num_layers, std::span<const int> kv_producer);

}  // namespace lowkey::kvstore
