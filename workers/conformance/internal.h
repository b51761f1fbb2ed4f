/* SPDX-License-Identifier: MIT */
/*
 * internal.h - what the files of the conformance suite share.
 *
 * A rule's test of an rmap design calls its hooks itself, in the place of the small mm: processes whose VMAs the suite
 * made and whose every change it knows. VMAs are never freed while CPUs run, so that a design that keeps one too long is
 * found out instead of crashing. An mm design is tested below the small mm.
 */
#ifndef EMU_CONFORMANCE_INTERNAL_H
#define EMU_CONFORMANCE_INTERNAL_H

#include "conformance.h"

#include <emu/qspinlock.h>

#define FILES CONFORMANCE_FILES
#define PAGES 8u
#define PROCESSES 16u
#define POOL (PAGES + 1) /* VMAs of one process and file: one a page at most, and the new one of a split */

struct conformance_rule {
	const char *name, *text;
	void (*cpu)(void);
	void (*quiet)(uint32_t times); /* see conformance_quiet(); may be NULL */
};

/* rmap.c, mm.c */
extern const struct conformance_rule rmap_rules[], mm_rules[];
void mm_begin(void);

/* Whether a VMA is linked. The rest of the word counts how often it has been. */
enum { VMA_FREE, VMA_LINKING, VMA_LINKED, VMA_UNLINKING, VMA_STATES };

/*
 * A VMA and what walkers must know of it. Its process's lock is held for writing by whoever writes here; walkers look
 * at any time. A word is written before the hook that it announces is called, and again when that has returned: what
 * is the same before and after a walk was so all the time.
 */
struct tracked {
	struct vm_area_struct vma;
	__cacheline_aligned _Atomic uint32_t state;
	_Atomic uint32_t
		shape; /* odd: between prepare and complete. Up when bounds begin to change and when they have */
	_Atomic uint32_t first, last; /* pages */
	/* What this is a forked copy of and what that one's words were then; constant while linked. NULL: mapped. */
	struct tracked *_Atomic parent;
	uint32_t parent_state, parent_shape;
	uint32_t process, file, cpu; /* cpu: that linked it */
};

/* What `used` of a process says. */
enum { PROCESS_FREE, PROCESS_STARTING, PROCESS_USED };

struct process {
	struct rw_semaphore lock; /* mmap_lock: whoever changes VMAs holds it for writing */
	struct qspinlock ptl;	  /* page-table lock: inside the design's locks */
	_Atomic uint32_t used;
	/* By file: odd while every page of it is mapped and stays so; changes with each time. For walkers. */
	_Atomic uint32_t whole[FILES];
	uint32_t id;
	struct tracked *at[FILES][PAGES]; /* which VMA has the page; NULL: none */
	struct tracked pool[FILES][POOL];
	struct mm_struct mm; /* no more than an address: whose a VMA is */
};

struct check_cpu {
	__cacheline_aligned _Atomic uint64_t steps;
	const char *_Atomic doing; /* "walk"; NULL: between hooks */
	_Atomic uint32_t file;
	struct conformance_totals totals;
};

struct check {
	uint32_t kind, rule, steps;
	uint32_t nr_cpus; /* tasks: those of mm.c may share CPUs */
	uint32_t declared; /* files of which walks are refused */
	int64_t bytes_at_begin;
	int64_t used_file_bytes, mm_bytes, vma_millibytes;
	struct threads *threads; /* of mm designs; see mm.c */
	__cacheline_aligned _Atomic uint32_t arrived;
	__cacheline_aligned _Atomic uint32_t turn; /* futex: up at every barrier */
	__cacheline_aligned _Atomic uint32_t busy; /* CPUs that still change things */
	__cacheline_aligned _Atomic uint32_t flag; /* futex: for rendezvous */
	struct process *process[PROCESSES];
	struct check_cpu *cpus; /* [nr_cpus] */
};

/* Set in the conductor, before CPUs exist. */
extern struct check *check;
extern EMU_EXPORT const struct rmap_ops *emu_rmap;

static inline struct check_cpu *check_here(void)
{
	return &check->cpus[current->nr];
}

/* suite.c */
_Noreturn void broken(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void barrier(void);
void publish(uint32_t value); /* check->flag */
void wait_for(uint32_t value);
void jitter(void);			     /* computes for a random while, mostly short */
void doing(const char *hook, uint32_t file); /* about to call; NULL: it has returned */
static inline uint32_t below(uint32_t n)
{
	return (uint32_t)(emu_random() >> 33) % n;
}

/* process.c. Each takes the process's lock and does nothing where the process is not fit for it. */
void process_map(struct process *p, uint32_t file, uint32_t first, uint32_t pages);
void process_unmap(struct process *p, uint32_t file, uint32_t first, uint32_t last);
void process_split(struct process *p, uint32_t file, uint32_t at, bool new_below);
/* The border before page `at` goes, or moves: see process.c. `amidst` (may be NULL) runs between prepare and complete. */
void process_merge(struct process *p, uint32_t file, uint32_t at, uint32_t way, void (*amidst)(void));
#define MERGE_WAYS 6u
void process_fork(struct process *p);
void process_exit(struct process *p);
struct process *process_some(void);

#endif
