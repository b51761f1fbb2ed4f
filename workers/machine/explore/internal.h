/* SPDX-License-Identifier: MIT */
/*
 * internal.h - what the files of the exploring machine share.
 *
 *   hooks.c    what the compiler calls for each access; happens-before of ordinary accesses (data races)
 *   atomics.c  atomic accesses: scheduling points, histories of values, release and acquire
 *   run.c      fibers, one run of a scenario, waiting; the services of emu/machine.h
 *   policy.c   who goes next: random, pct, replay
 *   dpor.c     who goes next: all of them, each equivalence class once
 *   memory.c   allocator that never reuses; what a run wrote is taken back by the line
 *   oracle.c   rules of rmap designs, locks held, lock order
 *   oracle_mm.c  rules of mm designs
 *   check.c    campaigns, shortening, the recorded run (emu/explore.h)
 *   names.c    names of addresses, for messages
 *
 * The library takes the same objects of sync/, tree/ and mm/ as the virtual one and loads the same designs. There is no
 * cost model: no clocks, no directory. A run is some microseconds long, so everything that is kept for a run is tagged
 * with the run's number instead of being cleared.
 *
 * All of it is one thread of the host. A fiber is switched away in sched_point(), in waits, and at its end.
 */
#ifndef EMU_EXPLORE_INTERNAL_H
#define EMU_EXPLORE_INTERNAL_H

#include "../internal.h"
#include "../virtual/context.h"

#include <emu/explore.h>
#include <emu/scenario.h>

#include <stdarg.h>
#include <string.h>

#define CPUS EMU_EXPLORE_CPUS
#define HISTORY 4u	    /* stores of a location that a load may still see, the newest included */
#define LOCATIONS_MAX 4096u /* of a run */
#define WATCHES 8u
#define SHADOW_DEPTH 128u /* a power of two */
#define DECISIONS_MAX 65536u
#define HELD_MAX 16u
#define ALL_SEEN INT32_MAX
#define ORDINARY 255u /* as an order: no atomic access */

/* A vector clock: what has happened on each CPU. */
struct vclock {
	_Alignas(32) int32_t of[CPUS];
};

typedef int32_t lanes __attribute__((vector_size(32), may_alias));
typedef uint64_t halves __attribute__((vector_size(32), may_alias));

enum op_kind { OP_LOCAL, OP_READ, OP_WRITE, OP_MODIFY, OP_FENCE, OP_LOCK, OP_UNLOCK };

/* What a CPU is about to do at a scheduling point. */
struct op {
	uint8_t kind, order, size;
	bool sc;	/* sequentially consistent: ordered with fences wherever they are */
	uintptr_t addr; /* the container's, see atomics.c */
	uintptr_t pc;
};

enum cpu_state { CPU_READY, CPU_PARKED, CPU_ASLEEP, CPU_LOCKED_OUT, CPU_DONE };

struct watch {
	uint32_t line, version;
};

struct held {
	const void *lock;
	uint32_t class_id;
	bool try_lock; /* taken by a walk that backs out */
	uintptr_t pc;
};

struct xcpu {
	void *sp;
	enum cpu_state state;
	uint32_t cpu;
	uint32_t depth;
	uint32_t epoch; /* of its ordinary accesses, less the mask: see hooks.c */
	uint32_t nr_watches;
	uint64_t watched; /* bit line % 64 is set if a line of watches[] has it */
	bool stale; /* a load since the last wait did not return the newest value */
	bool has_acq, has_rel;
	uint32_t fence_tick;
	struct op op;
	struct vclock hb;		/* what happened before, for races */
	struct vclock seen;		/* what must be seen: the same and what SC fences add */
	struct vclock acq_hb, acq_seen; /* to be had by an acquire fence */
	struct vclock rel_hb, rel_seen; /* of the last release fence */
	struct watch watches[WATCHES];
	const _Atomic uint32_t *futex;
	uint32_t nr_held;
	struct held held[HELD_MAX];
	uintptr_t shadow[SHADOW_DEPTH];
	uint32_t waits, sleeps; /* times it has slept or spun; slept */
	uint32_t stale_loads;
	char *stack;
};

/* A value that a location has had. */
struct store {
	uint64_t value;
	struct vclock seen_at; /* [cpu]: its time when it first saw this one or a later one; ALL_SEEN: not yet */
	struct vclock rel_hb, rel_seen; /* what an acquire load of it brings along */
	uint32_t sc_tick;
	bool releases;
};

