// config.json of a model from anywhere and, behind a zero byte, its generation_config.json: one error line,
// or a model whose numbers fit each other.
#include <boost/json/parse.hpp>
#include <cmath>
#include <cstdint>

#include "base/check.h"
#include "worker/model/config_reader.h"

namespace lowkey::worker {
namespace {

void check_refusal(const Error& error) {
  LOWKEY_CHECK(error.code == Code::kBadInput && !error.message.empty());
  LOWKEY_CHECK(error.message.find('\n') == std::string::npos, "{}", error.message);
}

void check_rope(const RopeConfig& rope, const ModelConfig& config) {
  const kernels::RopeTable table = rope.table(config.head_dim, config.max_positions);
  LOWKEY_CHECK(table.inv_freq.size() <= static_cast<size_t>(config.head_dim / 2) && !table.inv_freq.empty());
  for (const float frequency : table.inv_freq)
    LOWKEY_CHECK(std::isfinite(frequency) && frequency >= 0, "{}", frequency);
  LOWKEY_CHECK(std::isfinite(table.attention_factor), "{}", table.attention_factor);
}

void check(const ModelConfig& config) {
  LOWKEY_CHECK(config.num_heads % config.num_kv_heads == 0 && config.head_dim % 2 == 0);
  LOWKEY_CHECK(config.max_positions >= 1 && config.max_positions <= 1 << 28, "{}", config.max_positions);
  const size_t layers = config.num_layers;
  LOWKEY_CHECK(config.windows.empty() || config.windows.size() == layers);
  LOWKEY_CHECK(config.kv_producer.empty() || config.kv_producer.size() == layers);
  const int banks = config.cache_shape(1, kernels::DType::kBf16).num_banks;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const int bank = config.bank_of(layer);
    LOWKEY_CHECK(bank >= 0 && bank < banks, "bank {} of {}", bank, banks);
    LOWKEY_CHECK(config.window_of(layer) >= 0);
  }
  check_rope(config.rope, config);
  if (config.local_rope) check_rope(*config.local_rope, config);
  LOWKEY_CHECK(std::isfinite(config.attention_scale()) && config.attention_scale() > 0);
  for (const int32_t id : config.eos_token_ids) LOWKEY_CHECK(id >= 0 && id < config.vocab_size);
  if (config.bos_token_id)
    LOWKEY_CHECK(*config.bos_token_id >= 0 && *config.bos_token_id < config.vocab_size);
}

std::optional<boost::json::object> object_of(std::string_view text) {
  boost::json::error_code failure;
  boost::json::value value = boost::json::parse(text, failure);
  if (failure || !value.is_object()) return std::nullopt;
  return std::move(value.as_object());
}

}  // namespace
}  // namespace lowkey::worker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowkey::worker;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view first = input.substr(0, input.find('\0'));
  const auto object = object_of(first);
  if (!object) return 0;
  auto config = read_config(*object, "config.json");
  if (!config) return check_refusal(config.error()), 0;
  check(*config);
  const auto defaults = object_of(input.substr(std::min(input.size(), first.size() + 1)));
  if (!defaults) return 0;
  const auto status = read_generation_config(*defaults, "generation_config.json", *config);
  if (!status) check_refusal(status.error());
  check(*config);
  return 0;
}
