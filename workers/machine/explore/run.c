/* SPDX-License-Identifier: MIT */
/*
 * run.c - one run of a scenario: a fiber a CPU, waiting, the end; and the services of emu/machine.h.
 *
 * A CPU that cannot go on is no choice: asleep on a futex until it is woken, parked in a spin loop until a line that it
 * looked at changes. If no CPU can go on, that is a deadlock. Time does not pass by itself: it may jump, which is a
 * choice, so that what happens after a time-out is explored too.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define STACK_BYTES (UINT64_C(128) << 10)
#define CLOCK_STEP_NS 100u
#define CLOCK_JUMP_NS 5000000u /* past every time-out of a lock */
#define WAITS_MAX 2000u

struct explore x = { .main.cpu = CPUS, .me = &x.main };
struct task_struct *emu_current;
bool emu_numa_penalty;
_Thread_local void *emu_fail_jmp;

static char *stacks;
static uint64_t guard_bytes;
static jmp_buf outside; /* setup() and check() fail to here */

/*
 * Failing
 */

void fail(enum emu_explore_kind kind, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(x.failure.text, sizeof(x.failure.text), fmt, ap);
	va_end(ap);
	x.failure.kind = kind;
	x.failed = true;
	if (!x.running)
		longjmp(outside, 1);
	x.running = false;
	context_switch(&x.me->sp, x.main.sp);
	__builtin_unreachable();
}

/* What emu_bug() has to say, instead of ending the process. */
static void on_bug(const char *place, const char *what)
{
	char stack[256];

	if (!x.scenario)
		return;
	stack_text(x.me, stack, sizeof(stack));
	if (x.me == &x.main)
		fail(EMU_FOUND_ASSERT, "%s: %s", place, what);
	fail(EMU_FOUND_ASSERT, "%s: %s; CPU%u in %s", place, what, x.me->cpu, stack);
}

_Noreturn void emu_machine_exit(void)
{
	if (x.scenario && x.span)
		fail(EMU_FOUND_ASSERT, "%s", emu_error());
	_exit(1);
}

/* On its own stack; leaves by switching away. */
static void on_fault(int number, siginfo_t *info, void *context)
{
	const char *at = info->si_addr;
	char stack[256];

	(void)context;
	if (!x.span) {
		signal(number, SIG_DFL);
		return;
	}
	stack_text(x.me, stack, sizeof(stack));
	if (x.me != &x.main && at >= x.me->stack - guard_bytes && at < x.me->stack)
		fail(EMU_FOUND_FAULT, "stack overflow: CPU%u in %s", x.me->cpu, stack);
	fail(EMU_FOUND_FAULT, "wild pointer %p: CPU%u in %s", (const void *)at, x.me->cpu, stack);
}

void faults(bool on)
{
	context_faults(on ? on_fault : NULL);
}

/*
 * Going on
 */

static void switch_to(uint32_t number)
{
	struct xcpu *self = x.me, *next = &x.cpus[number];

	x.me = next;
	emu_current = &emu_arena->cpus[number].task;
	context_switch(&self->sp, next->sp);
}

void sched_point(const struct op *op)
{
	struct xcpu *me = x.me;
	uint32_t next;

	me->op = *op;
	if (unlikely(++x.steps > x.max_steps)) {
		char stack[256];

		stack_text(me, stack, sizeof(stack));
		fail(EMU_FOUND_LIVELOCK, "livelock: %u steps and no end; CPU%u is in %s", x.max_steps, me->cpu, stack);
	}
	if (!x.policy->always && !(x.ready & (x.ready - 1)))
		return;
	next = x.policy->next_cpu(me->cpu);
	if (next != me->cpu)
		switch_to(next);
}

static void deadlock(void)
{
	char text[900];
	size_t used = 0;

	for (uint32_t i = 0; i < x.nr_cpus; i++) {
		const struct xcpu *cpu = &x.cpus[i];
		char stack[200], name[96];

		if (cpu->state == CPU_DONE)
			continue;
		stack_text(cpu, stack, sizeof(stack));
		address_name(cpu->state == CPU_ASLEEP ? (uintptr_t)cpu->futex
			     : cpu->nr_watches ? x.base + ((uintptr_t)cpu->watches[cpu->nr_watches - 1].line << 6)
					       : cpu->op.addr,
			     name, sizeof(name));
		used += (size_t)snprintf(text + used, sizeof(text) - used, "\n  CPU%u %s %s in %s", i,
					 cpu->state == CPU_ASLEEP ? "sleeps on" : "waits for a change of", name, stack);
		if (used >= sizeof(text))
			break;
		for (uint32_t h = 0; h < cpu->nr_held && used < sizeof(text); h++) {
			address_name((uintptr_t)cpu->held[h].lock, name, sizeof(name));
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%s %s", h ? "," : ", has", name);
		}
		if (used >= sizeof(text))
			break;
	}
	fail(EMU_FOUND_DEADLOCK, "deadlock: nobody can go on%s", text);
}

