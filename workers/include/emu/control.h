/* SPDX-License-Identifier: MIT */
/*
 * control.h - how the conductor (Python, by ctypes) drives the core. Not for designs.
 *
 * Life of a cell on the native engine, all in the coordinator's process up to the fork:
 *   emu_design_load(rmap), emu_design_load(mm)    dlopen, checks, parameters
 *   emu_arena_format(base, bytes, &config)        lay out an arena that the caller has mapped
 *   emu_file_add() ... emu_list_add() ...         files and call lists of the workload, in order of their numbers;
 *                                                 before the lists emu_background_add(), emu_use_add()
 *   emu_walker_add() ...                          its background tasks
 *   emu_boot()                                    locks, per-CPU parts, rmap state of every file
 *   (fork: one process a CPU)
 *     emu_cpu_attach(cpu)                         in the worker
 *     emu_phase_run(phase)                        in the worker: arms, waits for the start line, runs, returns
 *   emu_phase_open(phase)                         in the coordinator, when all are armed: the start line
 *   emu_check_drained()                           after the drain phase: trees empty, nothing allocated
 * The same calls without a fork (emu_cpu_attach(0) in the caller) replay a program alone: emu_list_run(), emu_maps().
 *
 * Functions return 0 or -errno; the reason is then in emu_error() (one line, no newline).
 */
#ifndef EMU_CONTROL_H
#define EMU_CONTROL_H

#include <emu/mm_ops.h>

/* Latencies are recorded by operation. Names for people: emu_op_name(). */
enum emu_latency_op {
	EMU_LAT_ITERATION, /* once through a phase's list */
	EMU_LAT_EXEC,
	EMU_LAT_FORK,
	EMU_LAT_EXIT,
	EMU_LAT_MMAP,
	EMU_LAT_MUNMAP,
	EMU_LAT_MPROTECT,
	EMU_LAT_BRK,
	EMU_LAT_FAULT,
	EMU_LAT_WALK,
	EMU_LAT_MICRO, /* line_write() and all calls after it */
	EMU_LAT_NR
};

/* A call of a program. */
enum emu_call_op {
	EMU_CALL_EXEC, /* arg = number of the call list that the kernel runs to map the image; addr = mmap_base */
	EMU_CALL_FORK, /* the child runs on; its EXIT gives the CPU back to the parent */
	EMU_CALL_EXIT, /* tear down the current mm; then the parent's becomes current, or none */
	EMU_CALL_MMAP,
	EMU_CALL_MUNMAP,
	EMU_CALL_MPROTECT,
	EMU_CALL_BRK,
	EMU_CALL_FAULT, /* touch each page of [addr, addr + len), to write it if prot has EMU_PROT_WRITE */
	EMU_CALL_FAULT_NEXT, /* touch the next page of it that is not there; after the last, give all back and go round */
	EMU_CALL_DONTNEED,   /* madvise(MADV_DONTNEED) */
	EMU_CALL_PASS, /* hand the latest mapping to the next CPU, wait for one of the CPU before: it is the latest now */
	EMU_CALL_CLONE, /* a thread begins: the task goes on as that one */
	EMU_CALL_THREAD_EXIT, /* it ends: the task goes on as the one before. work_ns as of EXEC */
	EMU_CALL_WORK, /* nothing but work_ns; from here on no process is needed */
	EMU_CALL_PACE, /* waits, computing, for the next whole multiple of len ns since the start line */
	EMU_CALL_BARRIER, /* waits for all CPUs; ends the CPU's part of the phase where one has ended its own */
	EMU_CALL_LINE_WRITE, /* the micro workloads: see mm/micro.h */
	EMU_CALL_LINE_FETCH_ADD,
	EMU_CALL_LINE_CMPXCHG,
	EMU_CALL_LINE_PING_PONG, /* in a phase only; ends the CPU's part of it where it has no partner, or no more */
	EMU_CALL_RWSEM_WRITE,
	EMU_CALL_RWSEM_READ,
	EMU_CALL_RWSEM_MIXED, /* either, by chance */
	EMU_CALL_NR
};

