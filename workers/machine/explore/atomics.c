/* SPDX-License-Identifier: MIT */
/*
 * atomics.c - atomic accesses under a part of the C11 memory model.
 *
 * Memory holds the newest value of each location; the order in which stores are executed is their modification order. A
 * location keeps its last stores. A load may return an older one, unless its CPU must have seen a newer one: because it
 * did itself, because somebody who did happens before it, or because of sequentially consistent fences. For that each
 * store notes when each CPU first saw it or a later one (seen_at); the load's CPU compares with what happened before it.
 * So read-read, write-read and read-write coherence hold by construction.
 *
 * Release and acquire: a store that releases keeps its CPU's clocks; a load that acquires it joins them; a
 * read-modify-write passes on what it found (the release sequence), and so does a store to a part of a location, since
 * who reads all of it reads from both. Relaxed loads keep what they found for an acquire fence, relaxed stores carry what
 * the last release fence left.
 *
 * Sequential consistency: accesses and fences are in one order, that of execution. Fences hand on all that must be seen
 * (`seen`, which orders no ordinary accesses). A load that is sequentially consistent, or follows such a fence, sees at
 * least the last such store before (the fence).
 *
 * Left out, so that a run is weaker in C11 than here: modification orders other than the order of execution, loads
 * that see stores that are executed later, read-modify-writes that fail on an old value or for no reason.
 */
#include "internal.h"

static inline bool acquires(int order)
{
	return order == __ATOMIC_ACQUIRE || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST ||
	       order == __ATOMIC_CONSUME;
}

static inline bool releases(int order)
{
	return order == __ATOMIC_RELEASE || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST;
}

static inline struct store *newest(struct location *l)
{
	return &l->ring[l->newest];
}

static const struct vclock never = { .of = { [0 ... CPUS - 1] = ALL_SEEN } };

static inline uintptr_t container(uintptr_t addr, uint32_t size)
{
	return size >= 4 ? addr : addr & ~UINT64_C(3);
}

static inline struct store *push(struct location *l)
{
	struct store *s;

	l->newest = (l->newest + 1) % HISTORY;
	if (l->n < HISTORY)
		l->n++;
	s = newest(l);
	s->seen_at = never;
	s->releases = false;
	s->sc_tick = 0;
	return s;
}

static struct location *location_create(uintptr_t addr, uint32_t size)
{
	uint32_t bytes = size < 4 ? 4 : size;
	struct location *l;
	struct store *s;

	if (x.nr_locations == LOCATIONS_MAX)
		fail(EMU_FOUND_LIVELOCK, "more than %u atomic objects in one run: a shorter scenario is needed",
		     LOCATIONS_MAX);
	l = &x.locations[x.nr_locations++];
	l->addr = container(addr, size);
	l->size = (uint8_t)bytes;
	l->n = 1;
	l->newest = 0;
	l->is_mixed = false;
	memset(&l->reads, 0, sizeof(l->reads));
	memset(&l->writes, 0, sizeof(l->writes));
	s = &l->ring[0];
	s->value = peek(l->addr, bytes);
	memset(&s->seen_at, 0, sizeof(s->seen_at));
	s->releases = false;
	s->sc_tick = 0;
	for (uint32_t i = 0; i < bytes; i += 4) {
		struct cell *cell = cell_at(l->addr + i - x.base);

		/* Two that overlap: neither has a history from here on. */
		if (cell->loc)
			x.locations[cell->loc - 1].is_mixed = l->is_mixed = true;
		cell->loc = (uint16_t)x.nr_locations;
	}
	return l;
}

struct location *location_of(uintptr_t addr, uint32_t size)
{
	struct cell *cell = cell_at(container(addr, size) - x.base);
	struct location *l;

	if (unlikely(!cell->loc))
		return location_create(addr, size);
	l = &x.locations[cell->loc - 1];
	if (unlikely(l->addr != container(addr, size) || (size > 4) != (l->size > 4)))
		l->is_mixed = true;
	return l;
}

