/* SPDX-License-Identifier: MIT */
/*
 * sched.c - which task goes on: of those on a CPU always the one whose clock is least, the lower number first.
 *
 * Tasks that can go on, but the running one, are in a 4-ary heap of keys (clock, number). A task that waits is in none:
 * it is in the lists of the lines that it watches, or asleep in the queue of a futex, until another's write or wake puts
 * it back with the time of that.
 *
 * Where tasks outnumber CPUs each CPU has a run queue, first come, first served. At the end of its time slice a task
 * goes to the back, if there is anybody else and it may be preempted; if it may not, emu_need_resched() tells it to come
 * to an end, and it goes when it may. A wake never preempts: the woken task waits for the running one's slice to end.
 * A task that is parked keeps its CPU, as a spinning one does. If it spins for so long only, or others wait for the CPU
 * and its slice ends, then that time is in the heap, under its own number: a timer. So is the end of a sleep that has
 * one, of a task that has no CPU then.
 */
#include "virtual.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FUTEX_BUCKETS 1024u
#define IDLE_MEMORY 8u /* idle times that a guess of the next remembers, as Linux' menu governor's */

static struct {
	struct fiber *first, *last;
} futexes[FUTEX_BUCKETS];

static void heap_down(uint64_t key)
{
	uint64_t *heap = vm.heap;
	uint32_t at = 0, n = vm.heap_size;

	for (;;) {
		uint32_t child = 4 * at + 1, least = child;

		if (likely(child + 4 <= n)) {
			/* Without branches: which child is least, no host can guess. */
			uint32_t right = child + 2 + (heap[child + 3] < heap[child + 2]);

			least += heap[child + 1] < heap[child];
			least += (right - least) & -(uint32_t)(heap[right] < heap[least]);
		} else if (child < n) {
			for (uint32_t i = child + 1; i < n; i++)
				least = heap[i] < heap[least] ? i : least;
		} else {
			break;
		}
		if (heap[least] >= key)
			break;
		heap[at] = heap[least];
		at = least;
	}
	heap[at] = key;
	vm.top_key = heap[0];
}

static void heap_up(uint32_t at, uint64_t key)
{
	while (at) {
		uint32_t parent = (at - 1) / 4;

		if (vm.heap[parent] <= key)
			break;
		vm.heap[at] = vm.heap[parent];
		at = parent;
	}
	vm.heap[at] = key;
	vm.top_key = vm.heap[0];
}

void sched_push(struct fiber *fiber)
{
	fiber->state = FIBER_READY;
	heap_up(vm.heap_size++, queue_key(fiber->clock, fiber->nr));
}

/* A timer of a task that goes on before that. Rare enough to look for it. */
static void heap_remove(uint64_t key)
{
	uint32_t at = 0;
	uint64_t last = vm.heap[--vm.heap_size];

	while (vm.heap[at] != key)
		at++;
	if (key == last) {
		if (!vm.heap_size)
			vm.top_key = UINT64_MAX;
		return;
	}
	/* Upwards to the root, which then sinks like any other: right whichever way `last` has to go. */
	for (; at; at = (at - 1) / 4)
		vm.heap[at] = vm.heap[(at - 1) / 4];
	heap_down(last);
}

static struct fiber *heap_pop(void)
{
	struct fiber *first = &vm.fibers[vm.heap[0] & 0xffff];

	vm.heap_size--;
	if (vm.heap_size)
		heap_down(vm.heap[vm.heap_size]);
	else
		vm.top_key = UINT64_MAX;
	return first;
}

static void leave(struct fiber *f)
{
	f->clock = vm.clock;
	f->depth = vm.depth;
	f->preempt_off = vm.preempt_off;
}

/* It goes on no earlier than that. Interrupts that it took instead of turns of its loop were over before, or are now. */
static void unpark(struct fiber *f, uint64_t when)
{
	f->clock = later(later(f->clock, when), f->interrupted_until);
}