#define EMU_NO_EXPECT UINT64_MAX

#define EMU_FROM_LAST UINT64_MAX

struct emu_call { /* all constant while CPUs run */
	uint16_t op;	  /* enum emu_call_op */
	uint16_t prot;	  /* EMU_PROT_* */
	uint32_t flags;	  /* EMU_MAP_* */
	int32_t arg;	  /* MMAP: file number, -1 = anonymous; EXEC: list number */
	uint32_t locked_ns; /* MMAP, MUNMAP, MPROTECT, BRK, DONTNEED: computing with the range locked */
	uint64_t addr;	  /* bytes */
	uint64_t len;	  /* bytes; PACE: ns */
	uint64_t offset;  /* bytes */
	uint64_t expect;  /* MMAP, BRK: the address that the real kernel returned; EMU_NO_EXPECT: not checked */
	uint64_t work_ns; /* computing: inside exec, fork and exit and part of their latency; before other calls */
	uint64_t stride;  /* of CPU n, addr is n times this higher. EMU_FROM_LAST: addr counts from its latest mapping */
	uint64_t times;	  /* 0, or len is so many bytes for each CPU of the machine */
	uint32_t first_use; /* of the rest of the kernel: emu_use_add() */
	uint16_t nr_uses;
	/* Set by emu_list_add(): so many calls from the next on only divide further what this one maps. */
	uint16_t followers;
};

/* The rest of the kernel: a lock, or shared words, that calls use; see mm/background.h. */
enum emu_background_kind {
	EMU_BACKGROUND_SPINLOCK,
	EMU_BACKGROUND_RWSEM, /* for writing; a mutex too, which waits alike */
	EMU_BACKGROUND_ATOMIC, /* no lock: each use adds to all of its lines */
};

enum emu_background_per {
	EMU_PER_MACHINE,
	EMU_PER_PROCESS = EMU_PER_MACHINE, /* the one that threads share */
	EMU_PER_NODE, /* the user's */
	EMU_PER_FILE, /* the one that the use names */
};

struct emu_background {
	char name[48];
	uint32_t kind, per;
	uint32_t lines;	  /* that a holder reads and writes, or that are added to; at most as many as a file has pages */
	uint32_t hold_ns; /* computing while it is held */
	int32_t inner;	  /* entry that is used once while this one is held; -1: none */
	uint32_t reserved;
};

/*
 * A call, or a page fault that it makes, uses an entry times_ppm / 1000000 times; what is left of one goes to the CPU's next
 * such call.
 */
struct emu_use {
	uint32_t entry;
	int32_t file; /* EMU_PER_FILE */
	uint64_t times_ppm;
};

/* What a cell is made with. `bytes` = sizeof of this struct as the caller knows it; checked. */
struct emu_config {
	uint32_t bytes;
	uint32_t nr_cpus, nr_nodes; /* nr_cpus: tasks, with a table of everything each */
	uint32_t nr_hw_cpus; /* CPUs that the tasks share, task i on CPU i modulo this; 0: nr_cpus */
	uint32_t nr_files, nr_lists, nr_calls; /* upper bounds */
	uint32_t oversubscribed;	       /* more emulated than host CPUs: spinners yield to the host's scheduler */
	uint32_t numa_penalty;		       /* emu_line_moved() costs */
	uint32_t work_jitter_permille;	       /* each work_ns varies evenly by +- this */
	uint32_t vma_change_ns;		       /* see task_struct */
	uint32_t strict;		       /* munmap or mprotect of what is not mapped, a wrong expect: an error */
	uint32_t nr_walkers;		       /* upper bound */
	uint32_t share_mm;		       /* all CPUs are threads of the process that CPU 0's first exec makes */
	uint64_t seed;
	const uint32_t *node_of_cpu;	 /* [nr_cpus], copied */
	const uint32_t *penalty_ns;	 /* [nr_nodes][nr_nodes], copied; NULL without numa_penalty */
	const int32_t *host_node_of_node; /* [nr_nodes] for mbind, -1 = leave to the host; NULL: all -1 */
	uint32_t nr_backgrounds, nr_uses, nr_background_classes; /* upper bounds */
	/*
	 * So many of the workload's files, its last, are nr_cpus files each, all of one name, one after the other: a
	 * CPU's calls mean its own. nr_files counts them all, the numbers in calls and uses count each name once.
	 */
	uint32_t nr_private_files;
};