/* An ordinary store to an atomic object: initialisation, or a race that was just reported. */
void plain_store_to_location(uintptr_t addr, uint32_t size)
{
	struct location *l = location_of(addr, size);

	/* Its value is not there yet; who may read it is ordered behind us and looks into memory. */
	l->n = 0;
	push(l);
	memset(&newest(l)->seen_at, 0, sizeof(struct vclock));
	l->is_mixed = true;
}

void check_plain_against(const struct location *l, uintptr_t addr, uint32_t size, bool is_write)
{
	const struct vclock *hb = &x.me->hb;

	if (clock_any_gt(&l->writes, hb) || (is_write && clock_any_gt(&l->reads, hb))) {
		for (uint32_t cpu = 0; cpu < x.nr_cpus; cpu++) {
			if (cpu == x.me->cpu)
				continue;
			if (l->writes.of[cpu] > hb->of[cpu])
				report_race(addr, size, is_write ? "write" : "read", cpu, "atomic write");
			if (is_write && l->reads.of[cpu] > hb->of[cpu])
				report_race(addr, size, "write", cpu, "atomic read");
		}
	}
}

static __attribute__((noinline)) void check_cells(uintptr_t addr, uint32_t size, bool is_write)
{
	struct xcpu *me = x.me;

	for (uint32_t i = 0; i < size; i += 4) {
		struct cell *cell = cell_at(addr + i - x.base);
		uint32_t cpu = (cell->write >> 4) & 7;

		if (cell->write && (int32_t)(cell->write >> 7) > me->hb.of[cpu])
			report_race(addr, size, is_write ? "atomic write" : "atomic read", cpu, "write");
		if (!is_write)
			continue;
		cpu = (cell->read >> 4) & 7;
		if (cell->many) {
			const struct readers *r = &x.readers[cell->read];

			for (cpu = 0; cpu < x.nr_cpus; cpu++)
				if (r->at.of[cpu] > me->hb.of[cpu])
					report_race(addr, size, "atomic write", cpu, "read");
		} else if (cell->read && (int32_t)(cell->read >> 7) > me->hb.of[cpu]) {
			report_race(addr, size, "atomic write", cpu, "read");
		}
	}
}

/* Against ordinary accesses of the same bytes that are not ordered with us. Mostly there are none. */
static inline void check_against_plain(uintptr_t addr, uint32_t size, bool is_write)
{
	const struct cell *cell = cell_at(addr - x.base), *last = size == 8 ? cell_at(addr + 4 - x.base) : cell;

	if (unlikely((cell->write | last->write) || (is_write && (cell->read | last->read))))
		check_cells(addr, size, is_write);
}

void op_begins(const struct op *op)
{
	uint64_t offset = op->addr - x.base;

	if (op->kind != OP_FENCE && unlikely(x.heap[offset >> 4] != HEAP_LIVE))
		check_heap(op->addr, op->size, op->kind != OP_READ);
}

static inline void point(enum op_kind kind, uintptr_t addr, uint32_t size, int order, uintptr_t pc)
{
	struct op op = {
		.kind = (uint8_t)kind,
		.order = (uint8_t)order,
		.size = (uint8_t)size,
		.sc = order == __ATOMIC_SEQ_CST,
		.addr = addr,
		.pc = pc,
	};

	sched_point(&op);
	op_begins(&op);
}

static inline void acquire(const struct store *s, int order)
{
	struct xcpu *me = x.me;

	if (!s->releases)
		return;
	if (acquires(order)) {
		clock_join(&me->hb, &s->rel_hb);
		clock_join(&me->seen, &s->rel_seen);
	} else if (me->has_acq) {
		clock_join(&me->acq_hb, &s->rel_hb);
		clock_join(&me->acq_seen, &s->rel_seen);
	} else {
		me->acq_hb = s->rel_hb;
		me->acq_seen = s->rel_seen;
		me->has_acq = true;
	}
}

/* What a store hands on; `before`: the store that it continues, or NULL. */
static inline void publish(struct store *s, int order, const struct store *before)
{
	const struct xcpu *me = x.me;
	bool continues = before && before->releases;

	if (releases(order)) {
		s->rel_hb = me->hb;
		s->rel_seen = me->seen;
		s->releases = true;
	} else if (me->has_rel) {
		s->rel_hb = me->rel_hb;
		s->rel_seen = me->rel_seen;
		s->releases = true;
	}
	if (!continues)
		return;
	if (s->releases) {
		clock_join(&s->rel_hb, &before->rel_hb);
		clock_join(&s->rel_seen, &before->rel_seen);
	} else {
		s->rel_hb = before->rel_hb;
		s->rel_seen = before->rel_seen;
		s->releases = true;
	}
}