/* The time of a parked task is over: it goes on, to find that out itself. */
static void timer_fired(struct fiber *f)
{
	unpark(f, f->timer);
	f->timer = 0;
	f->state = FIBER_READY;
	vm.busy[f->core]++;
}

static void set_horizon(void)
{
	if (likely(!vm.shared)) {
		vm.horizon = vm.clock + HORIZON_PS;
		return;
	}
	vm.slice_end = vm.queues[vm.cpu].slice_end;
	vm.horizon = vm.clock + HORIZON_PS < vm.slice_end ? vm.clock + HORIZON_PS : vm.slice_end;
}

static void enter(struct fiber *f)
{
	if (unlikely(f->state == FIBER_PARKED))
		timer_fired(f);
	vm.fiber = f;
	/* In the queue it still has the time before the interrupts: it gives way at its next point of order. */
	vm.clock = f->clock + f->stolen;
	f->spent.compute_ps += f->stolen;
	f->stolen = 0;
	vm.cpu = f->cpu;
	vm.nr = f->nr;
	vm.preempt_off = f->preempt_off;
	vm.access_ps = vm.access_ps_of[vm.busy[f->core]];
	set_horizon();
	vm.tags = f->tags;
	vm.shadow = f->shadow;
	vm.depth = f->depth;
	vm.last_write = NO_LINE;
	emu_current = f->task;
}

void limit_events(void)
{
	vm.accesses_limit = vm.cost.event_limit ? vm.accesses + vm.cost.event_limit : UINT64_MAX;
}

static void check_limits(void)
{
	char stack[256];

	if (likely(vm.accesses <= vm.accesses_limit && !(vm.clock >> TIME_BITS)))
		return;
	leave(vm.fiber);
	emu_virtual_stack(vm.nr, stack, sizeof(stack));
	if (vm.clock >> TIME_BITS)
		emu_set_error(-ETIME, "virtual time has reached %llu ns, its limit: CPU %u in %s, seed %llu",
			      (unsigned long long)(vm.clock / 1000), vm.cpu, stack,
			      (unsigned long long)emu_arena->config.seed);
	else
		emu_set_error(-ETIME,
			      "event limit: %llu accesses in which no call ended; CPU %u at %llu ns is in %s, seed %llu",
			      (unsigned long long)vm.cost.event_limit, vm.cpu, (unsigned long long)(vm.clock / 1000),
			      stack, (unsigned long long)emu_arena->config.seed);
	sched_fail(-ETIME);
}

static void switch_to(struct fiber *next)
{
	struct fiber *self = vm.fiber;

	leave(self);
	vm.switches++;
	enter(next);
	if (vm.heap_size) {
		/* Who will probably be next: what it needs is seldom in the host's cache any more. */
		const struct fiber *soon = &vm.fibers[vm.heap[0] & 0xffff];

		__builtin_prefetch(soon->sp);
		__builtin_prefetch((const char *)soon->sp + 64);
		__builtin_prefetch((const char *)soon->sp + 128);
		__builtin_prefetch(&soon->store_done);
		__builtin_prefetch(&soon->watches);
		__builtin_prefetch(&soon->spent);
		__builtin_prefetch(&soon->shadow[(soon->depth - 1) % SHADOW_DEPTH]);
		__builtin_prefetch(soon->task);
	}
	/* Itself, if its own timer is next. */
	if (likely(next != self))
		context_switch(&self->sp, next->sp);
	check_limits();
}

static void expire(struct fiber *f);

/* Sleeps that end before anybody else comes wake their tasks. */
static void expire_first(void)
{
	while (vm.heap_size && vm.fibers[vm.heap[0] & 0xffff].state == FIBER_TIMED)
		expire(heap_pop());
}

void sched_yield_to_first(void)
{
	struct fiber *next = &vm.fibers[vm.heap[0] & 0xffff];

	if (unlikely(next->state == FIBER_TIMED)) {
		expire_first();
		next = &vm.fibers[vm.heap[0] & 0xffff];
		if (queue_key(vm.clock, vm.nr) < vm.top_key)
			return;
	}
	vm.fiber->state = FIBER_READY;
	heap_down(queue_key(vm.clock, vm.nr));
	switch_to(next);
}

