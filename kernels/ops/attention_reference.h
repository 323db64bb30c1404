// The plain attend(): straight from the rule (Backend::attend) with float64 sums; the twin of every fast
// version.
#pragma once

#include "kernels/ops/backend.h"

namespace lowkey::kernels {

// Writes K and V rows, pages, sinks and tails exactly as Backend::attend does, and attends. Host memory only.
void attend_reference(const AttentionStep& step);

}  // namespace lowkey::kernels
