/* SPDX-License-Identifier: MIT */
/*
 * conformance.h - does a design keep the rules? A suite is a list of rules; a rule is a test that all CPUs run at once.
 *
 * For one rule and seed, on a machine with CONFORMANCE_FILES files that is booted (control.h) and has run nothing yet:
 *   conformance_begin(kind, rule, steps)  in the conductor, before CPUs are forked
 *   conformance_cpu(NULL)                 on every CPU; a native CPU calls emu_cpu_attach() first
 *   conformance_quiet((void *)times)      the same, where conformance_has_quiet(): does so often what the rule measures,
 *                                         with nobody changing anything
 *   conformance_end(&totals)              in the conductor, when all CPUs are done; gives the suite's memory back
 *
 * A CPU that finds the rule broken calls emu_fail() with what it saw; the machine is of no use afterwards. A design
 * that waits for ever or crashes ends as in any other run; conformance_doing() tells what a CPU was about.
 */
#ifndef EMU_CONFORMANCE_H
#define EMU_CONFORMANCE_H

#include <emu/control.h>

/* The second is named like a library, for designs that treat those apart. */
#define CONFORMANCE_FILES 2u

/* Sums over all CPUs. */
struct conformance_totals {
	uint32_t bytes;		 /* sizeof(struct conformance_totals) as the caller knows it; checked */
	uint32_t declared;	 /* files, a bit each, of which the design refuses walks (-EOPNOTSUPP) */
	uint64_t walks;		 /* that were done */
	uint64_t refused;	 /* walks with -EAGAIN; faults with -EFAULT */
	uint64_t vmas;		 /* that walks have met */
	uint64_t changes;	 /* hooks that change something */
	uint64_t answers;	 /* of mapped() */
	uint64_t faults;	 /* of mm designs: that were done, with nothing changed meanwhile */
	uint64_t undecided;	 /* where something did change */
	uint64_t addresses;	 /* free ranges that were asked for */
	uint64_t forks;
	int64_t mm_bytes;	 /* memory of an empty process */
	int64_t used_file_bytes; /* memory of a file that had been mapped and is no more, beside its slot */
	int64_t vma_millibytes;	 /* memory of the design a linked VMA, a thousandth of a byte */
};

/* Rule n of the suite for designs of this kind (0 rmap, 1 mm), n from 0 on; NULL past the last. *text: what it asks for. */
EMU_EXPORT const char *conformance_rule(uint32_t kind, uint32_t n, const char **text);
EMU_EXPORT int conformance_has_quiet(uint32_t kind, uint32_t n);

/* steps: how much each CPU does. */
EMU_EXPORT void conformance_begin(uint32_t kind, uint32_t n, uint32_t steps);
EMU_EXPORT void conformance_cpu(void *unused);
EMU_EXPORT void conformance_quiet(void *times);
/* NULL, or why the rule is broken in a way that only shows at the end. */
EMU_EXPORT const char *conformance_end(struct conformance_totals *totals);

/* What the CPU is in: "walk of anchor"; and its steps so far. For the conductor while CPUs run. */
EMU_EXPORT const char *conformance_doing(uint32_t cpu);
EMU_EXPORT uint64_t conformance_steps(uint32_t cpu);

#endif