static void slice_over(void);

void horizon_reached(void)
{
	check_limits();
	if (vm.clock >= vm.slice_end) {
		slice_over();
		return;
	}
	set_horizon();
	if (queue_key(vm.clock, vm.nr) > vm.top_key)
		sched_yield_to_first();
}

/* A step of computing is over, and there are more. */
void computed(void)
{
	if (vm.clock >= vm.slice_end)
		slice_over();
	else if (queue_key(vm.clock, vm.nr) > vm.top_key)
		sched_yield_to_first();
}

static void to_main(void)
{
	struct fiber *self = vm.fiber;

	leave(self);
	vm.fiber = &vm.main;
	context_switch(&self->sp, vm.main.sp);
}

void sched_fail(int err)
{
	vm.error = err;
	to_main();
	__builtin_unreachable();
}

/* Looking at the clock takes no time, so whoever waits for it by looking waits for ever. */
void clock_stands_still(void)
{
	char stack[256];

	leave(vm.fiber);
	emu_virtual_stack(vm.nr, stack, sizeof(stack));
	emu_set_error(-ETIME, "CPU %u waits for the clock, which stands at %llu ns, in %s, seed %llu: emu_compute() "
		      "lets time pass", vm.cpu, (unsigned long long)(vm.clock / 1000), stack,
		      (unsigned long long)emu_arena->config.seed);
	sched_fail(-ETIME);
}

/* The signal came from a place without accesses; it is not returned to. */
void computes_for_ever(int seconds)
{
	char stack[256];

	leave(vm.fiber);
	emu_virtual_stack(vm.nr, stack, sizeof(stack));
	emu_set_error(-ETIME, "CPU %u at %llu ns has computed for %d s of the host's time without an access to shared memory, "
		      "in %s, seed %llu", vm.cpu, (unsigned long long)(vm.clock / 1000), seconds, stack,
		      (unsigned long long)emu_arena->config.seed);
	sched_fail(-ETIME);
}

/* Nobody can run: says who waits for what and where, as far as a line has room. */
static void report_deadlock(void)
{
	char text[400];
	size_t used = 0;
	uint32_t waiting = 0, told = 0;

	text[0] = '\0';
	for (uint32_t i = 0; i < vm.nr_tasks; i++) {
		const struct fiber *f = &vm.fibers[i];
		bool asleep = f->state == FIBER_ASLEEP;
		char what[64], stack[160];
		uint64_t offset;
		int n;

		if (f->state != FIBER_PARKED && !asleep)
			continue;
		waiting++;
		if (told + 1 != waiting)
			continue;
		offset = asleep ? (uint64_t)((const char *)f->futex - (const char *)emu_arena) :
				  ((uint64_t)f->watches[f->nr_watches - 1].line << 6) + vm.base - (uintptr_t)emu_arena;
		emu_virtual_symbol(offset, what, sizeof(what));
		emu_virtual_stack(i, stack, sizeof(stack));
		n = snprintf(text + used, sizeof(text) - used, "%sCPU %u %s %s in %s", told ? "; " : "", i,
			     asleep ? "sleeps on" : "spins on", what, stack);
		if (used + (size_t)n >= sizeof(text)) {
			text[used] = '\0';
			continue;
		}
		used += (size_t)n;
		told++;
	}
	if (told < waiting)
		emu_set_error(-EDEADLK, "deadlock: all CPUs wait: %s; and %u more", text, waiting - told);
	else
		emu_set_error(-EDEADLK, "deadlock: all CPUs wait: %s", text);
}

/* The running fiber is in some list of waiters, or done. */
static void block(void)
{
	leave(vm.fiber);
	expire_first();
	/* Its own sleep, if that is the first to end. */
	vm.clock = vm.fiber->clock;
	if (vm.heap_size) {
		switch_to(heap_pop());
		return;
	}
	if (vm.nr_done < vm.nr_tasks) {
		leave(vm.fiber);
		report_deadlock();
		vm.error = -EDEADLK;
	}
	to_main();
}

