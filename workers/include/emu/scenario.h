/* SPDX-License-Identifier: MIT */
/*
 * scenario.h - a small program that `emu check` runs in as many orders as it can.
 *
 * A scenario is C11 like a design, compiled the same way. setup() runs once, alone; then for each schedule cpu() runs on
 * every CPU and check() alone afterwards, and memory goes back to what it was after setup(). It fails by EMU_ASSERT, by
 * a rule of the design that it uses, a data race, a deadlock, memory that is used after it was freed or never freed.
 *
 *   static void cpu(uint32_t number) { ... }
 *   EMU_EXPORT const struct emu_scenario emu_scenarios[] = {
 *           { .name = "mine", .help = "what it does", .nr_cpus = 2, .cpu = cpu },
 *           { 0 },
 *   };
 *
 * Rules: shared objects come from emu_alloc() in setup(), or are the files; only the arena is taken back and looked at.
 * cpu() ends. Short is good: each lock operation doubles the number of orders.
 */
#ifndef EMU_SCENARIO_H
#define EMU_SCENARIO_H

#include <emu/rmap.h>

#define EMU_EXPLORE_CPUS 8u
#define EMU_SCENARIO_FILES 2u

enum emu_scenario_kind { EMU_SCENARIO_RMAP, EMU_SCENARIO_LOCK, EMU_SCENARIO_LITMUS, EMU_SCENARIO_MM };

struct emu_scenario {
	const char *name;
	const char *help;
	uint32_t nr_cpus;    /* 1 to EMU_EXPLORE_CPUS */
	uint32_t kind;	     /* RMAP, MM: depends on that design; else on none */
	void (*setup)(void); /* may be NULL */
	void (*cpu)(uint32_t number);
	void (*check)(void); /* may be NULL */
	bool rcu; /* RCU's own words take part in the exploration; of kind MM: always */
};

/* File 0 is "libc.so.6", file 1 "data": both 64 pages. */
EMU_EXPORT struct address_space *emu_file(uint32_t n);

/* What a litmus test came to, for a search that lists all outcomes: up to 8 numbers, from check() or cpu(). */
EMU_EXPORT void emu_outcome(uint32_t at, uint64_t value);

/*
 * A lock of the explorer's own, one step to take and one to give: nobody tries it while it is taken. For scenarios that
 * are about something else than a lock. `word` is 0 at first and belongs to these two.
 */
EMU_EXPORT void emu_plain_lock(_Atomic uint32_t *word);
EMU_EXPORT void emu_plain_unlock(_Atomic uint32_t *word);

#endif
