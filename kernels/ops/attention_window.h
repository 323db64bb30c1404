// The window of a query (AttentionStep::window), in one place for all backends.
#pragma once

#include <algorithm>

#include "base/check.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

// The first slot that a query at `slot` sees.
inline int first_seen(const AttentionStep& step, int slot) {
  return step.window == 0 ? 0 : std::max(0, slot - step.window + 1);
}

inline void check_window(const AttentionStep& step) {
  LOWKEY_CHECK(step.window >= 0 && step.soft_cap >= 0, "window {}, soft cap {}", step.window, step.soft_cap);
  if (step.window == 0 && step.soft_cap == 0) return;
  for (const SequenceSlice& sequence : step.sequences)
    LOWKEY_CHECK(sequence.archives == nullptr && sequence.observer == nullptr,
                 "tokens are chosen under a window of {} or a soft cap of {}", step.window, step.soft_cap);
}

}  // namespace lowkey::kernels