/* A background task that walks a file again and again; the coordinator reads what came of it. */
struct emu_walker {
	uint32_t kind; /* 0 truncate, 1 reclaim, 2 migrate: emu_walk_name() */
	uint32_t cpu;  /* walks before its program's next call, when its time has come */
	uint32_t file;
	uint32_t reserved;
	uint64_t first, last; /* pages */
	uint64_t at_once;     /* pages that a walk is about: these, then the next so many, and so round and round */
	uint64_t every_ns;

	/* In the phase that ran last; written by the CPU. */
	uint64_t done;	  /* walks to the end; the rest is of these */
	uint64_t refused; /* reclaim: a lock was not free */
	uint64_t lost;	  /* the rmap design keeps the file out of its index */
	uint64_t vmas, pages;
	uint64_t due_ns, next; /* its next walk: when, and its first page */
	struct emu_hist latency;
};

/* A phase in progress, in the arena; the coordinator reads it at any time. */
struct emu_phase_status {
	_Atomic uint32_t open;	/* the start line: futex; 0 = not yet */
	_Atomic uint32_t armed; /* CPUs that wait at it */
	_Atomic uint32_t done;	/* CPUs that have finished */
	_Atomic uint32_t failed;
	uint64_t start_ns, deadline_ns; /* emu_clock_ns(), written before open */
};

/* What one CPU did in the phase it ran last; written by the CPU, for the coordinator. */
struct emu_cpu_result {
	uint64_t iterations;
	uint64_t start_ns, end_ns;
	uint64_t wait_ns;
	uint64_t counts[EMU_CALL_NR]; /* calls done, by enum emu_call_op */
};

/* What a CPU is doing now; for the coordinator when the CPU died or hangs. */
struct emu_cpu_state {
	_Atomic uint32_t op;	/* enum emu_call_op, or EMU_CALL_NR: between calls */
	_Atomic uint32_t list;	/* call list and */
	_Atomic uint32_t index; /* place in it */
	_Atomic uint64_t iterations;
	char failure[256];	/* why this CPU gave up; empty: it did not */
};

EMU_EXPORT const char *emu_error(void);
EMU_EXPORT uint32_t emu_machine_id(void);

/* kind: 0 rmap, 1 mm. params: "k=v,k=v" or NULL. */
EMU_EXPORT int emu_design_load(uint32_t kind, const char *path, const char *params);
EMU_EXPORT void emu_design_unload(void);
/* One line "name=value: help" a parameter of the loaded design; returns the length needed. */
EMU_EXPORT int emu_design_params(uint32_t kind, char *buf, size_t size);

/* Bytes an arena for this configuration needs at least, without what the mm allocates. */
EMU_EXPORT uint64_t emu_arena_overhead(const struct emu_config *config);
/* The memory: zeroes, or an arena that was formatted for the same configuration. */
EMU_EXPORT int emu_arena_format(void *base, uint64_t bytes, const struct emu_config *config);
EMU_EXPORT int emu_file_add(const char *name, uint64_t nr_pages);
/* So much of the file is not in the page cache, see struct address_space; after emu_file_add(). */
EMU_EXPORT int emu_file_cold(uint32_t file, uint32_t permille, uint64_t read_ns);
/* File number n, for the system calls of emu/mm.h. */
EMU_EXPORT struct address_space *emu_file(uint32_t n);
/* Their numbers, in order from 0; before the lists whose calls use them. inner is an entry that comes later. */
EMU_EXPORT int emu_background_add(const struct emu_background *entry);
EMU_EXPORT int emu_use_add(const struct emu_use *use);
EMU_EXPORT int emu_list_add(const struct emu_call *calls, uint32_t n);
/* After the files. Walks in every phase but those that run once and are not recorded. Returns the walker's number. */
EMU_EXPORT int emu_walker_add(uint32_t kind, uint32_t cpu, uint32_t file, uint64_t first, uint64_t last,
			      uint64_t at_once, uint64_t every_ns);