/*
 * Spinning
 */

static struct watch *watch_of(uint32_t id)
{
	return &vm.fibers[(id - 1) / WATCHES].watches[(id - 1) % WATCHES];
}

static void unwatch(struct fiber *f)
{
	for (uint32_t i = 0; i < f->nr_watches; i++) {
		struct watch *w = &f->watches[i];

		if (w->prev)
			watch_of(w->prev)->next = w->next;
		else
			vm.transits[w->line].watchers = w->next;
		if (w->next)
			watch_of(w->next)->prev = w->prev;
	}
	f->nr_watches = 0;
}

void fiber_wake_watchers(uint32_t line, uint64_t when)
{
	while (vm.transits[line].watchers) {
		struct fiber *f = &vm.fibers[(vm.transits[line].watchers - 1) / WATCHES];

		unwatch(f);
		if (unlikely(f->timer)) {
			heap_remove(queue_key(f->timer, f->nr));
			f->timer = 0;
		}
		unpark(f, when);
		vm.busy[f->core]++;
		sched_push(f);
	}
}

/* Of a task that is parked, or is about to be. */
static void set_timer(struct fiber *f, uint64_t when)
{
	if (f->timer && f->timer <= when)
		return;
	if (f->timer)
		heap_remove(queue_key(f->timer, f->nr));
	f->timer = when;
	heap_up(vm.heap_size++, queue_key(when, f->nr));
}

/* Others wait for the CPU of such a task. */
static void set_slice_timer(struct run_queue *queue)
{
	if (queue->resched || !queue->first)
		return;
	if (queue->slice_end < queue->first->queued_at) {
		uint64_t late = queue->first->queued_at - queue->slice_end, slice = vm.cost.time_slice_ps;

		queue->slice_end += (late + slice - 1) / slice * slice;
	}
	set_timer(queue->running, queue->slice_end);
}

void charge(void)
{
	EMU_ASSERT(vm.in_phase, "a wait outside a phase: nobody else runs");
	vm.span = vm.full_span;
}

void emu_spin_wait_until(const volatile void *addr, uint64_t until_ns)
{
	struct fiber *f = vm.fiber;
	uint64_t offset = (uintptr_t)addr - vm.base, start = vm.clock;

	if (unlikely(!vm.span)) {
		/* What was looked at has not been watched: the caller looks again. */
		charge();
		return;
	}
	if (unlikely(vm.clock >= vm.slice_end)) {
		/* Time has passed, perhaps much: the caller looks again. */
		slice_over();
		f->nr_watches = 0;
		return;
	}
	/* Its slice may have ended after it asked whether to go on. Parked, it would not ask again. */
	if (unlikely(vm.queues[vm.cpu].resched && !vm.queues[vm.cpu].told)) {
		vm.queues[vm.cpu].told = true;
		f->nr_watches = 0;
		return;
	}
	if (offset < vm.span)
		watch((uint32_t)(offset >> 6));
	for (uint32_t i = 0; i < f->nr_watches; i++) {
		if (vm.lines[f->watches[i].line].version != f->watches[i].version) {
			/* Written since it was looked at: look again. */
			f->nr_watches = 0;
			vm.clock += vm.access_ps;
			return;
		}
	}
	for (uint32_t i = 0; i < f->nr_watches; i++) {
		struct watch *w = &f->watches[i];
		uint32_t id = f->nr * WATCHES + i + 1;

		w->prev = 0;
		w->next = vm.transits[w->line].watchers;
		if (w->next)
			watch_of(w->next)->prev = id;
		vm.transits[w->line].watchers = id;
	}
	f->state = FIBER_PARKED;
	vm.busy[f->core]--;
	if (until_ns != UINT64_MAX)
		set_timer(f, later(vm.clock, until_ns * 1000));
	if (vm.shared)
		set_slice_timer(&vm.queues[f->cpu]);
	block();
	f->spent.spin_ps += vm.clock - start;
	site_waited(offset, EMU_SITE_SPIN, start, vm.clock - start);
	unwatch(f);
	if (unlikely(vm.clock >= vm.slice_end))
		slice_over();
}

