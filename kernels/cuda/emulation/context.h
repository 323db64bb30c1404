// A stack and a place in the code on it: what a fiber is. The C library's contexts ask the kernel for the
// signal mask at every switch, which costs more than a small kernel computes between two barriers; where we
// know the processor we only change registers.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace lowkey::kernels::cuda::emulation {

#ifdef __x86_64__

extern "C" void lowkey_switch_stacks(void** save, void* load);

class Context {
 public:
  void start(std::byte* stack, size_t bytes, void (*entry)()) {
    auto* top = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
    *--top = 0;  // entry() returns to nowhere: it must not
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    stack_pointer_ = top;
  }
  static void change(Context& from, const Context& to) {
    lowkey_switch_stacks(&from.stack_pointer_, to.stack_pointer_);
  }

 private:
  void* stack_pointer_ = nullptr;
};

#else

class Context {
 public:
  void start(std::byte* stack, size_t bytes, void (*entry)()) {
    ::getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    ::makecontext(&context_, entry, 0);
  }
  static void change(Context& from, const Context& to) { ::swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace lowkey::kernels::cuda::emulation