void block(enum cpu_state state)
{
	struct xcpu *me = x.me;
	uint32_t bit = 1u << me->cpu, next;

	me->state = state;
	x.ready &= ~bit;
	if (state == CPU_PARKED)
		x.waiting |= bit;
	if (!x.ready) {
		for (uint32_t i = 0; i < x.nr_cpus; i++)
			if (x.cpus[i].state != CPU_DONE)
				deadlock();
		context_switch(&me->sp, x.main.sp);
		__builtin_unreachable();
	}
	next = (uint32_t)__builtin_ctz(x.ready);
	if (x.policy->always || (x.ready & (x.ready - 1)))
		next = x.policy->next_cpu(next);
	switch_to(next);
}

void make_ready(struct xcpu *cpu, uint8_t kind, uintptr_t addr)
{
	cpu->state = CPU_READY;
	x.ready |= 1u << cpu->cpu;
	x.waiting &= ~(1u << cpu->cpu);
	if (kind != OP_LOCK)
		cpu->op = (struct op){ .kind = kind, .size = 4, .addr = addr };
}

void wake_watchers(uint32_t line, uintptr_t addr)
{
	for (uint32_t mask = x.waiting; mask; mask &= mask - 1) {
		struct xcpu *cpu = &x.cpus[__builtin_ctz(mask)];

		for (uint32_t i = 0; i < cpu->nr_watches; i++) {
			if (cpu->watches[i].line == line) {
				make_ready(cpu, OP_READ, addr);
				break;
			}
		}
	}
}

uint32_t choose_value(uint32_t n)
{
	uint32_t value = x.policy->value(n, false);

	decision_record(value);
	return value;
}

bool choose_rare(void)
{
	bool value;

	if (x.policy->always)
		return false;
	value = x.policy->value(2, true) != 0;
	decision_record(value);
	return value;
}

static void entry(void)
{
	x.scenario->cpu(x.me->cpu);
	if (rcu_is_modelled())
		emu_rcu_idle();
	block(CPU_DONE);
	__builtin_unreachable();
}

/* CPUs are in a phase from beginning to end, as far as RCU knows. */
void rcu_begin(void)
{
	emu_rcu_init(emu_rcu, emu_rcu_cpus());
	for (uint32_t i = 0; i < x.nr_cpus; i++)
		atomic_store(&emu_rcu->cpus[i].seen, 1);
}

static void begin(void)
{
	x.run++;
	x.steps = 0;
	x.nr_decisions = 0;
	x.nr_locations = 0;
	x.nr_readers = 1;
	x.sc_tick = 0;
	x.clock_ns = 1000000;
	x.waiting = 0;
	x.ready = (1u << x.nr_cpus) - 1;
	x.failed = false;
	memset(&x.sc_seen, 0, sizeof(x.sc_seen));
	if (!rcu_is_modelled())
		rcu_begin();
	for (uint32_t i = 0; i < x.nr_cpus; i++) {
		struct xcpu *cpu = &x.cpus[i];
		struct task_struct *task = &emu_arena->cpus[i].task;

		cpu->state = CPU_READY;
		cpu->depth = 0;
		look_at_nothing(cpu);
		cpu->nr_held = cpu->waits = cpu->sleeps = cpu->stale_loads = 0;
		cpu->stale = cpu->has_acq = cpu->has_rel = false;
		cpu->fence_tick = 0;
		cpu->futex = NULL;
		cpu->op = (struct op){ .kind = OP_LOCAL };
		memset(&cpu->hb, 0, sizeof(cpu->hb));
		cpu->hb.of[i] = 1;
		cpu->seen = cpu->hb;
		set_epoch(cpu);
		/* Written by the machine itself, which nobody logs. */
		task->site = 0;
		task->holds[0].lock = NULL;
		emu_arena->cpus[i].random = emu_arena->config.seed * UINT64_C(0xd1342543de82ef95) + i;
		context_prepare(&cpu->sp, cpu->stack, STACK_BYTES, entry);
	}
	oracle_begin_run();
}