static inline void saw(struct store *s)
{
	struct xcpu *me = x.me;

	if (s->seen_at.of[me->cpu] == ALL_SEEN)
		s->seen_at.of[me->cpu] = me->hb.of[me->cpu];
}

/* How many stores back this load may go. */
static uint32_t oldest_allowed(struct location *l, int order)
{
	const struct xcpu *me = x.me;
	uint32_t back = 0;

	if (x.sc_only || l->is_mixed)
		return 0;
	while (back + 1 < l->n) {
		const struct store *s = &l->ring[(l->newest + HISTORY - back) % HISTORY];

		if (clock_any_le(&s->seen_at, &me->seen))
			break;
		if (order == __ATOMIC_SEQ_CST && (s->sc_tick || clock_any_le(&s->seen_at, &x.sc_seen)))
			break;
		if (s->sc_tick && s->sc_tick <= me->fence_tick)
			break;
		back++;
	}
	return back;
}

static inline uint64_t part(const struct location *l, uint64_t value, uintptr_t addr, uint32_t size)
{
	if (size >= 4)
		return value;
	return (value >> (8 * (addr - l->addr))) & ((UINT64_C(1) << (8 * size)) - 1);
}

uint64_t atomic_load_value(uintptr_t addr, uint32_t size, int order, uintptr_t pc)
{
	struct location *l;
	struct store *s;
	uint32_t back, choice = 0;
	uint64_t value;

	point(OP_READ, addr, size, order, pc);
	look_at(addr);
	l = location_of(addr, size);
	check_against_plain(addr, size, false);
	l->reads.of[x.me->cpu] = x.me->hb.of[x.me->cpu];
	if (order == __ATOMIC_SEQ_CST)
		x.sc_tick++;
	back = oldest_allowed(l, order);
	if (unlikely(back))
		choice = choose_value(back + 1);
	s = &l->ring[(l->newest + HISTORY - choice) % HISTORY];
	value = choice ? part(l, s->value, addr, size) : peek(addr, size);
	if (choice) {
		x.me->stale = true;
		x.me->stale_loads++;
	}
	saw(s);
	acquire(s, order);
	if (unlikely(x.tracing))
		trace_op(&x.me->op, value, value, choice != 0);
	return value;
}

void atomic_store_value(uintptr_t addr, uint32_t size, uint64_t value, int order, uintptr_t pc)
{
	struct store *s, before;
	struct location *l;
	uint64_t old;

	point(OP_WRITE, addr, size, order, pc);
	l = location_of(addr, size);
	check_against_plain(addr, size, true);
	l->writes.of[x.me->cpu] = x.me->hb.of[x.me->cpu];
	old = peek(addr, size);
	line_save(addr);
	poke(addr, size, value);
	if (old != value)
		line_changed(addr);
	before = *newest(l);
	s = push(l);
	s->value = peek(l->addr, l->size);
	publish(s, order, size < l->size ? &before : NULL);
	s->seen_at.of[x.me->cpu] = x.me->hb.of[x.me->cpu];
	if (order == __ATOMIC_SEQ_CST)
		s->sc_tick = ++x.sc_tick;
	if (releases(order))
		tick();
	if (unlikely(x.tracing))
		trace_op(&x.me->op, old, value, false);
}

uint64_t atomic_modify_begin(uintptr_t addr, uint32_t size, int order, uintptr_t pc)
{
	point(OP_MODIFY, addr, size, order, pc);
	look_at(addr);
	return peek(addr, size);
}

