#include "worker/model/weight_source.h"

#include "worker/model/gguf_weights.h"
#include "worker/model/safetensors_reader.h"

namespace lowkey::worker {

Result<std::unique_ptr<WeightSource>> WeightSource::open(const std::filesystem::path& model,
                                                         const ModelConfig& config) {
  if (is_gguf(model)) {
    LOWKEY_ASSIGN(weights, GgufWeights::open(model, config));
    return std::unique_ptr<WeightSource>(std::move(weights));
  }
  LOWKEY_ASSIGN(reader, SafetensorsReader::open(model));
  return std::unique_ptr<WeightSource>(std::make_unique<SafetensorsReader>(std::move(reader)));
}

}  // namespace lowkey::worker
