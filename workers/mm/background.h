/* SPDX-License-Identifier: MIT */
/*
 * background.h - locks and lines of the rest of the kernel, which a workload names (background.c). Not for designs.
 *
 * An entry (struct emu_background, control.h) is a kind of lock, or a set of shared words; it has one instance for
 * the machine, for each node or for each file. Instances live from emu_boot() on. What is guarded by a lock is a
 * number of lines, all of which every holder reads and writes: so the time that it is held follows from where they
 * come from.
 */
#ifndef EMU_MM_BACKGROUND_H
#define EMU_MM_BACKGROUND_H

#include <emu/control.h>
#include <emu/rwsem.h>

union background_line {
	__cacheline_aligned uint64_t guarded; /* by the lock */
	_Atomic uint64_t shared;	      /* of an entry without one */
};

struct background {
	union {
		struct rw_semaphore sem;
		struct qspinlock spin;
	};
	/* Constant once CPUs run, on a line of their own. */
	__cacheline_aligned uint32_t kind;
	uint32_t nr_lines;
	uint32_t hold_ns;
	const char *name, *file;
	union background_line lines[];
};

/* Set-up, on the node given. Names are kept; `file` is part of the lock class, or NULL. No CPU runs meanwhile. */
struct background *background_create(const struct emu_background *entry, const char *file, uint32_t lines,
				     uint32_t node);

/*
 * One use: takes the lock, changes what it guards, holds it for the entry's time and (inner, or NULL) for one use of
 * another one; or adds to each of the words. May wait, holds nothing afterwards.
 */
void background_use(struct background *b, struct background *inner);

/* The uses that its lines have seen; UINT64_MAX: they do not agree. Without a line: 0. */
uint64_t background_uses(const struct background *b);
bool background_has_lines(const struct background *b);

#endif
