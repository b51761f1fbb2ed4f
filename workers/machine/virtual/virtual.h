/* SPDX-License-Identifier: MIT */
/*
 * virtual.h - what the files of the virtual machine share.
 *
 *   hooks.c      what the compiler calls for each access; the paths of lines that a CPU has already
 *   directory.c  the paths of lines that it has not: who has them, what it costs, who must hear of it
 *   sched.c      order: the queue of CPUs by virtual time, parking, sleeping, running a phase
 *   fiber.c      stacks; faults on them
 *   context.c    the switch between them
 *   machine.c    the services of emu/machine.h, set-up, statistics
 *   names.c      functions by address, for messages
 *   sites.c      which code pulled which line or waited for it
 *   slices.c     what each CPU did when: the trace of a window of time
 *
 * Build: the files of sync/, tree/, mm/ and designs/ with -fsanitize=thread, but linked without it; these files and
 * machine/ without. gcc >= 11 also needs --param tsan-distinguish-volatile=1, clang >= 14
 * -mllvm -tsan-distinguish-volatile=1. Library and designs are linked with --wrap=memcpy, memmove and memset.
 *
 * The whole machine is one thread of the host. Only the fiber that runs touches any of this; a fiber is switched away
 * in sync_point(), emu_spin_wait(), emu_futex_wait() and at its end, nowhere else.
 *
 * Caches are kept by version: a directory entry counts the times its line was taken for writing, and a CPU has a line
 * if its tag names the line's current version. So an invalidation is one increment, however many CPUs shared the line.
 * Below it are counted the writes of who had to hand the line on but had not yet: copies that are on their way have them.
 */
#ifndef EMU_VIRTUAL_INTERNAL_H
#define EMU_VIRTUAL_INTERNAL_H

#include "../internal.h"
#include "context.h"

#include <emu/virtual.h>

#define NO_LINE UINT32_MAX
#define WAYS 4u
#define VERSION_SHIFT 8
#define FIRST_VERSION (1u << VERSION_SHIFT)
#define WATCHES 4u
#define SHADOW_DEPTH 256u /* a power of two */
#define TIME_BITS 47 /* CPU numbers take the other bits of a queue key, but one to spare */
#define HORIZON_PS UINT64_C(100000000)
#define TRANSFER_SPREAD 10u /* a transfer takes up to a tenth more or less; docs/cost-model.md, Transfers */
#define WAKE_SPREAD 3u /* and a wake a third: 2 to 5 us on bare metal, see topologies/_common-costs.toml */
#define SMT_MAX 16u
#define NEXT_TIMER_PS UINT64_C(4000000000000) /* of an idle CPU: the period of Linux' lockup watchdog */
#define CLOCK_LOOKS 10000000u /* at one time, after which a loop is taken to wait for the clock */
#define SMT_STEP_PS UINT64_C(20000000) /* computing looks this often whether the core's other threads do */

/* A directory entry, all that an access to a line needs that the CPU has. Zeroed: never touched. */
struct line {
	uint32_t version;
	uint16_t owner;	 /* 0: nobody yet, else the CPU that wrote last or got it alone, + 1 */
	uint16_t sharer; /* 0: nobody else has it, else the farthest other CPU that may, + 1 */
};

/* The rest of it, for the slow paths. Times in ps. */
struct transit {
	uint64_t ready;	  /* when the owner has the line */
	uint64_t served;  /* when the last copy left */
	uint64_t arrived; /* when the last copy arrives << 16 | the L3 domain that it goes to */
	uint32_t watchers; /* the first parked CPU's watch: an id, as in struct watch */
	uint16_t lock_class; /* of a lock in the line; 0: none was ever taken */
	uint16_t object;     /* in sites.c; 0: not looked up yet */
};

/* A function that a CPU is in: a place in it, and where sites.c has the path to it (0: not looked up since entry). */
struct frame {
	uintptr_t pc;
	uint32_t path;
};

enum fiber_state { FIBER_IDLE, FIBER_READY, FIBER_PARKED, FIBER_ASLEEP, FIBER_TIMED, FIBER_QUEUED, FIBER_DONE };

/* A line that a task has looked at since it last waited, as it was then. Linked to the line's list while parked. */
struct watch {
	uint32_t line, version;
	uint32_t next, prev; /* ids: task * WATCHES + index + 1; 0 = none */
};

enum kept { KEPT_FOR_NOTHING, KEPT_FOR_STORES, KEPT_FOR_RETRY };