/* An atomic object of 4 or 8 bytes; smaller ones are parts of the 4 bytes around them. */
struct location {
	uintptr_t addr;
	uint8_t size, n, newest;
	bool is_mixed;		     /* accessed in different sizes that do not fit: no history */
	struct vclock reads, writes; /* the CPUs' last accesses */
	struct store ring[HISTORY];
};

/* Of 4 bytes of the arena: who accessed them last without atomics. */
struct cell {
	uint32_t run;
	uint32_t write; /* an epoch, or 0 */
	uint32_t read;	/* an epoch, or 0, or an index of readers, not 0, if many */
	union {
		struct {
			uint16_t loc; /* index of a location + 1 */
			bool many;
			bool marked; /* see x.marked */
		};
		uint32_t special; /* any of the three */
	};
};

struct readers {
	struct vclock at;
	uint8_t mask[CPUS];
};

struct object {
	uintptr_t addr;
	uint32_t bytes;
	int8_t cpu, freed_by; /* -1: nobody */
	bool is_free;
	uintptr_t pc; /* where it was allocated */
	uintptr_t freed_pc;
};

struct policy {
	/* Who goes next among x.ready, which has more than one CPU or `always` is set. */
	uint32_t (*next_cpu)(uint32_t otherwise);
	/* One of n; 0 is what happens mostly, or nearly always if it is rare. */
	uint32_t (*value)(uint32_t n, bool is_rare);
	bool always;
};

struct explore {
	/* The modelled part of the arena; span is 0 outside runs. */
	uintptr_t base;
	uint64_t span;
	bool running; /* fibers run: false while a scenario's check() looks at the end */
	bool tracing;
	bool sc_only;
	uint32_t run;
	struct xcpu *me;  /* the running one */
	uint32_t ready;	  /* mask, the running one included */
	uint32_t waiting; /* parked: mask */
	uint32_t nr_cpus;
	uint32_t steps, max_steps;
	uint32_t sc_tick;
	struct vclock sc_seen; /* what SC fences have published */
	struct cell *cells;    /* [span / 4] */
	uint32_t *versions;    /* [span / 64]: writes to the line */
	uint32_t *dirty;       /* [span / 64]: the run that wrote it first */
	uint8_t *heap;	       /* [span / 16]: enum heap_state; what lies before the heap is live */
	/*
	 * [span / 4]: somebody looks here by volatile accesses, which may race with ordinary writes; those are scheduling
	 * points then. Learnt in a few runs before all others, so that what comes later does not depend on history.
	 */
	uint8_t *marked;
	bool learning;
	uint64_t heap_start, heap_end; /* offsets: objects end here so far */
	uint64_t base_end;	       /* heap_end when a run begins */
	uint32_t nr_locations;
	struct location *locations;
	uint32_t nr_readers, max_readers;
	struct readers *readers;

	const struct policy *policy;
	uint64_t rng;
	uint8_t *decisions;
	uint32_t nr_decisions;
	uint64_t clock_ns;
	uint64_t full_span;
	struct xcpu cpus[CPUS];
	struct xcpu main; /* setup() and check(); its number is CPUS */

	const struct emu_scenario *scenario;
	struct emu_explore_failure failure;
	bool failed;
	uintptr_t race_watch; /* the recorded run keeps the stacks of accesses to this address */
};

extern struct explore x;

/*
 * In scenarios of mm designs, and those that ask for it, RCU's words are modelled: there they order what is freed with who
 * has looked at it. For others they stay outside, where they cost no steps.
 */
static inline bool rcu_is_modelled(void)
{
	return x.scenario->kind == EMU_SCENARIO_MM || x.scenario->rcu;
}

void rcu_begin(void);
static inline uint32_t emu_rcu_cpus(void)
{
	return rcu_is_modelled() ? x.nr_cpus : emu_arena->config.nr_cpus;
}

enum heap_state { HEAP_NONE, HEAP_LIVE, HEAP_FREED };

