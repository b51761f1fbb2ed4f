/* SPDX-License-Identifier: MIT */
/*
 * virtual.h - how the conductor drives the virtual machine. Not for designs; the virtual engine only.
 *
 * A cell is made as on the native engine (control.h) up to emu_boot(). Then, instead of forking:
 *   emu_virtual_config(&model)          after emu_arena_format(): directory, caches, one fiber a task
 *   emu_phase_prepare(...)              as ever
 *   emu_virtual_run_phase()             all CPUs through the phase; returns when the last is done
 *   emu_virtual_stats(&stats) ...       what it took
 *   emu_virtual_end()                   memory back; before the arena is unmapped
 * Virtual time goes on from phase to phase, and caches stay as they are. Nothing is charged outside a phase.
 *
 * Everything depends on the configuration, the calls and the seed alone: no host time and no host address takes part.
 * All times are integer picoseconds; a run ends with an error at 2^47 ps (140 s).
 */
#ifndef EMU_VIRTUAL_H
#define EMU_VIRTUAL_H

#include <emu/control.h>

/*
 * What things cost. A line that another CPU owns costs its requester, one way,
 *   same core: smt_ps   same L3: c2c_l3_ps
 *   else c2c_base_ps + leg_ps[requester][home] + leg_ps[home][owner] + leg_ps[owner][requester]   (nodes)
 * A line that nobody has: dram_ps[requester][home]. One's own: access_ps, or atomic_ps for a read-modify-write.
 */
#define EMU_IDLE_STATES_MAX 4u
struct emu_cost_model {
	uint32_t bytes; /* sizeof(struct emu_cost_model) as the caller knows it; checked */
	uint32_t nr_cpus, nr_nodes; /* as emu_config's nr_hw_cpus, nr_nodes */
	uint32_t outstanding_stores; /* stores in flight before the next one stalls its CPU; 1..EMU_STORES_MAX */

	/* Copied. A core and an L3 domain are within one node. */
	const uint32_t *node_of_cpu; /* [nr_cpus] */
	const uint32_t *l3_of_cpu;   /* [nr_cpus], numbered from 0 across the machine */
	const uint32_t *core_of_cpu; /* [nr_cpus] */
	const uint32_t *leg_ps;	     /* [nr_nodes][nr_nodes] */
	const uint32_t *dram_ps;     /* [nr_nodes][nr_nodes]: CPU's node, home */

	uint32_t private_lines; /* lines of a CPU's own share of its core's caches */
	uint32_t l3_lines;	/* lines of an L3 domain */
	uint32_t access_ps;	/* an ordinary access that hits the CPU's own caches */
	uint32_t l3_hit_ps;	/* a line that the L3 domain has */
	uint32_t smt_ps, c2c_l3_ps, c2c_base_ps;
	uint32_t atomic_ps;
	uint32_t occupancy_ps; /* how far apart a line is handed on while several CPUs ask for it at once */
	uint32_t futex_wait_ps, futex_wake_ps, wake_to_run_ps, ipi_send_ps;
	/* An interrupt that is waited for: with one target, for each further one; what each target loses. */
	uint32_t ipi_round_trip_ps, ipi_each_ps, ipi_handler_ps;
	uint32_t context_switch_ps;
	uint32_t smt_speed_permille; /* of each of two threads of a core that both work, against one alone */

	/* What idle CPUs do, shallow to deep. exit_ps: later than from the shallowest, which wake_to_run_ps contains. */
	uint32_t nr_idle_states;
	struct emu_idle_state {
		uint32_t empties; /* the core's own caches */
		uint64_t residency_ps, exit_ps;
	} idle_states[EMU_IDLE_STATES_MAX];

	uint64_t time_slice_ps; /* how long a task runs while others wait for its CPU */
	uint64_t event_limit; /* accesses, while no call ends, after which a phase counts as hung; 0 = none */
};
#define EMU_STORES_MAX 16u

/* Sums over all CPUs since emu_virtual_config() or the start of the last recorded phase. */
struct emu_virtual_stats {
	uint64_t accesses;	    /* hooked accesses to the arena */
	uint64_t syncs;		    /* those that were a point of order: atomics, volatile */
	uint64_t switches;	    /* from fiber to fiber */
	uint64_t misses;	    /* accesses that looked into the directory */
	uint64_t transfers;	    /* lines that came from another CPU's cache or had to be taken out of one */
	uint64_t remote_transfers;  /* among them: from another node */
	uint64_t dram;		    /* lines from memory */
	uint64_t now_ps;	    /* virtual time reached */
	uint64_t trace_hash;	    /* of all points of order: equal for equal runs */
};

/* Where the time of a task went. Shares that do not overlap; their sum is the length of the phase. */
enum emu_stack_share {
	EMU_STACK_OWN_WORK,    /* working without a lock */
	EMU_STACK_TREE_WORK,   /* working under a lock of the rmap design: one whose class has a file */
	EMU_STACK_LINE_STALLS, /* waiting for cache lines, with or without locks */
	EMU_STACK_SPINNING,    /* for a lock of the rmap design, or for no lock */
	EMU_STACK_ASLEEP,      /* likewise, on the way there and back, and after the task's end until the last one's */
	EMU_STACK_RUNQUEUE,    /* waiting for its CPU, and switching */
	EMU_STACK_OTHER_LOCKS, /* working under, spinning and sleeping for other locks */
	EMU_STACK_NR
};

/*
 * How a task has spent its time since the start of the phase. compute to runqueue and access: their sum is what its
 * clock has moved.
 */