/* A task. The fiber with a CPU's number is always on that CPU, so it stands for the CPU where its caches matter. */
struct fiber {
	/* What a switch, a wait and a miss touch comes first, in four lines of the host. */
	__cacheline_aligned void *sp;
	uint64_t clock; /* while it does not run */
	uint64_t *tags; /* [set]: what was used last, close together because it is looked at most */
	struct frame *shadow;
	struct task_struct *task;
	uint32_t depth;
	uint32_t cpu, nr; /* its CPU, its own number */
	enum fiber_state state;
	uint32_t nr_watches;
	uint32_t preempt_off; /* while it does not run */
	uint64_t timer;	     /* parked: when it goes on if nobody lets it before; 0: never. It is in the queue of events */
	uint64_t interrupted_until; /* the end of the last interrupt that it took while it was parked */
	uint64_t store_done; /* when all its stores so far are through */
	uint64_t stolen;     /* ps that interrupts took since it last ran, but while it was parked */
	uint64_t *older;     /* [set][WAYS - 1] */
	uint64_t *l3_tags;
	uint32_t core, node, l3;
	uint32_t next_store;
	/* What its last read-modify-write had to fetch, until when it has that for itself, and what for (directory.c). */
	uint64_t kept_until;
	uint32_t kept_line;
	enum kept kept;
	struct watch watches[WATCHES];
	struct emu_virtual_cpu spent;

	/* For the time stack: locks that it holds, and what has been put into the stack so far. */
	uint32_t rmap_locks, other_locks;
	uint64_t stacked_clock, stacked_waits, stacked_spin, stacked_sleep;
	uint64_t queued_at; /* when it got into the run queue; then how long it was there */
	uint64_t queued_ps;
	struct fiber *queue_next;
	uint64_t stores[EMU_STORES_MAX];
	const _Atomic uint32_t *futex;
	struct fiber *futex_next;
	char *stack; /* lowest address, the guard page */
	uint64_t since; /* clock at the start of the phase */
};

/* A CPU that tasks share, and its run queue: first come, first served. */
struct run_queue {
	struct fiber *running; /* may be parked; NULL: the CPU is idle */
	struct fiber *first, *last;
	uint64_t slice_end; /* when the running task may have to go; UINT64_MAX: it has been told to */
	uint64_t free;	    /* since when it has been idle */
	uint64_t idles_ps;  /* how long it is idle at a time, of late */
	bool resched;	    /* the running task must go as soon as it may be preempted */
	bool told;	    /* a spinner has been made to look again since */
};

/* What the hooks touch, in as few lines of the host as may be; then the rest. */
struct vm {
	/* The modelled part of the arena; span is 0 while accesses are not charged. */
	uintptr_t base;
	uint64_t span;
	struct line *lines;
	uint64_t clock; /* of the running fiber, as are all down to fiber */
	uint64_t horizon;
	uint64_t *tags;
	uint32_t set_mask, set_shift;
	uint32_t last_write; /* a line that needs no second look: nobody else has run since */
	uint64_t access_ps;
	uint64_t accesses;
	struct frame *shadow;
	uint32_t depth;
	uint32_t cpu, nr;
	uint32_t preempt_off;
	struct fiber *fiber;
	uint64_t top_key; /* of the first in the queue, UINT64_MAX: empty */
	uint64_t trace_hash;
	uint64_t syncs;
	uint64_t lookahead; /* the shortest way of a line between two CPUs */
	uint64_t random;    /* for the directory, never 0 */
	uint64_t wake_random; /* likewise, for wakes */

	struct emu_cost_model cost;
	uint64_t full_span;
	bool in_phase; /* fibers run */
	bool recorded; /* in a phase that reports are about: lines and sites are counted */
	uint32_t l3_mask;
	uint32_t nr_l3;
	uint16_t *home; /* [page of the modelled part] */
	struct transit *transits; /* [line] */
	struct fiber *fibers;
	uint64_t *node_transfers; /* [to][from] */
	uint64_t switches, misses, transfers, remote_transfers, dram;
	uint64_t now; /* outside phases */
	uint64_t accesses_limit;
	uint64_t asked; /* the clock when a task last looked at it, */
	uint32_t times_asked; /* and how often it has since been the same */
	uint32_t nr_tasks;
	bool shared; /* more tasks than CPUs */
	uint64_t slice_end; /* of the running task's CPU, as are horizon and access_ps */
	struct run_queue *queues; /* [cpu] */
	uint32_t *busy;		  /* [core]: threads that run something and do not just watch a line */
	uint32_t threads;	  /* the most that a core has */
	uint64_t access_ps_of[SMT_MAX + 1]; /* [busy threads of the core] */

	uint64_t *heap; /* 4-ary: clock << 16 | task */
	uint32_t heap_size;
	uint32_t nr_done;
	struct fiber main;
	void (*body)(void *arg);
	void *body_arg;
	int error;

	struct emu_virtual_event *events;
	uint64_t nr_events, max_events;
};

extern struct vm vm;

/* fiber.c */
int fibers_create(uint32_t n);
void fibers_destroy(uint32_t n);
void fiber_prepare(struct fiber *fiber, void (*entry)(void));
void fault_handler(bool on); /* and for a fiber that never looks up */

/* sched.c */
void sched_push(struct fiber *fiber);
void sched_yield_to_first(void);
void horizon_reached(void);
/* Something has come to its end: the event limit counts from here. */
void limit_events(void);
void computed(void);
/* From here on accesses are charged. */
void charge(void);
_Noreturn void sched_fail(int err);
_Noreturn void clock_stands_still(void);
void computes_for_ever(int seconds);
void fiber_wake_watchers(uint32_t line, uint64_t when);
void trace_event(uint32_t line);

