/* SPDX-License-Identifier: MIT */
/*
 * fiber.c - stacks, the switch between them, and what happens when one overflows or a pointer goes wild.
 *
 * fiber_switch(save_sp, sp) stores the callee-saved registers on the running stack, leaves its pointer in *save_sp and
 * goes on where `sp` was left. Elsewhere than on x86-64 and aarch64, or with EMU_UCONTEXT, ucontext does the same.
 */
#define _GNU_SOURCE
#include "virtual.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if !defined(EMU_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <stdlib.h>
#include <ucontext.h>
#endif

#define STACK_BYTES (UINT64_C(128) << 10)

static char *stacks;
static uint64_t guard_bytes;

#ifdef EMU_UCONTEXT
/* sp is a ucontext_t of its own allocation. */
void fiber_switch(void **save_sp, void *sp)
{
	if (!*save_sp)
		*save_sp = calloc(1, sizeof(ucontext_t));
	swapcontext(*save_sp, sp);
}

void fiber_prepare(struct fiber *fiber, void (*entry)(void))
{
	ucontext_t *context;

	if (!fiber->sp)
		fiber->sp = calloc(1, sizeof(ucontext_t));
	context = fiber->sp;
	EMU_ASSERT(context, "no memory for a context");
	getcontext(context);
	context->uc_stack.ss_sp = fiber->stack + guard_bytes;
	context->uc_stack.ss_size = STACK_BYTES;
	makecontext(context, entry, 0);
}
#elif defined(__x86_64__)
__asm__(".text\n"
	".globl fiber_switch\n"
	".hidden fiber_switch\n"
	".type fiber_switch,@function\n"
	"fiber_switch:\n"
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
	".size fiber_switch,.-fiber_switch\n");

void fiber_prepare(struct fiber *fiber, void (*entry)(void))
{
	/* As after the call of entry: 16-byte alignment broken by a return address, which ends backtraces. */
	uint64_t *sp = (uint64_t *)(void *)(fiber->stack + guard_bytes + STACK_BYTES) - 1;

	*sp = 0;
	*--sp = (uint64_t)(uintptr_t)entry;
	for (int i = 0; i < 6; i++)
		*--sp = 0;
	fiber->sp = sp;
}
#else
__asm__(".text\n"
	".globl fiber_switch\n"
	".hidden fiber_switch\n"
	".type fiber_switch,%function\n"
	"fiber_switch:\n"
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
	".size fiber_switch,.-fiber_switch\n");

void fiber_prepare(struct fiber *fiber, void (*entry)(void))
{
	uint64_t *sp = (uint64_t *)(void *)(fiber->stack + guard_bytes + STACK_BYTES) - 20;

	memset(sp, 0, 20 * sizeof(*sp));
	sp[11] = (uint64_t)(uintptr_t)entry; /* x30 */
	fiber->sp = sp;
}
#endif

/* One mapping, a guard page below each stack; nothing is resident before it is used. */
int fibers_create(uint32_t n)
{
	uint64_t each;

	guard_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	each = guard_bytes + STACK_BYTES;
	stacks = mmap(NULL, n * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (stacks == MAP_FAILED) {
		stacks = NULL;
		return -errno;
	}
	for (uint32_t i = 0; i < n; i++) {
		vm.fibers[i].stack = stacks + i * each;
		/* The host limits the number of mappings (vm.max_map_count): beyond it, stacks go unguarded. */
		if (mprotect(vm.fibers[i].stack, guard_bytes, PROT_NONE) && errno != ENOMEM)
			return -errno;
	}
	return 0;
}

void fibers_destroy(uint32_t n)
{
	if (stacks)
		munmap(stacks, n * (guard_bytes + STACK_BYTES));
	stacks = NULL;
#ifdef EMU_UCONTEXT
	for (uint32_t i = 0; i < n; i++)
		free(vm.fibers[i].sp);
#endif
}

static struct sigaction old_actions[2];
static stack_t old_stack;
static char signal_stack[64 << 10];

/* Runs on its own stack, leaves by switching away; the run is over, the process is not. */
static void on_fault(int number, siginfo_t *info, void *context)
{
	const char *at = info->si_addr;
	(void)context;

	/* Not on a fiber: not ours. The instruction runs again and meets the old handler. */
	if (!vm.span) {
		fault_handler(false);
		return;
	}
	if (at >= vm.fiber->stack && at < vm.fiber->stack + guard_bytes)
		emu_set_error(-EFAULT, "stack overflow: CPU %u at %llu ns, seed %llu: more than %llu KiB", vm.cpu,
			      (unsigned long long)(vm.clock / 1000), (unsigned long long)emu_arena->config.seed,
			      (unsigned long long)(STACK_BYTES >> 10));
	else
		emu_set_error(-EFAULT, "wild pointer %p: CPU %u at %llu ns, seed %llu%s", (const void *)at, vm.cpu,
			      (unsigned long long)(vm.clock / 1000), (unsigned long long)emu_arena->config.seed,
			      number == SIGBUS ? " (SIGBUS)" : "");
	sched_fail(-EFAULT);
}

void fault_handler(bool on)
{
	static const int numbers[2] = { SIGSEGV, SIGBUS };
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	stack_t stack = { .ss_sp = signal_stack, .ss_size = sizeof(signal_stack) };

	if (on)
		sigaltstack(&stack, &old_stack);
	for (int i = 0; i < 2; i++)
		sigaction(numbers[i], on ? &action : &old_actions[i], on ? &old_actions[i] : NULL);
	if (!on)
		sigaltstack(&old_stack, NULL);
}
