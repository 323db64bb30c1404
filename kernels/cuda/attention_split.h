// How the pages that a row sees are cut into items: of the row's own sequence alone, so that its result does
// not depend on its batch, and the same whoever plans the step.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lowkey::kernels::cuda {

// Tokens of an item: long enough that a partial result costs little beside what it was made of, short enough
// that one long sequence feeds all multiprocessors. Of the sequence's own length alone.
inline int split_tokens(int sequence_tokens) {
  constexpr int kShortSplit = 512, kLongSplit = 1024, kLongSequence = 64 << 10;
  return sequence_tokens < kLongSequence ? kShortSplit : kLongSplit;
}

// Calls body(first page, number of pages) for the items of pages [begin, end), of `page_tokens` tokens. Pages
// of an item are read at equally many levels; `levels` may be null: all are.
template <class Body>
void for_each_piece(int begin, int end, int split, int page_tokens, const uint8_t* levels, const Body& body) {
  const int step_pages = std::max(1, split / page_tokens);
  for (int first = begin, next; first < end; first = next) {
    const int most = std::min((first / step_pages + 1) * step_pages, end);
    for (next = first + 1; next < most && (levels == nullptr || levels[next] == levels[first]);) ++next;
    body(first, next - first);
  }
}

}  // namespace lowkey::kernels::cuda
