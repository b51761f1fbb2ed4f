/* SPDX-License-Identifier: MIT */
/*
 * explore.h - how the conductor drives the exploring machine, which runs a scenario in many orders. Not for designs.
 *
 * An arena is made and designs are loaded as for a cell (control.h), up to emu_boot(). Then:
 *   emu_explore_scenarios(...)         which scenarios there are: built in, or those of a file
 *   emu_explore_start(&config)         setup() of the scenario has run; where that failed, the status says so
 *   emu_explore_slice(n, ns)           up to n schedules, for up to ns of the host's time; again and again
 *   emu_explore_status(&status)
 *   after a failure: emu_explore_shorten(), emu_explore_record(), emu_explore_event()
 *   emu_explore_end()                  before the arena is unmapped
 *
 * A schedule is a text: a letter for each decision, a number behind it for repeats. 'a' is what would happen anyway
 * (the CPU goes on; the newest value is read), 'b' is CPU 0 or the next other value, and so on. What follows the end is
 * 'a'. Only the design, the scenario, the memory model and this text decide what a run does.
 */
#ifndef EMU_EXPLORE_H
#define EMU_EXPLORE_H

#include <emu/control.h>

enum emu_explore_policy {
	EMU_POLICY_RANDOM,
	EMU_POLICY_PCT,
	EMU_POLICY_MIXED,
	EMU_POLICY_EXHAUSTIVE,
	EMU_POLICY_REPLAY
};

enum emu_explore_kind {
	EMU_FOUND_NOTHING,
	EMU_FOUND_ASSERT,
	EMU_FOUND_RULE, /* of the design: a walk that misses a VMA and so on */
	EMU_FOUND_RACE, /* data race */
	EMU_FOUND_DEADLOCK,
	EMU_FOUND_LIVELOCK,   /* the step limit */
	EMU_FOUND_MEMORY,     /* use after free, double free, beyond an object */
	EMU_FOUND_LEAK,	      /* of memory or of a lock */
	EMU_FOUND_FAULT,      /* a wild pointer, a stack overflow */
	EMU_FOUND_LOCK_ORDER, /* a cycle over all runs */
	EMU_FOUND_STARVATION,
	EMU_FOUND_KINDS
};

struct emu_explore_config {
	uint32_t bytes;
	uint32_t scenario;
	uint32_t policy;
	uint32_t depth;	      /* pct: priority change points + 1; 0: 2 to 5 in turn */
	uint32_t max_steps;   /* of a run */
	uint32_t preemptions; /* exhaustive: at most so many; UINT32_MAX: any number */
	uint32_t sc;	      /* sequential consistency, else the part of C11 that docs/checking.md describes */
	uint64_t seed;
	const char *replay; /* REPLAY */
};

struct emu_explore_status {
	uint64_t schedules; /* complete ones */
	uint64_t cut;	    /* exhaustive: runs that turned out to repeat another */
	uint64_t steps;
	uint64_t longest;	  /* steps of the longest run */
	uint64_t preemptions_cut; /* exhaustive: choices that the bound left out */
	uint32_t done;		  /* exhaustive: nothing is left */
	uint32_t found;		  /* enum emu_explore_kind */
	uint32_t by;		  /* the policy of the run that found it */
	uint32_t outcomes;	  /* different ones, see emu_outcome() */
};

struct emu_explore_failure {
	uint32_t kind;
	char text[1024]; /* lines */
};

/* What a CPU did at a step, in the recorded run. */
struct emu_explore_event {
	uint32_t step;
	uint8_t cpu, kind, order, is_stale; /* kind: enum op_kind of the machine, or 255: a note */
	uint64_t addr;
	uint64_t before, after;
	uint64_t pcs[4];    /* innermost first */
	uint32_t decisions; /* made before it */
	uint32_t others;    /* mask of the CPUs that access these bytes in the run */
	char name[64];	    /* of the address, or the note */
};

/* NULL: the built-in ones. "program:...": one that is written down, see scenarios/program.c. */
EMU_EXPORT int emu_explore_scenarios(const char *path);
EMU_EXPORT int emu_explore_scenario(uint32_t n, char *buf, size_t size); /* "name\tkind\tcpus\thelp" */
EMU_EXPORT int emu_explore_start(const struct emu_explore_config *config);
EMU_EXPORT int emu_explore_slice(uint64_t schedules, uint64_t ns);
EMU_EXPORT void emu_explore_status(struct emu_explore_status *status);
EMU_EXPORT void emu_explore_failure(struct emu_explore_failure *failure);
EMU_EXPORT int emu_explore_schedule(char *buf, size_t size);
/* Tries shorter schedules for up to ns; the failure stays of its kind. Returns how many runs it took. */
EMU_EXPORT int emu_explore_shorten(uint64_t ns);
/* The failing run again, recorded; returns the number of events, or -errno if it does not fail again. */
EMU_EXPORT int emu_explore_record(void);
EMU_EXPORT int emu_explore_event(uint32_t n, struct emu_explore_event *event);
/* The least number of decisions after which `tries` random continuations all fail; -errno on trouble. */
EMU_EXPORT int emu_explore_critical(uint32_t tries);
/* "file\toffset\tfunction" of an address in code. */
EMU_EXPORT int emu_explore_place(uint64_t pc, char *buf, size_t size);
/* What an address in the arena is; nothing for other numbers. */
EMU_EXPORT int emu_explore_name(uint64_t addr, char *buf, size_t size);
/* Outcome n: its numbers, and how many schedules had it. */
EMU_EXPORT int emu_explore_outcome(uint32_t n, uint64_t values[8], uint64_t *count);
/* Cycles of lock order over all runs: lines; 0 if there are none, else the length. */
EMU_EXPORT int emu_explore_lock_order(char *buf, size_t size);
EMU_EXPORT void emu_explore_end(void);

#endif
