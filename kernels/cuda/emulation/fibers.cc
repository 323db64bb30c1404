#include "kernels/cuda/emulation/fibers.h"

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/emulation/context.h"
#include "kernels/cuda/emulation/cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define LOWKEY_FIBER_SANITIZED 1
#endif

namespace lowkey::kernels::cuda::emulation {
namespace {

constexpr size_t kStackBytes = size_t{192} << 10;
constexpr size_t kSharedAlignment = 1024;
// Passes over a block's threads without an end: somebody waits for what never comes.
constexpr int kMostPasses = 100'000'000;

struct Fiber {
  Context context;
  std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  Dim3 index;
  bool done = true;
  const uint64_t* waits_for = nullptr;  // to differ from `seen`
  uint64_t seen = 0;
  [[maybe_unused]] void* fake_stack = nullptr;
};

struct Warp {
  uint32_t live = 0, arrived = 0;
  uint64_t generation = 0;
  const void* ins[kWarp];
  void* outs[kWarp];
};

// Of one host thread; kept between launches, since stacks are expensive.
class Runner {
 public:
  void run(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body) {
    LOWKEY_CHECK(current_ == nullptr, "a kernel launched from a kernel");
    LOWKEY_CHECK(block.count() >= 1 && block.count() <= 1024, "block of {} threads", block.count());
    LOWKEY_CHECK(grid.x <= 0x7fffffffu && grid.y <= 0xffffu && grid.z <= 0xffffu, "grid of {} x {} x {}",
                 grid.x, grid.y, grid.z);
    LOWKEY_CHECK(shared_bytes <= machine().shared_bytes, "{} bytes of shared memory, of {}", shared_bytes,
                 machine().shared_bytes);
    body_ = &body;
    place_.block_dim = block;
    place_.grid_dim = grid;
    while (fibers_.size() < block.count()) fibers_.push_back(std::make_unique<Fiber>());
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) run_block({x, y, z}, shared_bytes);
  }

  const Place& place() const { return place_; }
  void set_reversed(bool reversed) { reversed_ = reversed; }

  void sync_block() {
    if (++arrived_ == alive_) {
      arrived_ = 0;
      ++generation_;
    } else {
      wait(generation_);
    }
  }

  void collective(uint32_t mask, const void* in, void* out, Collective all, const void* context) {
    const int lane = index_ % kWarp;
    Warp& warp = warps_[index_ / kWarp];
    LOWKEY_CHECK(mask >> lane & 1, "lane {} in a collective of lanes {:x}", lane, mask);
    warp.ins[lane] = in;
    warp.outs[lane] = out;
    warp.arrived |= 1u << lane;
    if ((warp.arrived & mask & warp.live) != (mask & warp.live)) return wait(warp.generation);
    for (int i = 0; i < kWarp; ++i) {
      if (warp.arrived >> i & mask >> i & 1) continue;
      warp.ins[i] = nullptr;
      warp.outs[i] = nullptr;
    }
    all(warp.ins, warp.outs, context);
    warp.arrived = 0;
    ++warp.generation;
  }

  void yield() { switch_to_scheduler(); }

 private:
  void run_block(Dim3 index, size_t shared_bytes) {
    struct Free {
      void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{kSharedAlignment}); }
    };
    const std::unique_ptr<std::byte, Free> shared(
        static_cast<std::byte*>(::operator new[](shared_bytes, std::align_val_t{kSharedAlignment})));
    if (shared_bytes > 0) std::memset(shared.get(), 0xcd, shared_bytes);
    place_.shared = shared.get();
    place_.block = index;
    start_threads();
    const int threads = static_cast<int>(place_.block_dim.count());
    for (int pass = 0; alive_ > 0; ++pass) {
      LOWKEY_CHECK(pass < kMostPasses, "threads of a block wait for each other");
      bool progress = false;
      for (int i = 0; i < threads; ++i) progress |= resume(reversed_ ? threads - 1 - i : i);
      LOWKEY_CHECK(progress, "threads of a block wait at different barriers");
    }
  }

  void start_threads() {
    const Dim3 block = place_.block_dim;
    alive_ = static_cast<int>(block.count());
    arrived_ = 0;
    warps_.assign((alive_ + kWarp - 1) / kWarp, Warp{});
    for (int i = 0; i < alive_; ++i) {
      Fiber& fiber = *fibers_[i];
      warps_[i / kWarp].live |= 1u << i % kWarp;
      fiber.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
      fiber.done = false;
      fiber.waits_for = nullptr;
      fiber.context.start(fiber.stack.get(), kStackBytes, &Runner::enter);
    }
  }

  bool resume(int index) {
    Fiber& fiber = *fibers_[index];
    if (fiber.done || (fiber.waits_for != nullptr && *fiber.waits_for == fiber.seen)) return false;
    fiber.waits_for = nullptr;
    current_ = &fiber;
    index_ = index;
    place_.thread = fiber.index;
#ifdef LOWKEY_FIBER_SANITIZED
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackBytes);
    Context::change(scheduler_, fiber.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    Context::change(scheduler_, fiber.context);
#endif
    current_ = nullptr;
    return true;
  }

  void wait(const uint64_t& generation) {
    current_->waits_for = &generation;
    current_->seen = generation;
    switch_to_scheduler();
  }

  void switch_to_scheduler() {
    Fiber& self = *current_;
#ifdef LOWKEY_FIBER_SANITIZED
    __sanitizer_start_switch_fiber(self.done ? nullptr : &self.fake_stack, scheduler_stack_, scheduler_size_);
    Context::change(self.context, scheduler_);
    __sanitizer_finish_switch_fiber(self.fake_stack, &scheduler_stack_, &scheduler_size_);
#else
    Context::change(self.context, scheduler_);
#endif
  }

  static void enter();
  void run_thread() {
#ifdef LOWKEY_FIBER_SANITIZED
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_size_);
#endif
    (*body_)();
    current_->done = true;
    warps_[index_ / kWarp].live &= ~(1u << index_ % kWarp);
    --alive_;
    if (alive_ > 0 && arrived_ == alive_) {  // who has ended counts as arrived
      arrived_ = 0;
      ++generation_;
    }
    switch_to_scheduler();
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  Context scheduler_;
  [[maybe_unused]] const void* scheduler_stack_ = nullptr;
  [[maybe_unused]] size_t scheduler_size_ = 0;
  const std::function<void()>* body_ = nullptr;
  Fiber* current_ = nullptr;
  int index_ = 0;
  Place place_;
  int alive_ = 0, arrived_ = 0;
  uint64_t generation_ = 0;
  bool reversed_ = false;
};

Runner& runner() {
  thread_local Runner instance;
  return instance;
}

void Runner::enter() {
  runner().run_thread();
}

}  // namespace

const Place& here() {
  return runner().place();
}

void set_reversed(bool reversed) {
  runner().set_reversed(reversed);
}

void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  runner().run(grid, block, shared_bytes, body);
}

void sync_block() {
  runner().sync_block();
}

void yield() {
  runner().yield();
}

void collective(uint32_t mask, const void* in, void* out, Collective all, const void* context) {
  runner().collective(mask, in, out, all, context);
}

}  // namespace lowkey::kernels::cuda::emulation