void emu_spin_wait(const volatile void *addr)
{
	emu_spin_wait_until(addr, UINT64_MAX);
}

/*
 * Sharing a CPU
 */

static void queue_add(struct run_queue *queue, struct fiber *f, uint64_t when)
{
	f->state = FIBER_QUEUED;
	f->queued_at = when;
	f->queue_next = NULL;
	if (queue->last)
		queue->last->queue_next = f;
	else
		queue->first = f;
	queue->last = f;
}

/* The CPU is the task's from its clock on. */
static void run_on(struct run_queue *queue, struct fiber *f)
{
	queue->running = f;
	queue->resched = queue->told = false;
	queue->slice_end = vm.shared ? f->clock + vm.cost.time_slice_ps : UINT64_MAX;
	sched_push(f);
}

/* The running task's CPU is free from now on, for the first in its queue. */
static void pass_on(void)
{
	struct run_queue *queue = &vm.queues[vm.cpu];
	struct fiber *next = queue->first;

	if (!next) {
		queue->running = NULL;
		queue->free = vm.clock;
		vm.busy[vm.fiber->core]--;
		return;
	}
	queue->first = next->queue_next;
	if (!queue->first)
		queue->last = NULL;
	next->clock = later(next->queued_at, vm.clock);
	next->queued_ps = next->clock - next->queued_at;
	run_on(queue, next);
}

/*
 * An idle CPU is woken: how much later it is back than from the shallowest state. Which state it was put in follows from
 * how long it used to be idle, as a kernel guesses, which begins with the time until the next timer. A core is in none
 * that is deeper than the shallowest while another of its threads works.
 */
static uint64_t leave_idle(struct run_queue *queue, struct fiber *f)
{
	uint64_t guess_ps = queue->idles_ps, idle_ps;
	const struct emu_idle_state *state = NULL;

	/* Still switching away from its last task: it finds the next before it becomes idle. */
	if (vm.clock <= queue->free)
		return 0;
	idle_ps = vm.clock - queue->free;
	queue->idles_ps = guess_ps - guess_ps / IDLE_MEMORY + idle_ps / IDLE_MEMORY;
	for (uint32_t i = 0; i < vm.cost.nr_idle_states; i++)
		if (vm.cost.idle_states[i].residency_ps <= guess_ps)
			state = &vm.cost.idle_states[i];
	if (!state || vm.busy[f->core])
		return 0;
	if (state->empties)
		caches_empty(f);
	return state->exit_ps;
}

/* No two wakes take as long: else a sleeper might come for a lock at the same wrong time again and again. */
static uint64_t wake_to_run(void)
{
	return spread(&vm.wake_random, vm.cost.wake_to_run_ps, WAKE_SPREAD);
}

/* Somebody has woken a task; it runs no earlier than its CPU had switched away from it. */
static void wake(struct fiber *f)
{
	struct run_queue *queue = &vm.queues[f->cpu];
	uint64_t when = later(vm.clock, f->clock), ready;

	f->queued_ps = 0;
	if (queue->running) {
		queue_add(queue, f, when);
		if (queue->running->state == FIBER_PARKED)
			set_slice_timer(queue);
		return;
	}
	ready = vm.clock + wake_to_run() + leave_idle(queue, f);
	f->clock = later(later(f->clock, ready), queue->free);
	vm.busy[f->core]++;
	run_on(queue, f);
}

/* The sleep of a task is over: by an interrupt, whoever's CPU gets that. */
static void expire(struct fiber *f)
{
	struct run_queue *queue = &vm.queues[f->cpu];

	f->queued_ps = 0;
	if (queue->running) {
		queue_add(queue, f, f->clock);
		if (queue->running->state == FIBER_PARKED)
			set_slice_timer(queue);
		return;
	}
	f->clock = later(f->clock + wake_to_run(), queue->free);
	vm.busy[f->core]++;
	run_on(queue, f);
}