void run_once(void)
{
	uint32_t first;

	begin();
	x.span = x.full_span;
	first = x.policy->always || x.nr_cpus > 1 ? x.policy->next_cpu(0) : 0;
	x.running = true;
	x.main.depth = x.main.nr_held = 0;
	switch_to(first);
	x.running = false;
	x.me = &x.main;
	x.main.depth = 0;
	emu_cpu_attach(0);
	emu_current->site = 0;
	if (!x.failed && !dpor_run_was_cut() && !setjmp(outside)) {
		oracle_quiet();
		if (rcu_is_modelled())
			emu_rcu_online();
		if (x.scenario->check)
			x.scenario->check();
		oracle_end_run();
	}
	emu_current = NULL;
	x.span = 0;
	memory_reset();
}

int run_alone(void (*fn)(void))
{
	if (setjmp(outside)) {
		emu_current = NULL;
		return -1;
	}
	emu_cpu_attach(0);
	emu_current->site = 0;
	fn();
	emu_current = NULL;
	return 0;
}

int machine_create(void)
{
	uint64_t each;

	guard_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	each = guard_bytes + STACK_BYTES;
	stacks = mmap(NULL, CPUS * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (stacks == MAP_FAILED) {
		stacks = NULL;
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < CPUS; i++) {
		x.cpus[i].cpu = i;
		x.cpus[i].stack = stacks + i * each + guard_bytes;
		mprotect(stacks + i * each, guard_bytes, PROT_NONE);
	}
	emu_bug_hook = on_bug;
	return 0;
}

void machine_destroy(void)
{
	emu_bug_hook = NULL;
	for (uint32_t i = 0; i < CPUS; i++)
		context_free(&x.cpus[i].sp);
	if (stacks)
		munmap(stacks, CPUS * (guard_bytes + STACK_BYTES));
	stacks = NULL;
}

/*
 * Services
 */

uint64_t emu_clock_ns(void)
{
	if (!x.running)
		return x.clock_ns;
	x.clock_ns += choose_rare() ? CLOCK_JUMP_NS : CLOCK_STEP_NS;
	return x.clock_ns;
}

void emu_compute(uint64_t ns)
{
	x.clock_ns += ns;
}

void emu_wait_unwatched(void)
{
	emu_compute(1000);
}

/* Others may go on as between any two accesses: that is long enough. */
void emu_sleep(uint64_t ns)
{
	uint64_t rcu = emu_rcu_sleep();

	x.clock_ns += ns;
	emu_rcu_wake(rcu);
}

/* No TLB is modelled, and no time. */
void emu_tlb_flush(const struct mm_struct *mm, const _Atomic uint64_t *cpus, uint32_t nr_bits)
{
	(void)mm;
	(void)cpus;
	(void)nr_bits;
}

bool emu_need_resched(void)
{
	return x.running && choose_rare();
}

/* A CPU has one task. */
void emu_preempt_disable(void)
{
}

void emu_preempt_enable(void)
{
}

void emu_waited_for(uint32_t class_id)
{
	(void)class_id;
}

void emu_line_moved_slow(uint32_t *last)
{
	(void)last;
}

void emu_machine_init(void)
{
}

void emu_machine_bind(void *base, uint64_t bytes, int32_t host_node)
{
	(void)base;
	(void)bytes;
	(void)host_node;
}

static void count_wait(void)
{
	if (unlikely(++x.me->waits > WAITS_MAX)) {
		char stack[256];

		stack_text(x.me, stack, sizeof(stack));
		fail(EMU_FOUND_STARVATION, "starvation: CPU%u has waited %u times and is still in %s", x.me->cpu,
		     WAITS_MAX, stack);
	}
}

void emu_spin_wait(const volatile void *addr)
{
	struct xcpu *me = x.me;
	bool again = me->stale;

	if (!x.running) {
		fail(EMU_FOUND_LEAK, "a lock is still held at the end, or setup() or check() would wait for ever");
		return;
	}
	count_wait();
	if (in_arena((uintptr_t)addr))
		look_at((uintptr_t)addr);
	for (uint32_t i = 0; i < me->nr_watches && !again; i++)
		again = x.versions[me->watches[i].line] != me->watches[i].version;
	if (me->stale)
		see_newest();
	if (!again)
		block(CPU_PARKED);
	look_at_nothing(me);
	me->stale = false;
}

/* Now and then nothing happens until then. */
void emu_spin_wait_until(const volatile void *addr, uint64_t until_ns)
{
	if (until_ns != UINT64_MAX && x.running && choose_rare()) {
		x.clock_ns = x.clock_ns < until_ns ? until_ns : x.clock_ns;
		return;
	}
	emu_spin_wait(addr);
}

void emu_futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
	struct xcpu *me = x.me;
	uintptr_t on_cpu = (uintptr_t)&emu_current->on_cpu;
	uintptr_t pc = (uintptr_t)__builtin_return_address(0);

	if (!x.running) {
		fail(EMU_FOUND_LEAK, "a lock is still held at the end, or setup() or check() would sleep for ever");
		return;
	}
	count_wait();
	/* Spinners on a lock that this task owns stop spinning from here on. */
	atomic_store_value(on_cpu, 4, 0, __ATOMIC_RELAXED, pc);
	if (futex_look((uintptr_t)word, pc) == expected) {
		me->futex = word;
		me->sleeps++;
		block(CPU_ASLEEP);
	}
	atomic_store_value(on_cpu, 4, 1, __ATOMIC_RELAXED, pc);
	look_at_nothing(me);
	me->stale = false;
}

