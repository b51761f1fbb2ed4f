/* SPDX-License-Identifier: MIT */
/*
 * virtual.h - how the conductor drives the virtual machine. Not for designs; the virtual engine only.
 *
 * A cell is made as on the native engine (control.h) up to emu_boot(). Then, instead of forking:
 *   emu_virtual_config(&model)          after emu_arena_format(): directory, caches, one fiber a CPU
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
struct emu_cost_model {
	uint32_t bytes; /* sizeof(struct emu_cost_model) as the caller knows it; checked */
	uint32_t nr_cpus, nr_nodes;
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
	uint32_t futex_wait_ps, futex_wake_ps, wake_to_run_ps, ipi_send_ps, ipi_round_trip_ps;
	uint32_t context_switch_ps;

	uint64_t event_limit; /* accesses of one phase before it counts as hung; 0 = none */
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

/* How a CPU has spent its time since the start of the phase. Their sum is what its clock has moved. */
struct emu_virtual_cpu {
	uint64_t clock_ps;
	uint64_t access_ps;  /* the rest: accesses and atomics on its own lines, waking others */
	uint64_t compute_ps; /* emu_compute() */
	uint64_t stall_ps;   /* waiting for a line */
	uint64_t spin_ps;    /* parked by emu_spin_wait() */
	uint64_t sleep_ps;   /* in emu_futex_wait() and on the way there and back */
};

/* A line of the arena that was handed from CPU to CPU. */
struct emu_virtual_line {
	uint64_t offset; /* bytes from the start of the arena */
	uint64_t wait_ps;
	uint64_t transfers, remote_transfers;
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
/* Runs fn(arg) on every CPU; for tests and micro workloads. Results as above. */
EMU_EXPORT int emu_virtual_run(void (*fn)(void *arg), void *arg);

EMU_EXPORT void emu_virtual_stats(struct emu_virtual_stats *stats);
EMU_EXPORT void emu_virtual_cpu(uint32_t cpu, struct emu_virtual_cpu *out);
/* The n lines with the longest waits, longest first; returns how many there were to give. */
EMU_EXPORT uint32_t emu_virtual_lines(struct emu_virtual_line *lines, uint32_t n);
/* What lies at an arena offset: "i_mmap_rwsem libc.so", "task", "slab-192"; returns the length needed. */
EMU_EXPORT int emu_virtual_symbol(uint64_t offset, char *buf, size_t size);
/* The functions that a CPU is in, outermost first, as "a>b>c" where names are known; returns the length needed. */
EMU_EXPORT int emu_virtual_stack(uint32_t cpu, char *buf, size_t size);
/* Record the first n points of order of the next runs into events (NULL: stop); emu_virtual_traced() says how many. */
EMU_EXPORT void emu_virtual_trace(struct emu_virtual_event *events, uint64_t n);
EMU_EXPORT uint64_t emu_virtual_traced(void);

#endif
