// The files of a random model folder that are not weights. Private to worker/model (Boost.JSON).
#pragma once

#include <array>
#include <boost/json/object.hpp>

#include "worker/model/model_config.h"

namespace lowkey::worker {

inline constexpr int kNumSpecial = 4;
inline constexpr std::array<const char*, kNumSpecial> kSpecial = {"<|endoftext|>", "<|im_start|>",
                                                                  "<|im_end|>", "<|pad|>"};
inline constexpr int kNumBytes = 256;

boost::json::object config_json(const ModelConfig& config);
boost::json::object tokenizer_json(int vocab_size);

}  // namespace lowkey::worker
