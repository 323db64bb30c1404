#include "kvstore/dials/layers/layer_map.h"

#include <spdlog/fmt/fmt.h>

namespace lowkey::kvstore {

Result<LayerMap> make_layer_map(LayerShare share, int num_layers, std::span<const int> kv_producer) {
  if (share == LayerShare::kModel && kv_producer.empty())
    return Error{Code::kUsage,
                 "layers: share: model: every layer of this model has its own K and V (config.json has no "
                 "kv_producer)",
                 "recipe"};
  if (!kv_producer.empty() && std::ssize(kv_producer) != num_layers)
    return Error{Code::kBadInput,
                 fmt::format("kv_producer: expected {} layers, found {}", num_layers, kv_producer.size()),
                 {}};
  LayerMap map;
  for (int layer = 0; layer < num_layers; ++layer) {
    const int producer = kv_producer.empty() ? layer : kv_producer[layer];
    if (producer < 0 || producer > layer || (producer < layer && kv_producer[producer] != producer))
      return Error{
          Code::kBadInput,
          fmt::format("kv_producer: layer {}: expected itself or an earlier layer with K and V, found {}",
                      layer, producer),
          {}};
    if (producer == layer) {
      map.bank_of_layer.push_back(map.num_banks());
      map.producer_of_bank.push_back(layer);
    } else {
      map.bank_of_layer.push_back(map.bank_of_layer[producer]);
    }
  }
  return map;
}

}  // namespace lowkey::kvstore
