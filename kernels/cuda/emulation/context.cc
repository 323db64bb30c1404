#include "kernels/cuda/emulation/context.h"

#ifdef __x86_64__
// What a call preserves is pushed, the stack pointer changes, and the same is popped (System V ABI).
asm(R"(
.text
.globl lowkey_switch_stacks
.type lowkey_switch_stacks, @function
lowkey_switch_stacks:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lowkey_switch_stacks, .-lowkey_switch_stacks
)");
#endif
