/* SPDX-License-Identifier: MIT */
/*
 * internal.h - what the machine's own files share: the arena's header and the per-CPU part. Not for designs.
 */
#ifndef EMU_MACHINE_INTERNAL_H
#define EMU_MACHINE_INTERNAL_H

#include <emu/control.h>
#include <emu/percpu_sync.h>
#include <emu/rcu.h>

#define EMU_ARENA_MAGIC UINT64_C(0x656d752d6172656e) /* "emu-aren" */
#define EMU_CHUNK_BYTES (UINT64_C(1) << 16)
#define EMU_SIZE_CLASSES 25u
#define EMU_MM_STACK 64u /* processes of one CPU that wait for their child */

struct emu_free_list {
	void *first;
	uint32_t count;
};

/* Free objects and chunks of one node. `locked` guards all but `locked` itself. */
struct emu_pool {
	__cacheline_aligned _Atomic uint32_t locked;
	struct emu_free_list free[EMU_SIZE_CLASSES];
	uint64_t next_chunk, end_chunk; /* never used so far: offsets into the arena */
	void *large;			/* freed runs of chunks */
};

struct emu_cpu {
	struct task_struct task;
	struct emu_percpu_sync sync;
	struct emu_cpu_state state;

	/* Whose histograms, call sites and lock statistics it counts in: the first CPU's of its process. */
	struct emu_cpu *counter;
	uint64_t faults; /* page faults in this phase */

	/* This CPU's alone. */
	__cacheline_aligned struct emu_free_list cache[EMU_SIZE_CLASSES]; /* of the CPU's own node */
	int64_t live_objects, live_bytes; /* allocated minus freed here; only the sum over all CPUs means anything */
	uint64_t random;
	struct mm_struct *parents[EMU_MM_STACK];
	uint32_t nr_parents;
	bool in_phase, in_ping_pong;
	uint64_t last_mmap;   /* where the latest mapping is, 0 = passed on to nobody in return */
	uint64_t fault_range; /* where the range of the latest fault_next() begins, */
	uint64_t next_fault;  /* and how many bytes into it the next one is */
	uint64_t ping_pong_turn;
	const struct emu_call *first_done, *last_done; /* batch=exit+fork+exec: what an earlier call has done already */
	uint64_t walk_due_ns;	 /* the first of its walkers' */
	_Atomic uint32_t mms_locked; /* guards mms, and the page tables of what is in it */
	uint32_t locked_ns;	     /* of the call under way */
	struct mm_struct *mms;	     /* made on this CPU; with walkers only */
	uint64_t added, written; /* micro calls since boot: what their counters must come to */
	struct emu_cpu_result result;
	struct emu_site sites[EMU_SITES_MAX]; /* these and what follows: if it is its own counter */
	struct emu_hist hists[EMU_LAT_NR];
};

/* Does it count in its own? If not, its histograms, sites and statistics stay empty. */
static inline bool emu_is_counter(const struct emu_cpu *cpu)
{
	return cpu->counter == cpu;
}

/* So many bytes and what fills their last line. */
static inline uint64_t emu_whole_lines(uint64_t bytes)
{
	return (bytes + EMU_CACHELINE - 1) & ~(uint64_t)(EMU_CACHELINE - 1);
}

struct emu_class {
	char name[48];
	char file[48];
};

struct emu_list {
	const struct emu_call *calls;
	uint32_t nr;
};

struct emu_arena {
	/* Constant once the first CPU runs. */
	uint64_t magic;
	uint64_t bytes;
	struct emu_config config;
	uint32_t *node_of_cpu;
	uint32_t *penalty_ns;
	struct emu_cpu *cpus; /* [nr_cpus] */
	struct emu_pool *pools; /* [nr_nodes] */
	struct address_space *files; /* [nr_files] */
	uint32_t nr_files;
	struct emu_list *lists;
	uint32_t nr_lists;
	struct emu_call *calls;
	uint32_t nr_calls;
	uint32_t max_classes;
	struct emu_background *backgrounds;
	uint32_t nr_backgrounds;
	uint32_t background_places; /* instances that an entry may have */
	struct background **background_at; /* [nr_backgrounds][background_places]; NULL: not of this file */
	struct emu_use *uses;
	uint32_t nr_uses;
	uint64_t *occasions; /* [nr_cpus][nr_uses]: calls so far; the CPU's own */
	int64_t boot_objects; /* live when emu_boot() was done */
	bool has_micro; /* a list has calls of a micro workload */
	bool has_meetings; /* a list has calls that wait for other CPUs */
	struct emu_micro *micro;
	struct emu_meeting *meeting;
	struct emu_walker *walkers;
	uint32_t nr_walkers;
	uint64_t used_file_bytes; /* see struct emu_memory */
	uint64_t spare_bytes; /* at the end of the last pool, kept for emu_measure_memory() */