static void preempt(void)
{
	struct run_queue *queue = &vm.queues[vm.cpu];
	struct fiber *f = vm.fiber;
	uint64_t start, stall_ps, rcu;

	drain_stores();
	start = vm.clock;
	stall_ps = f->spent.stall_ps;
	/* Nothing but these stores and the switch, whatever time it is: until it is back the slice is no matter. */
	queue->slice_end = UINT64_MAX;
	set_horizon();
	/* As in the kernel, a context switch outside read-side sections is a quiescent state. */
	rcu = f->task->rcu_nesting ? 0 : emu_rcu_sleep();
	machine_store(&f->task->on_cpu, 0);
	drain_stores();
	vm.clock += vm.cost.context_switch_ps;
	queue_add(queue, f, vm.clock);
	pass_on();
	block();
	machine_store(&f->task->on_cpu, 1);
	emu_rcu_wake(rcu);
	f->nr_watches = 0;
	f->spent.runqueue_ps += vm.clock - start;
	f->spent.stall_ps = stall_ps;
}

static void slice_over(void)
{
	struct run_queue *queue = &vm.queues[vm.cpu];

	/* Who is earlier may yet wake a task of this CPU. */
	vm.horizon = UINT64_MAX;
	if (queue_key(vm.clock, vm.nr) > vm.top_key)
		sched_yield_to_first();
	if (!queue->first) {
		queue->slice_end += vm.cost.time_slice_ps;
		set_horizon();
	} else if (vm.preempt_off) {
		queue->resched = true;
		queue->slice_end = UINT64_MAX;
		set_horizon();
	} else {
		preempt();
	}
}

bool emu_need_resched(void)
{
	if (!vm.span)
		return false;
	if (unlikely(vm.clock >= vm.slice_end))
		slice_over();
	return vm.queues[vm.cpu].resched;
}

void emu_preempt_disable(void)
{
	vm.preempt_off++;
}

void emu_preempt_enable(void)
{
	vm.preempt_off--;
	if (unlikely(vm.shared) && !vm.preempt_off && vm.span && vm.queues[vm.cpu].resched)
		preempt();
}

/*
 * Sleeping
 */

static uint32_t bucket_of(const _Atomic uint32_t *word)
{
	return (uint32_t)(((uintptr_t)word - (uintptr_t)emu_arena) >> 2) * 0x9e3779b1u >> 22;
}

void emu_futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
	struct fiber *f = vm.fiber;
	uint32_t bucket = bucket_of(word);
	uint64_t start, stall_ps, rcu;

	if (unlikely(!vm.span))
		charge();
	EMU_ASSERT(!vm.preempt_off, "sleeps while it holds a spinlock or spins in a queue");
	emu_preempt_disable();
	rcu = emu_rcu_sleep();
	drain_stores();
	start = vm.clock;
	stall_ps = f->spent.stall_ps;
	/* Spinners on a lock that this task owns stop spinning from here on. */
	machine_store(&f->task->on_cpu, 0);
	vm.clock += vm.cost.futex_wait_ps;
	if (machine_load(word) == expected) {
		f->futex = word;
		f->futex_next = NULL;
		if (futexes[bucket].last)
			futexes[bucket].last->futex_next = f;
		else
			futexes[bucket].first = f;
		futexes[bucket].last = f;
		f->state = FIBER_ASLEEP;
		vm.clock += vm.cost.context_switch_ps;
		pass_on();
		block();
		f->spent.runqueue_ps += f->queued_ps;
		start += f->queued_ps;
	}
	machine_store(&f->task->on_cpu, 1);
	emu_rcu_wake(rcu);
	f->nr_watches = 0;
	/* The lines that it touched on the way have been counted as sites by themselves, but here are not told apart. */
	site_waited((uintptr_t)word - vm.base, EMU_SITE_SLEEP, start,
		    vm.clock - start - (f->spent.stall_ps - stall_ps));
	f->spent.sleep_ps += vm.clock - start;
	f->spent.stall_ps = stall_ps;
	emu_preempt_enable();
}