EMU_EXPORT const struct emu_walker *emu_walker(uint32_t n);
EMU_EXPORT const char *emu_walk_name(uint32_t kind);
EMU_EXPORT int emu_boot(void);

EMU_EXPORT int emu_cpu_attach(uint32_t cpu);
/*
 * list: the call list to repeat; once: run it once, else until duration_ns after the start line. record: reset
 * statistics at the start line and record latencies. -> 0, or -errno when a call failed.
 */
EMU_EXPORT int emu_phase_prepare(uint32_t list, uint32_t once, uint32_t record, uint64_t duration_ns);
/* What CPU 0 does instead in the phase that was prepared. */
EMU_EXPORT int emu_phase_first(uint32_t list);
EMU_EXPORT int emu_phase_run(void);
EMU_EXPORT int emu_phase_open(void);
EMU_EXPORT struct emu_phase_status *emu_phase_status(void);

EMU_EXPORT struct emu_cpu_state *emu_cpu_state(uint32_t cpu);
EMU_EXPORT struct emu_cpu_result *emu_cpu_result(uint32_t cpu);
EMU_EXPORT uint64_t emu_cpu_faults(uint32_t cpu);
EMU_EXPORT struct emu_hist *emu_cpu_hists(uint32_t cpu);     /* [EMU_LAT_NR]; those of a process have the same */
EMU_EXPORT uint32_t emu_nr_lock_classes(void);
EMU_EXPORT int emu_lock_class_name(uint32_t class_id, const char **name, const char **file);
/* The path "a>b>c" of a CPU's call site; "" for the root. Returns its length or -errno. */
EMU_EXPORT int emu_cpu_site_path(uint32_t cpu, uint32_t site, char *buf, size_t size);
/*
 * The lock statistics of all CPUs together, [emu_nr_lock_classes()][LOCK_MODES][EMU_SITES_MAX], with call sites of
 * their own; valid until the next call. No CPU may run. NULL: emu_error() says what is damaged.
 */
EMU_EXPORT struct lock_stat *emu_lock_stats(void);
EMU_EXPORT int emu_site_path(uint32_t site, char *buf, size_t size);
/* Adds to wait_ns[nr_classes] what all CPUs have waited for the first classes in this phase; while they run: so far. */
EMU_EXPORT void emu_lock_waits(uint64_t *wait_ns, uint32_t nr_classes);

/* One line in /proc/PID/maps style a VMA ("start-end perms offset name") of the CPU's current mm; length needed. */
EMU_EXPORT int64_t emu_maps(char *buf, uint64_t size);
/* Runs a list once on the calling CPU; on failure *failed is the index of the call. */
EMU_EXPORT int emu_list_run(uint32_t list, uint32_t *failed);

/* VMAs linked to a file right now, by walking; 0 where the rmap design refuses a walk. */
EMU_EXPORT uint64_t emu_file_vmas(uint32_t file);
/* Allocated from the arena and not freed, now; while CPUs run: by and by. */
EMU_EXPORT int64_t emu_live_bytes(void);

/* Bytes of the arena that the rmap design takes, of the file that takes most; a VMA with its share of an index. */
struct emu_memory {
	uint64_t cold_file;   /* never mapped */
	uint64_t mapped_file; /* once mapped */
	uint64_t used_file;   /* at the end of the run, unmapped again: what a design has put up for a file in use */
	uint64_t vma;
};
/* After emu_check_drained(). */
EMU_EXPORT int emu_measure_memory(struct emu_memory *memory);

/*
 * All trees empty, no lock held, no addition to a shared counter lost, no arena object live that was not before boot,
 * once the rmap design has destroyed its files. Else -EBUSY and emu_error(). The files are then as after boot again.
 */
EMU_EXPORT int emu_check_drained(void);

EMU_EXPORT const char *emu_op_name(uint32_t latency_op);
EMU_EXPORT const char *emu_call_name(uint32_t call_op);

#endif