void atomic_modify_end(uintptr_t addr, uint32_t size, uint64_t old, uint64_t value, int order, uintptr_t pc)
{
	struct location *l = location_of(addr, size);
	struct xcpu *me = x.me;
	struct store before = *newest(l), *s;

	(void)pc;
	check_against_plain(addr, size, true);
	l->writes.of[me->cpu] = me->hb.of[me->cpu];
	saw(newest(l));
	acquire(&before, order);
	line_save(addr);
	poke(addr, size, value);
	if (old != value)
		line_changed(addr);
	s = push(l);
	s->value = peek(l->addr, l->size);
	publish(s, order, &before);
	s->seen_at.of[me->cpu] = me->hb.of[me->cpu];
	if (order == __ATOMIC_SEQ_CST)
		s->sc_tick = ++x.sc_tick;
	if (releases(order))
		tick();
	if (unlikely(x.tracing))
		trace_op(&me->op, old, value, false);
}

void atomic_modify_fails(uintptr_t addr, uint32_t size, uint64_t old, int order, uintptr_t pc)
{
	struct location *l = location_of(addr, size);

	(void)pc;
	check_against_plain(addr, size, false);
	l->reads.of[x.me->cpu] = x.me->hb.of[x.me->cpu];
	saw(newest(l));
	acquire(newest(l), order);
	if (unlikely(x.tracing))
		trace_op(&x.me->op, old, old, false);
}

static inline void full_fence(void)
{
	x.me->fence_tick = ++x.sc_tick;
	clock_join(&x.me->seen, &x.sc_seen);
	clock_join(&x.sc_seen, &x.me->seen);
}

uint64_t futex_look(uintptr_t addr, uintptr_t pc)
{
	struct location *l;
	uint64_t value;

	point(OP_MODIFY, addr, 4, __ATOMIC_SEQ_CST, pc);
	l = location_of(addr, 4);
	saw(newest(l));
	l->reads.of[x.me->cpu] = x.me->hb.of[x.me->cpu];
	full_fence();
	tick();
	value = peek(addr, 4);
	if (unlikely(x.tracing))
		trace_op(&x.me->op, value, value, false);
	return value;
}

void see_newest(void)
{
	const struct xcpu *me = x.me;

	for (uint32_t i = 0; i < x.nr_locations; i++) {
		struct location *l = &x.locations[i];
		uint32_t line = (uint32_t)((l->addr - x.base) >> 6);

		for (uint32_t w = 0; w < me->nr_watches; w++)
			if (me->watches[w].line == line)
				saw(newest(l));
	}
}

void atomic_fence(int order, uintptr_t pc)
{
	struct xcpu *me = x.me;

	/* Only these are ordered with what others do; the rest goes with the accesses around it. */
	if (order == __ATOMIC_SEQ_CST)
		point(OP_FENCE, 0, 0, order, pc);
	if (acquires(order) && me->has_acq) {
		clock_join(&me->hb, &me->acq_hb);
		clock_join(&me->seen, &me->acq_seen);
	}
	if (order == __ATOMIC_SEQ_CST)
		full_fence();
	if (releases(order)) {
		me->rel_hb = me->hb;
		me->rel_seen = me->seen;
		me->has_rel = true;
		tick();
	}
	if (unlikely(x.tracing) && order == __ATOMIC_SEQ_CST)
		trace_op(&me->op, 0, 0, false);
}

/*
 * Volatile: a marked access as the kernel's READ_ONCE() and WRITE_ONCE(). It sees the newest value and orders nothing.
 * As KCSAN does by default, an ordinary aligned write beside it counts as atomic.
 */
uint64_t volatile_load_point(uintptr_t addr, uint32_t size, uintptr_t pc)
{
	uint64_t value;

	point(OP_READ, addr, size, __ATOMIC_RELAXED, pc);
	look_at(addr);
	if (unlikely(x.learning) && addr - x.base < x.base_end)
		x.marked[(addr - x.base) >> 2] = true;
	value = peek(addr, size);
	if (unlikely(x.tracing))
		trace_op(&x.me->op, value, value, false);
	return value;
}

void volatile_store_point(uintptr_t addr, uint32_t size, uintptr_t pc)
{
	uint64_t old;

	point(OP_WRITE, addr, size, __ATOMIC_RELAXED, pc);
	old = peek(addr, size);
	line_save(addr);
	line_changed(addr);
	if (unlikely(x.tracing))
		trace_op(&x.me->op, old, old, false);
}
