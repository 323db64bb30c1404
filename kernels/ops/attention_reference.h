// The plain attend(): straight from the rule (Backend::attend) with float64 sums; the twin of every fast
// version.
#pragma once

#include "kernels/ops/backend.h"

namespace lowkey::kernels {

// Writes K and V rows, pages, sinks and tails exactly as Backend::attend does, and attends. Host memory only.
void attend_reference(const AttentionStep& step);

// The write half alone, for one sequence: rounds the step's K and V rows to the layout's dtype, encodes the
// pages completed by them (and the sink of page 0), and leaves the rows of the last, incomplete page in the
// tail. `own_rows` receives the exact rows of every page touched: [side][head][page - first
// page][page_tokens][dim] of the dtype, where the first page is first_position / page_tokens. Missing rows
// are zero.
void write_sequence_reference(const AttentionStep& step, const SequenceSlice& sequence,
                              std::vector<std::byte>& own_rows);

}  // namespace lowkey::kernels