/* run.c */
void run_once(void);
/* setup() and the like, on CPU 0 with nobody else; -1 if it failed. */
int run_alone(void (*fn)(void));
/* While runs are made: a fault is a failure of the run. */
void faults(bool on);
_Noreturn void fail(enum emu_explore_kind kind, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sched_point(const struct op *op);
void block(enum cpu_state state);
void wake_watchers(uint32_t line, uintptr_t addr);
void make_ready(struct xcpu *cpu, uint8_t kind, uintptr_t addr);
int machine_create(void);
void machine_destroy(void);
/* One of n; 0 is what happens mostly. A rare one does not multiply the runs of an exhaustive search. */
uint32_t choose_value(uint32_t n);
bool choose_rare(void);

/* atomics.c */
struct location *location_of(uintptr_t addr, uint32_t size);
void plain_store_to_location(uintptr_t addr, uint32_t size);
void check_plain_against(const struct location *l, uintptr_t addr, uint32_t size, bool is_write);
uint64_t atomic_load_value(uintptr_t addr, uint32_t size, int order, uintptr_t pc);
void atomic_store_value(uintptr_t addr, uint32_t size, uint64_t value, int order, uintptr_t pc);
/* A read-modify-write in two halves: first what is there, then what it becomes. */
uint64_t atomic_modify_begin(uintptr_t addr, uint32_t size, int order, uintptr_t pc);
void atomic_modify_end(uintptr_t addr, uint32_t size, uint64_t old, uint64_t value, int order, uintptr_t pc);
void atomic_modify_fails(uintptr_t addr, uint32_t size, uint64_t old, int order, uintptr_t pc);
void atomic_fence(int order, uintptr_t pc);
/* A futex call looks at its word: the newest value, with a full fence. */
uint64_t futex_look(uintptr_t addr, uintptr_t pc);
/* After the scheduling point of `op`: the CPU's time goes on. */
void op_begins(const struct op *op);
/* The running CPU sees the newest values of all that it looked at since its last wait. */
void see_newest(void);
uint64_t volatile_load_point(uintptr_t addr, uint32_t size, uintptr_t pc);
void volatile_store_point(uintptr_t addr, uint32_t size, uintptr_t pc);

/* hooks.c */
/* A new object is filled; one goes: that must be ordered with all that others did with it. */
void fresh_written(uintptr_t addr, uint32_t size);
void check_freed(uintptr_t addr, uint32_t size);
_Noreturn void report_race(uintptr_t addr, uint32_t size, const char *what, uint32_t other_cpu, const char *other_what);
void check_heap(uintptr_t addr, uint32_t size, bool is_write);

/* memory.c */
void memory_save_line(uint32_t line);
void memory_reset(void);
void memory_begin(void);
void memory_destroy(void);
const struct object *object_at(uintptr_t addr);
uint32_t object_number(const struct object *object);
/* An object that the run, or for the files a design, has made and not freed; NULL: none. */
const struct object *leaked_object(bool files_too);
void memory_files_done(int64_t boot);

/* policy.c */
uint64_t next_random(void);
extern const struct policy policy_random, policy_pct, policy_replay;
void policy_begin_run(uint64_t number);
void policy_reset(uint64_t seed, uint32_t depth);
void replay_set(const uint8_t *decisions, uint32_t n);
void decision_record(uint32_t value);

/* dpor.c */
extern const struct policy policy_exhaustive;
int dpor_start(uint32_t preemptions);
void dpor_destroy(void);
/* After a run: is there another to make? */
bool dpor_next(void);
void dpor_begin_run(void);
/* Was the last run given up since it would have repeated another? */
bool dpor_run_was_cut(void);
/* Choices that the bound on preemptions has left out so far. */
uint64_t dpor_left_out(void);

/* oracle.c */
void oracle_begin_run(void);
void oracle_quiet(void);
void oracle_end_run(void);
void oracle_wrap(void);
void oracle_unwrap(void);
void oracle_reset(void);
void oracle_setup_done(void);
/* 0: no cycle. text may be NULL. */
int oracle_lock_order(char *text, size_t size);
/* The lock with a class that is at these bytes, or NULL. */
const char *lock_name(uintptr_t addr, uint64_t *offset);

/* The rule of a design is broken. */
void oracle_rule(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* oracle_mm.c; for scenarios of mm designs alone. quiet: no CPU runs any more, nothing has been torn down yet. */
struct mm_ops;
void oracle_mm_wrap(struct mm_ops *wrapped, const struct mm_ops *of);
void oracle_mm_reset(void);
void oracle_mm_setup_done(void);
void oracle_mm_begin_run(void);
void oracle_mm_quiet(void);

/* check.c */
#define EMU_EVENT_NOTE 255u
bool shadows_create(void);
void trace_op(const struct op *op, uint64_t before, uint64_t after, bool is_stale);
void trace_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* names.c */
void address_name(uintptr_t addr, char *buf, size_t size);
void function_name(uintptr_t pc, char *name, size_t size);
void stack_text(const struct xcpu *cpu, char *buf, size_t size);

static inline void clock_join(struct vclock *into, const struct vclock *from)
{
	lanes a = *(const lanes *)(const void *)into->of, b = *(const lanes *)(const void *)from->of;
	lanes more = b > a;

	*(lanes *)(void *)into->of = (b & more) | (a & ~more);
}

/* Is there a CPU whose time in `a` is at most that in `b`? */
static inline bool clock_any_le(const struct vclock *a, const struct vclock *b)
{
	lanes le = *(const lanes *)(const void *)a->of <= *(const lanes *)(const void *)b->of;
	halves any = (halves)le;

	return (any[0] | any[1] | any[2] | any[3]) != 0;
}

/* Is there a CPU whose time in `a` is beyond that in `b`? */
static inline bool clock_any_gt(const struct vclock *a, const struct vclock *b)
{
	lanes gt = *(const lanes *)(const void *)a->of > *(const lanes *)(const void *)b->of;
	halves any = (halves)gt;

	return (any[0] | any[1] | any[2] | any[3]) != 0;
}

static inline void set_epoch(struct xcpu *cpu)
{
	cpu->epoch = (uint32_t)cpu->hb.of[cpu->cpu] << 7 | cpu->cpu << 4;
}

/*
 * What the running CPU does from here on is told from what it did before. Due where others come to know its time (a
 * release, a fence), so that they know of what was before alone. In between its time stands still, and an access like
 * one before is nothing new (see hooks.c).
 */
static inline void tick(void)
{
	x.me->seen.of[x.me->cpu] = ++x.me->hb.of[x.me->cpu];
	set_epoch(x.me);
}

static inline __attribute__((always_inline)) struct cell *cell_at(uint64_t offset)
{
	struct cell *cell = &x.cells[offset >> 2];

	if (unlikely(cell->run != x.run)) {
		cell->run = x.run;
		cell->write = cell->read = cell->special = 0;
		cell->marked = x.marked[offset >> 2];
	}
	return cell;
}

static inline bool in_arena(uintptr_t addr)
{
	return addr - x.base < x.span;
}

static inline uint64_t peek(uintptr_t addr, uint32_t size)
{
	switch (size) {
	case 1:
		return *(const volatile uint8_t *)addr;
	case 2:
		return *(const volatile uint16_t *)addr;
	case 4:
		return *(const volatile uint32_t *)addr;
	default:
		return *(const volatile uint64_t *)addr;
	}
}

static inline void poke(uintptr_t addr, uint32_t size, uint64_t value)
{
	switch (size) {
	case 1:
		*(volatile uint8_t *)addr = (uint8_t)value;
		break;
	case 2:
		*(volatile uint16_t *)addr = (uint16_t)value;
		break;
	case 4:
		*(volatile uint32_t *)addr = (uint32_t)value;
		break;
	default:
		*(volatile uint64_t *)addr = value;
		break;
	}
}

/* Before every store: the line as it was goes into the log. */
static inline void line_save(uintptr_t addr)
{
	uint32_t line = (uint32_t)((addr - x.base) >> 6);

	if (unlikely(x.dirty[line] != x.run))
		memory_save_line(line);
}

/* Whoever spins on the line looks again, but not the CPU that changed it. */
static inline void line_changed(uintptr_t addr)
{
	uint32_t line = (uint32_t)((addr - x.base) >> 6);
	uint32_t version = x.versions[line]++;
	struct xcpu *me = x.me;

	if (unlikely(me->watched >> (line & 63) & 1))
		for (uint32_t i = 0; i < me->nr_watches; i++)
			if (me->watches[i].line == line && me->watches[i].version == version)
				me->watches[i].version = version + 1;
	if (unlikely(x.waiting))
		wake_watchers(line, addr);
}

static inline void look_at(uintptr_t addr)
{
	struct xcpu *me = x.me;
	uint32_t line = (uint32_t)((addr - x.base) >> 6);

	if (me->watched >> (line & 63) & 1)
		for (uint32_t i = 0; i < me->nr_watches; i++)
			if (me->watches[i].line == line)
				return;
	me->watched |= UINT64_C(1) << (line & 63);
	if (me->nr_watches == WATCHES) {
		/* The oldest goes. */
		memmove(&me->watches[0], &me->watches[1], (WATCHES - 1) * sizeof(me->watches[0]));
		me->nr_watches--;
	}
	me->watches[me->nr_watches++] = (struct watch){ line, x.versions[line] };
}

static inline void look_at_nothing(struct xcpu *cpu)
{
	cpu->nr_watches = 0;
	cpu->watched = 0;
}

#endif