uint32_t emu_futex_wake(_Atomic uint32_t *word, uint32_t n)
{
	uint32_t woken = 0, sleepers = 0;

	if (!x.running)
		return 0;
	futex_look((uintptr_t)word, (uintptr_t)__builtin_return_address(0));
	for (uint32_t i = 0; i < x.nr_cpus; i++)
		if (x.cpus[i].state == CPU_ASLEEP && x.cpus[i].futex == word)
			sleepers |= 1u << i;
	while (sleepers && woken < n) {
		uint32_t count = (uint32_t)__builtin_popcount(sleepers), nth = 0, mask = sleepers;

		/* In any order. */
		if (count > n - woken)
			nth = choose_value(count);
		while (nth--)
			mask &= mask - 1;
		mask &= -mask;
		sleepers &= ~mask;
		make_ready(&x.cpus[__builtin_ctz(mask)], OP_MODIFY, (uintptr_t)word);
		woken++;
	}
	return woken;
}

/*
 * The explorer's own lock: a CPU is ready to take it while it is free, and else is not.
 */

void emu_plain_lock(_Atomic uint32_t *word)
{
	uintptr_t addr = (uintptr_t)word;
	struct op op = { .kind = OP_LOCK,
			 .order = __ATOMIC_ACQUIRE,
			 .size = 4,
			 .addr = addr,
			 .pc = (uintptr_t)__builtin_return_address(0) };

	if (!x.running)
		return;
	if (peek(addr, 4)) {
		x.me->op = op;
		block(CPU_LOCKED_OUT);
	} else {
		sched_point(&op);
	}
	op_begins(&op);
	atomic_modify_end(addr, 4, 0, 1, __ATOMIC_ACQUIRE, op.pc);
	for (uint32_t i = 0; i < x.nr_cpus; i++) {
		struct xcpu *cpu = &x.cpus[i];

		if (cpu != x.me && cpu->state == CPU_READY && cpu->op.kind == OP_LOCK && cpu->op.addr == addr) {
			cpu->state = CPU_LOCKED_OUT;
			x.ready &= ~(1u << i);
		}
	}
}

void emu_plain_unlock(_Atomic uint32_t *word)
{
	uintptr_t addr = (uintptr_t)word;
	struct op op = { .kind = OP_UNLOCK,
			 .order = __ATOMIC_RELEASE,
			 .size = 4,
			 .addr = addr,
			 .pc = (uintptr_t)__builtin_return_address(0) };

	if (!x.running)
		return;
	sched_point(&op);
	op_begins(&op);
	if (!peek(addr, 4))
		fail(EMU_FOUND_LEAK, "unlock of a lock that nobody has, by CPU%u", x.me->cpu);
	atomic_modify_end(addr, 4, 1, 0, __ATOMIC_RELEASE, op.pc);
	for (uint32_t i = 0; i < x.nr_cpus; i++)
		if (x.cpus[i].state == CPU_LOCKED_OUT && x.cpus[i].op.addr == addr)
			make_ready(&x.cpus[i], OP_LOCK, addr);
}
