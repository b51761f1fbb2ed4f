/* SPDX-License-Identifier: MIT */
/*
 * context.c - the switch between stacks (see context.h). Elsewhere than on x86-64 and aarch64, or with EMU_UCONTEXT,
 * ucontext does it.
 */
#define _GNU_SOURCE
#include "context.h"

#include <string.h>
#if !defined(EMU_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <stdlib.h>
#include <ucontext.h>
#endif

#ifdef EMU_UCONTEXT
/* sp is a ucontext_t of its own allocation. */
void context_switch(void **save_sp, void *sp)
{
	if (!*save_sp)
		*save_sp = calloc(1, sizeof(ucontext_t));
	swapcontext(*save_sp, sp);
}

void context_prepare(void **sp, char *stack, uint64_t bytes, void (*entry)(void))
{
	ucontext_t *context;

	if (!*sp)
		*sp = calloc(1, sizeof(ucontext_t));
	context = *sp;
	if (!context)
		abort();
	getcontext(context);
	context->uc_stack.ss_sp = stack;
	context->uc_stack.ss_size = bytes;
	makecontext(context, entry, 0);
}

void context_free(void **sp)
{
	free(*sp);
	*sp = NULL;
}
#elif defined(__x86_64__)
__asm__(".text\n"
	".globl context_switch\n"
	".hidden context_switch\n"
	".type context_switch,@function\n"
	"context_switch:\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	ret\n"
	".size context_switch,.-context_switch\n");

void context_prepare(void **sp, char *stack, uint64_t bytes, void (*entry)(void))
{
	/* As after the call of entry: 16-byte alignment broken by a return address, which ends backtraces. */
	uint64_t *top = (uint64_t *)(void *)(stack + bytes) - 1;

	*top = 0;
	*--top = (uint64_t)(uintptr_t)entry;
	for (int i = 0; i < 6; i++)
		*--top = 0;
	*sp = top;
}
#else
__asm__(".text\n"
	".globl context_switch\n"
	".hidden context_switch\n"
	".type context_switch,%function\n"
	"context_switch:\n"
	"	sub sp, sp, #160\n"
	"	stp x19, x20, [sp, #0]\n"
	"	stp x21, x22, [sp, #16]\n"
	"	stp x23, x24, [sp, #32]\n"
	"	stp x25, x26, [sp, #48]\n"
	"	stp x27, x28, [sp, #64]\n"
	"	stp x29, x30, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]\n"
	"	stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]\n"
	"	stp d14, d15, [sp, #144]\n"
	"	mov x9, sp\n"
	"	str x9, [x0]\n"
	"	mov sp, x1\n"
	"	ldp x19, x20, [sp, #0]\n"
	"	ldp x21, x22, [sp, #16]\n"
	"	ldp x23, x24, [sp, #32]\n"
	"	ldp x25, x26, [sp, #48]\n"
	"	ldp x27, x28, [sp, #64]\n"
	"	ldp x29, x30, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]\n"
	"	ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]\n"
	"	ldp d14, d15, [sp, #144]\n"
	"	add sp, sp, #160\n"
	"	ret\n"
	".size context_switch,.-context_switch\n");

void context_prepare(void **sp, char *stack, uint64_t bytes, void (*entry)(void))
{
	uint64_t *top = (uint64_t *)(void *)(stack + bytes) - 20;

	memset(top, 0, 20 * sizeof(*top));
	top[11] = (uint64_t)(uintptr_t)entry; /* x30 */
	*sp = top;
}
#endif

#ifndef EMU_UCONTEXT
void context_free(void **sp)
{
	*sp = NULL;
}
#endif

void context_faults(void (*handler)(int number, siginfo_t *info, void *context))
{
	static const int numbers[2] = { SIGSEGV, SIGBUS };
	static char signal_stack[64 << 10];
	static struct sigaction old_actions[2];
	static stack_t old_stack;
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	stack_t stack = { .ss_sp = signal_stack, .ss_size = sizeof(signal_stack) };

	if (handler)
		sigaltstack(&stack, &old_stack);
	for (int i = 0; i < 2; i++)
		sigaction(numbers[i], handler ? &action : &old_actions[i], handler ? &old_actions[i] : NULL);
	if (!handler)
		sigaltstack(&old_stack, NULL);
}