/* hooks.c: an atomic access by the machine itself on behalf of the running CPU. */
uint32_t machine_load(_Atomic uint32_t *word);
void machine_store(_Atomic uint32_t *word, uint32_t value);

/* names.c */
void function_name(uintptr_t pc, char *name, size_t size);

/* machine.c: time stacks at the start of a phase, at the end of a task, at the end of the phase. */
void stack_begin(struct fiber *fiber);
void stack_slept(void); /* for a device: for no lock */
void stack_done(void);
void stack_end(void);

/* machine.c: zeroed memory until emu_virtual_end(); NULL: there is none. */
void *keep(uint64_t count, uint64_t size);

/* sites.c. create is after the cost model is known; it may fail for want of memory. */
bool sites_create(void);
uint32_t stack_here(void);
/* An access that made its CPU wait, or (from: whose cache) brought the line; in_line: its first byte there. */
void site_count(uint32_t line, enum emu_site_kind kind, uint32_t in_line, const struct fiber *from, uint64_t wait_ps);
/* The running CPU has spun or slept since start_ps, on what is at an offset of the modelled part. */
void site_waited(uint64_t offset, enum emu_site_kind kind, uint64_t start_ps, uint64_t wait_ps);

/* slices.c */
void slice_waited(uint64_t offset, enum emu_site_kind kind, uint64_t start_ns);

/*
 * directory.c: the slow halves of an access at an offset of the modelled part. The caller's fast path has charged
 * access_ps already.
 */
void line_read(uint64_t offset);
void line_store(uint64_t offset);
/* A CPU's own caches lose all; what of it the L3 had stays there. */
void caches_empty(struct fiber *f);
/* A read-modify-write that always succeeds is one of many that the hardware may serve in the order it likes. */
enum modify { MODIFY_ANY_ORDER, MODIFY_SUCCEEDS, MODIFY_FAILS };
void line_modify(uint64_t offset, enum modify how);
/* After MODIFY_FAILS: those go first who come before the line is here. */
void line_arrives(uint32_t line);

static inline uint64_t later(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* ps, evenly more or less by up to one of `part`. *random is changed. */
static inline uint64_t spread(uint64_t *random, uint64_t ps, uint64_t part)
{
	uint64_t most = ps / part;

	/* xorshift64: Marsaglia 2003, Journal of Statistical Software 8(14) */
	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	return ps - most + ((*random >> 32) * (2 * most + 1) >> 32);
}

static inline uint64_t queue_key(uint64_t clock, uint32_t nr)
{
	return clock << 16 | nr;
}

/* What `ps` of work takes on a core of which `busy` threads work: all share what two get together. */
static inline uint64_t on_busy_core(uint64_t ps, uint32_t busy)
{
	return busy < 2 ? ps : ps * busy * 500 / vm.cost.smt_speed_permille;
}

static inline uint32_t tag_set(uint32_t line)
{
	return (line ^ (line >> vm.set_shift)) & vm.set_mask;
}

static inline uint64_t tag_of(uint32_t line, const struct line *l)
{
	return (uint64_t)line << 32 | l->version >> VERSION_SHIFT;
}

static inline uint32_t l3_slot(uint32_t line)
{
	return (line ^ (line >> 15)) & vm.l3_mask;
}

/*
 * All that others did before this CPU's now has been done when this returns. If the CPU has the line, as the access
 * needs it, then all that could have reached it by now: what another CPU begins takes a way of vm.lookahead at least,
 * and until it is here the line can be used. Who waited for the line to come here is already on its way, though.
 */
static inline __attribute__((always_inline)) void sync_point(uint32_t line, bool has)
{
	vm.syncs++;
	if (queue_key(vm.clock, vm.nr) > vm.top_key) {
		uint64_t first = vm.top_key >> 16;

		if (!has || vm.clock >= first + vm.lookahead || first <= vm.transits[line].ready)
			sched_yield_to_first();
	}
	/* FNV-like: order matters. */
	vm.trace_hash = (vm.trace_hash ^ (vm.clock + ((uint64_t)vm.nr << 48) + line)) * UINT64_C(0x100000001b3);
	if (unlikely(vm.nr_events < vm.max_events))
		trace_event(line);
}

/* Stores must be through before a read-modify-write, a fence or a system call goes on. */
static inline void drain_stores(void)
{
	if (vm.fiber->store_done > vm.clock) {
		vm.fiber->spent.stall_ps += vm.fiber->store_done - vm.clock;
		vm.clock = vm.fiber->store_done;
	}
}

static inline void watch(uint32_t line)
{
	struct fiber *f = vm.fiber;
	uint32_t version = vm.lines[line].version;

	/* The first look counts: what was decided on it may be out of date by the second. */
	for (uint32_t i = 0; i < f->nr_watches; i++)
		if (f->watches[i].line == line)
			return;
	if (f->nr_watches == WATCHES) {
		/* The oldest goes: a loop that reads more lines than this is woken by the latest of them. */
		for (uint32_t i = 1; i < WATCHES; i++)
			f->watches[i - 1] = f->watches[i];
		f->nr_watches--;
	}
	f->watches[f->nr_watches++] = (struct watch){ line, version, 0, 0 };
}

#endif