void emu_sleep(uint64_t ns)
{
	struct fiber *f = vm.fiber;
	uint64_t start, stall_ps, rcu;

	if (!vm.span)
		return;
	EMU_ASSERT(!vm.preempt_off, "sleeps while it holds a spinlock or spins in a queue");
	emu_preempt_disable();
	rcu = emu_rcu_sleep();
	drain_stores();
	start = vm.clock;
	stall_ps = f->spent.stall_ps;
	machine_store(&f->task->on_cpu, 0);
	drain_stores();
	vm.clock += vm.cost.context_switch_ps;
	pass_on();
	/* What is not over when the CPU has switched away ends then. */
	vm.clock = later(start + ns * 1000, vm.clock);
	f->state = FIBER_TIMED;
	heap_up(vm.heap_size++, queue_key(vm.clock, f->nr));
	block();
	start += f->queued_ps;
	f->spent.runqueue_ps += f->queued_ps;
	machine_store(&f->task->on_cpu, 1);
	emu_rcu_wake(rcu);
	f->nr_watches = 0;
	f->spent.sleep_ps += vm.clock - start;
	f->spent.stall_ps = stall_ps;
	stack_slept();
	emu_preempt_enable();
}

uint32_t emu_futex_wake(_Atomic uint32_t *word, uint32_t n)
{
	uint32_t bucket = bucket_of(word), woken = 0;
	struct fiber *f, *before = NULL, *next;

	if (!vm.span)
		return 0;
	drain_stores();
	vm.clock += vm.cost.futex_wake_ps;
	machine_load(word);
	for (f = futexes[bucket].first; f && woken < n; f = next) {
		next = f->futex_next;
		if (f->futex != word) {
			before = f;
			continue;
		}
		if (before)
			before->futex_next = next;
		else
			futexes[bucket].first = next;
		if (futexes[bucket].last == f)
			futexes[bucket].last = before;
		f->futex = NULL;
		vm.clock += vm.cost.ipi_send_ps;
		wake(f);
		woken++;
	}
	return woken;
}

/*
 * Interrupts
 */

/* Who sleeps or waits for the CPU looks at what it missed when it is back. */
static bool interrupt(uint32_t cpu, const struct mm_struct *mm)
{
	struct fiber *f = vm.queues[cpu].running;

	if (cpu == vm.cpu || !f || f->task->mm != mm)
		return false;
	if (f->state == FIBER_PARKED)
		f->interrupted_until = later(f->interrupted_until, vm.clock) + vm.cost.ipi_handler_ps;
	else
		f->stolen += vm.cost.ipi_handler_ps;
	return true;
}

void emu_tlb_flush(const struct mm_struct *mm, const _Atomic uint64_t *cpus, uint32_t nr_bits)
{
	const struct emu_cost_model *cost = &vm.cost;
	uint64_t sent = 0, took_ps; /* 64 bits, for interrupts to thousands of CPUs */

	if (!vm.span)
		return;
	for (uint32_t word = 0; word * 64 < nr_bits; word++) {
		uint64_t bits = atomic_load_explicit(&cpus[word], memory_order_relaxed);

		for (; bits; bits &= bits - 1)
			for (uint32_t i = word * 64 + (uint32_t)__builtin_ctzll(bits); i < cost->nr_cpus; i += nr_bits)
				sent += interrupt(i, mm);
	}
	if (!sent)
		return;
	drain_stores();
	took_ps = cost->ipi_round_trip_ps + (sent - 1) * cost->ipi_each_ps;
	vm.clock += took_ps;
	vm.fiber->spent.compute_ps += took_ps;
}

/*
 * Running
 */

