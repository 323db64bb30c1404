#include "worker/model/weight_source.h"

#include "base/check.h"
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

Result<kernels::FewBitForm> WeightSource::stored_form(const std::string&, int64_t, int64_t) const {
  return kernels::FewBitForm{};
}

bool WeightSource::is_quantized(const std::string&) const {
  return false;
}

void WeightSource::read_blocks(const std::string& tensor, int64_t, int64_t, kernels::FewBitMatrix&,
                               int) const {
  LOWKEY_CHECK(false, "'{}' is not in blocks", tensor);
}

}  // namespace lowkey::worker