struct emu_virtual_cpu {
	uint64_t compute_ps; /* emu_compute() */
	uint64_t stall_ps;   /* waiting for a line */
	uint64_t spin_ps;    /* parked by emu_spin_wait() */
	uint64_t sleep_ps;   /* in emu_futex_wait() and on the way there and back */
	uint64_t runqueue_ps; /* able to run, but another task has the CPU */
	uint64_t transfers, remote_transfers; /* lines that it got from other CPUs */
	uint64_t stack_ps[EMU_STACK_NR];
	uint64_t clock_ps;  /* this and the next are worked out when somebody asks */
	uint64_t access_ps; /* the rest: accesses and atomics on its own lines, waking others */
};

#define EMU_SYMBOL_MAX 120u

/* All lines of one name and place in their objects that CPUs handed on or waited for, in recorded phases. */
struct emu_virtual_line {
	uint64_t wait_ps;
	uint64_t transfers, remote_transfers;
	char symbol[EMU_SYMBOL_MAX];
};

/* What one stack of functions did to 8 bytes of a line. */
enum emu_site_kind { EMU_SITE_LOAD, EMU_SITE_STORE, EMU_SITE_MODIFY, EMU_SITE_SPIN, EMU_SITE_SLEEP };
struct emu_virtual_site {
	uint32_t line; /* which of emu_virtual_lines() */
	uint32_t stack;
	uint32_t kind;
	uint32_t offset; /* in the object */
	uint64_t count;	 /* transfers; of spinning and sleeping: how often */
	uint64_t remote; /* transfers from another node */
	uint64_t wait_ps;
};

/* Something that a CPU did from start to end. */
enum emu_slice_kind { EMU_SLICE_CALL, EMU_SLICE_WAIT, EMU_SLICE_SPIN, EMU_SLICE_SLEEP, EMU_SLICE_HOLD };
struct emu_virtual_slice {
	uint64_t start_ns, end_ns;
	uint64_t at; /* arena offset of the lock (hold) or of what was watched (spin, sleep) */
	uint32_t task; /* its number; the CPU's where no CPU is shared */
	uint32_t kind;
	uint32_t what; /* enum emu_call_op (call), lock class (wait, hold) */
	uint32_t site; /* for emu_cpu_site_path() */
	uint32_t stack;
	uint32_t unused;
};

/* One point of order, for comparing two runs step by step. */
struct emu_virtual_event {
	uint64_t time_ps;
	uint32_t cpu;
	uint32_t line;
};

EMU_EXPORT int emu_virtual_config(const struct emu_cost_model *model);
EMU_EXPORT void emu_virtual_end(void);

/* Runs the prepared phase; 0, or -errno: a call failed, a deadlock, the event limit, a fault. */
EMU_EXPORT int emu_virtual_run_phase(void);
/* Likewise for a phase that nobody looks at: one CPU after the other, at no cost, up to the first that has to wait. */
EMU_EXPORT int emu_virtual_run_uncharged(void);
/* Runs fn(arg) on every CPU; for tests and micro workloads. Results as above. */
EMU_EXPORT int emu_virtual_run(void (*fn)(void *arg), void *arg);

EMU_EXPORT void emu_virtual_stats(struct emu_virtual_stats *stats);
/* Of the task of that number; a CPU has more than one where tasks outnumber CPUs. */
EMU_EXPORT void emu_virtual_cpu(uint32_t task, struct emu_virtual_cpu *out);
/* Up to n, in no order; return how many. The first of each is what the tables had no room for. */
EMU_EXPORT uint32_t emu_virtual_lines(struct emu_virtual_line *lines, uint32_t n);
EMU_EXPORT uint32_t emu_virtual_sites(struct emu_virtual_site *sites, uint32_t n);
/* Names of the fields in 8 bytes of a line's object, where known ("count"), and of the functions of a stack, outermost
 * first ("a>b>c"); return the length needed. */
EMU_EXPORT int emu_virtual_field(uint32_t line, uint32_t offset, char *buf, size_t size);
EMU_EXPORT int emu_virtual_stack_path(uint32_t stack, char *buf, size_t size);
/* How many lines went from node to node: counts[to * nr_nodes + from]. */
EMU_EXPORT void emu_virtual_node_transfers(uint64_t *counts);
/*
 * Record the slices of the next runs that are not wholly outside [first_ns, end_ns) into slices (NULL: stop), up to n.
 * emu_virtual_sliced() says how many there are and, if they were more, at what time the room ended (else 0).
 */
EMU_EXPORT void emu_virtual_slices(struct emu_virtual_slice *slices, uint64_t n, uint64_t first_ns, uint64_t end_ns);
EMU_EXPORT uint64_t emu_virtual_sliced(uint64_t *full_ns);
/* What lies at an arena offset: "i_mmap_rwsem libc.so", "task", "slab-192"; returns the length needed. */
EMU_EXPORT int emu_virtual_symbol(uint64_t offset, char *buf, size_t size);
/* The functions that a CPU is in, outermost first, as "a>b>c" where names are known; returns the length needed. */
EMU_EXPORT int emu_virtual_stack(uint32_t cpu, char *buf, size_t size);
/* Record the first n points of order of the next runs into events (NULL: stop); emu_virtual_traced() says how many. */
EMU_EXPORT void emu_virtual_trace(struct emu_virtual_event *events, uint64_t n);
EMU_EXPORT uint64_t emu_virtual_traced(void);

#endif
