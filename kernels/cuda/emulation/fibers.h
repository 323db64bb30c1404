// The threads of a kernel's blocks as fibers on the calling thread: a block's threads run one after the other
// until they wait for each other, at a block barrier or in a warp's collective operation. What a real device
// runs at once runs here in one of two fixed orders (set_reversed), so that a result that depends on the
// order shows. Blocks run one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace lowkey::kernels::cuda::emulation {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  size_t count() const { return size_t{x} * y * z; }
};

inline constexpr int kWarp = 32;

// What a thread of a kernel knows of itself.
struct Place {
  Dim3 thread, block, block_dim, grid_dim;
  std::byte* shared = nullptr;  // the block's dynamic shared memory
};
const Place& here();

// Threads in descending order instead of ascending.
void set_reversed(bool reversed);

void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body);

void sync_block();
// Lets the others go on; a kernel that polls must call it.
void yield();

// Every lane of the warp that is named in `mask` and still runs gives `in` and gets what `all` makes of all:
// all(ins, outs, lanes), arrays of 32, null where a lane does not take part.
using Collective = void (*)(const void* const* ins, void* const* outs, const void* context);
void collective(uint32_t mask, const void* in, void* out, Collective all, const void* context);

}  // namespace lowkey::kernels::cuda::emulation