	/* Lock classes; class_lock guards them. Class 0 is nobody's. */
	_Atomic uint32_t class_lock;
	uint32_t nr_classes;
	struct emu_class *classes;

	/* share_mm: CPU 0's, once it is there. */
	struct mm_struct *shared_mm;
	_Atomic uint32_t shared_ready;

	/* The phase that runs or is about to; constant while open. */
	uint32_t phase_first, phase_list, phase_once, phase_record;
	uint64_t phase_duration_ns;
	__cacheline_aligned struct emu_phase_status phase;
};

extern struct emu_arena *emu_arena;

static inline struct emu_cpu *emu_this_cpu(void)
{
	return container_of(current, struct emu_cpu, task);
}

/* One line for emu_error(); returns err, so that `return emu_set_error(-EINVAL, ...)` reads well. */
int emu_set_error(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Allocator: set up the pools over [first, arena end); live objects and bytes over all CPUs. */
void emu_pools_init(uint64_t first_offset);
int64_t emu_live_objects(void);
/* How large the object around `ptr` is; 0 where nothing was ever allocated. */
uint32_t emu_object_bytes(const void *ptr);
/* Where in that object `ptr` is. */
uint32_t emu_object_offset(const void *ptr);

/* The running task's number, of config.nr_cpus: several may share a CPU. */
static inline uint32_t emu_task_number(void)
{
	return (uint32_t)(emu_this_cpu() - emu_arena->cpus);
}

/* How many files calls can name, and the one that the running task's mean (nr_private_files). */
uint32_t emu_nr_file_names(void);
struct address_space *emu_file_named(uint32_t n);
/* What a use of an entry by the running CPU goes to; file as in the use. */
struct background *emu_background_of(uint32_t entry, int32_t file);
/* How often a CPU has used what a use names once so many of its calls have. */
uint64_t emu_uses_until(uint32_t use, uint32_t cpu, uint64_t occasions);
/* Names what lies at an address in a background instance: "name data file", "name file". */
bool emu_background_symbol(const void *at, char *buf, size_t size);

/* A CPU's part of a phase: statistics to zero; and the phase itself, from the start line on. */
void emu_phase_reset(uint32_t cpu);
uint64_t emu_lock_stats_bytes(uint32_t max_classes); /* of each CPU */
struct lock_stat_table *emu_lock_stats_of(char *tables, uint32_t cpu, uint32_t nr_cpus, uint32_t max_classes);
void emu_lock_stats_clear(struct task_struct *task);
int emu_phase_body(void);

/* walker.c. A CPU's walkers: results to zero; from the start line on; those whose time has come. */
void emu_walkers_reset(struct emu_cpu *cpu);
void emu_walkers_start(struct emu_cpu *cpu);
int emu_walkers_run(struct emu_cpu *cpu);

/* A lock of the machine itself: held for a few instructions, never while anything waits. */
static inline void emu_raw_lock(_Atomic uint32_t *word)
{
	while (atomic_exchange_explicit(word, 1, memory_order_acquire))
		emu_spin_wait(word);
}

static inline void emu_raw_unlock(_Atomic uint32_t *word)
{
	atomic_store_explicit(word, 0, memory_order_release);
}

/* The engine's own part (native.c; virtual/): measure the clock, place memory, name of an aborted run. */
void emu_machine_init(void);
void emu_machine_bind(void *base, uint64_t bytes, int32_t host_node);
/* The first CPU of the process that `cpu` is in. */
uint32_t emu_machine_first_cpu(uint32_t cpu);
/* There is a lock of this class here: what a machine may name the line after. */
void emu_machine_lock_seen(const void *lock, uint32_t class_id);
/* A timed hold, or a system call, ends now: for a machine that keeps a trace. */
void emu_machine_held(const void *lock, uint32_t class_id, uint32_t site, uint64_t since_ns);
void emu_machine_called(uint32_t op, uint64_t start_ns);
/* The current task has taken, or is about to release, a lock of this class. */
void emu_machine_lock_held(uint32_t class_id, bool held);
/* Where emu_fail() goes when the caller is not a worker: set around code that may fail, in the conductor. */
extern _Thread_local void *emu_fail_jmp;
_Noreturn void emu_machine_exit(void);
/* Whoever can go on after a broken invariant takes it here and does not return; NULL: nobody can. */
extern void (*emu_bug_hook)(const char *place, const char *what);

#endif