static void entry(void)
{
	struct fiber *f = vm.fiber;

	f->spent.runqueue_ps += f->queued_ps;
	if (f->nr != f->cpu)
		machine_store(&f->task->on_cpu, 1);
	vm.body(vm.body_arg);
	drain_stores();
	/* In order, like all that leaves the core to its other threads. */
	if (queue_key(vm.clock, vm.nr) > vm.top_key)
		sched_yield_to_first();
	stack_done();
	f->state = FIBER_DONE;
	vm.nr_done++;
	pass_on();
	block();
	__builtin_unreachable();
}

static int run(void (*fn)(void *arg), void *arg, bool charged)
{
	struct emu_cost_model *cost = &vm.cost;
	struct task_struct *caller = emu_current;

	if (!vm.fibers)
		return emu_set_error(-EINVAL, "no cost model: emu_virtual_config() comes first");
	if (vm.error)
		return emu_set_error(-EIO, "the machine has failed before");
	memset(futexes, 0, sizeof(futexes));
	vm.body = fn;
	vm.body_arg = arg;
	vm.nr_done = 0;
	vm.heap_size = 0;
	limit_events();
	for (uint32_t i = 0; i < cost->nr_cpus; i++)
		vm.queues[i] = (struct run_queue){ .idles_ps = vm.queues[i].idles_ps };
	memset(vm.busy, 0, cost->nr_cpus * sizeof(*vm.busy));
	for (uint32_t i = 0; i < vm.nr_tasks; i++) {
		struct fiber *f = &vm.fibers[i];

		fiber_prepare(f, entry);
		f->clock = f->since = vm.now;
		f->depth = f->preempt_off = f->nr_watches = 0;
		f->queued_ps = f->stolen = 0;
		stack_begin(f);
		if (i < cost->nr_cpus) {
			vm.busy[f->core]++;
			run_on(&vm.queues[i], f);
		} else {
			queue_add(&vm.queues[f->cpu], f, vm.now);
		}
		atomic_store_explicit(&f->task->on_cpu, i < cost->nr_cpus, memory_order_relaxed);
	}
	fault_handler(true);
	vm.main.shadow = vm.shadow;
	vm.in_phase = true;
	vm.span = charged ? vm.full_span : 0;
	enter(heap_pop());
	context_switch(&vm.main.sp, vm.fiber->sp);
	vm.in_phase = false;
	vm.span = 0;
	fault_handler(false);
	for (uint32_t i = 0; i < vm.nr_tasks; i++)
		if (vm.fibers[i].clock > vm.now)
			vm.now = vm.fibers[i].clock;
	vm.clock = vm.now;
	vm.slice_end = UINT64_MAX;
	vm.preempt_off = 0;
	if (!vm.error)
		stack_end();
	vm.shadow = vm.main.shadow;
	vm.depth = 0;
	emu_current = caller;
	return vm.error;
}

int emu_virtual_run(void (*fn)(void *arg), void *arg)
{
	vm.recorded = true;
	return run(fn, arg, true);
}

static void phase_body(void *arg)
{
	(void)arg;
	emu_phase_body();
}

static int run_phase(bool charged)
{
	int err;

	for (uint32_t i = 0; i < emu_arena->config.nr_cpus; i++)
		emu_phase_reset(i);
	emu_phase_open();
	vm.recorded = emu_arena->phase_record;
	err = run(phase_body, NULL, charged);
	if (!err && atomic_load(&emu_arena->phase.failed)) {
		for (uint32_t i = 0; i < emu_arena->config.nr_cpus; i++)
			if (emu_arena->cpus[i].state.failure[0])
				return emu_set_error(-EIO, "CPU %u: %s", i, emu_arena->cpus[i].state.failure);
	}
	return err;
}

int emu_virtual_run_phase(void)
{
	return run_phase(true);
}

int emu_virtual_run_uncharged(void)
{
	return run_phase(false);
}

void trace_event(uint32_t line)
{
	vm.events[vm.nr_events++] = (struct emu_virtual_event){ vm.clock, vm.cpu, line };
}
