// Attention where its shared memory is short: what has no room there is read from elsewhere, what would grow
// with a sequence is taken in parts.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/emulation/cuda_runtime.h"
#include "tests/parity/backends.h"
#include "tests/parity/device_sequence.h"

namespace lowkey::kernels::test {
namespace {

// Restores what the emulation says of its machine.
struct OnMachine {
  explicit OnMachine(const cuda::emulation::Machine& machine) { cuda::emulation::machine() = machine; }
  ~OnMachine() { cuda::emulation::machine() = {}; }
};

// The rings of a block end anywhere from 0 to a ring's size before its shared memory does: with plans behind
// them or without, with more warps or fewer.
TEST(AttentionMemory, PlansAndWarpsDoNotShowInTheBits) {
  const Shape s{4, 4, 64, 32};
  const PageLayout layout =
      make_layout({"q4", [](const Shape&) { return PageSpec::embedded("q4", 4, 0); }}, s, DType::kBf16);
  const int written = 5 * s.page_tokens + 3;
  const Inputs inputs(s, written + 1, 91);
  SequenceMemory memory(layout, written + 1);
  attend(*make_cpu_backend({.dtype = DType::kBf16, .threads = 1}), layout, s,
         {{&inputs, &memory, 0, written}});
  const Chunk chunk{.inputs = &inputs, .memory = &memory, .first = written, .rows = 1};
  const auto expected =
      attend_anywhere(*cuda::make_cuda_backend(0, DType::kBf16).value(), layout, s, {chunk})[0];
  for (size_t bytes = size_t{60} << 10; bytes <= size_t{70} << 10; bytes += 512) {
    const OnMachine machine({.shared_bytes = bytes});
    const auto backend = cuda::make_cuda_backend(0, DType::kBf16).value();
    EXPECT_EQ(attend_anywhere(*backend, layout, s, {chunk})[0], expected) << bytes << " bytes";
  }
}

// Every other page is read at another level: as many partial results as pages.
TEST(AttentionMemory, ThousandsOfPartialResultsAreMergedInParts) {
  PageSpec spec = PageSpec::embedded("levels", 8, 4);
  spec.num_levels = 3;
  spec.key.bits.assign(1, {2, 2, 4});
  spec.value.bits = spec.key.bits;
  const Shape s{1, 1, 16, 32};
  const PageLayout layout = make_layout({"levels", [&](const Shape&) { return spec; }}, s, DType::kF32);
  const int pages = 2100, different = 5, written = pages * s.page_tokens;
  const Inputs inputs(s, written + 1, 92);
  SequenceMemory memory(layout, written + 1);
  const auto writer = make_cpu_backend({.dtype = DType::kF32, .threads = 1});
  attend(*writer, layout, s, {{&inputs, &memory, 0, different * s.page_tokens}});
  for (int page = different; page < pages; ++page)
    for (int level = 0; level < layout.num_levels; ++level)
      std::ranges::copy(memory.slabs[(1 + page % (different - 1)) * kMaxSlabs + level],
                        memory.slabs[page * kMaxSlabs + level].begin());
  std::vector<uint8_t> levels(pages);
  for (int page = 0; page < pages; ++page) levels[page] = static_cast<uint8_t>(1 + page % 2);
  const Chunk chunk{
      .inputs = &inputs, .memory = &memory, .first = written, .rows = 1, .page_levels = &levels};
  SequenceMemory expected_memory = memory;
  for (size_t i = 0; i < memory.slabs.size(); ++i)
    expected_memory.pointers[i] = memory.pointers[i] == nullptr ? nullptr : expected_memory.slabs[i].data();
  Chunk expected_chunk = chunk;
  expected_chunk.memory = &expected_memory;
  const auto backend = cuda::make_cuda_backend(0, DType::kF32).value();
  const auto actual = attend_anywhere(*backend, layout, s, {chunk})[0];
  const auto expected = attend(*make_reference_backend(DType::kF32), layout, s, {expected_chunk})[0];
  expect_close(actual, expected, 1e-4, 1e-5, "merged");
}

}  // namespace
}  // namespace lowkey::kernels::test
