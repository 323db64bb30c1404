// What a gated MLP does to its gate (kernels::Activation), where kernels are told.
#pragma once

#include <cstdint>

namespace lowkey::kernels::cuda {

enum class Gate : uint8_t { kNone, kSilu, kGelu };

}  // namespace lowkey::kernels::cuda
