/* SPDX-License-Identifier: MIT */
/*
 * stat.h - lock statistics by call site, as /proc/lock_stat has them, and latency histograms.
 *
 * Every lock belongs to a class (a name and, for a file's locks, the file). Every acquisition is counted in the table
 * of the CPU that makes it, at [class][mode][call site]; no line is shared. Waiting is timed always (it is on the slow path
 * anyway). Holding is timed for one acquisition in EMU_HOLD_SAMPLE (machine.h), because on a real machine two clock
 * reads cost as much as the uncontended lock; hold_samples says how many. A reader scales by acquired / hold_samples.
 *
 * A call site is the path of small-mm functions that were entered: "mmap_region>vma_link_file". Functions of the small
 * mm that may take locks open with EMU_CALL_SITE(). Designs need nothing.
 */
#ifndef EMU_STAT_H
#define EMU_STAT_H

#include <emu/task.h>

#define EMU_SITES_MAX 128u

/* How a lock is taken. Who takes one that knows no readers is a writer. */
enum lock_mode { LOCK_WRITE, LOCK_READ, LOCK_MODES };

struct lock_stat {
	uint64_t acquired;
	uint64_t contended;
	uint64_t wait_ns, wait_min_ns, wait_max_ns;
	uint64_t hold_ns, hold_min_ns, hold_max_ns; /* of the hold_samples timed ones */
	uint32_t hold_samples;
	uint32_t place; /* (class * LOCK_MODES + mode) * EMU_SITES_MAX + site */
};

/* A process's. Few places are ever used, so what is counted there is kept close together. */
struct lock_stat_table {
	struct lock_stat *used; /* [nr_used + 1]; entry 0 is no place's */
	_Atomic uint32_t nr_used;
	uint16_t at[]; /* [place]: its entry in used; 0: none yet */
};

/*
 * The number of the class (name, file); file may be NULL. The same arguments give the same number on every CPU.
 * Takes a lock: call it when a lock is set up, not when it is taken. At most 48 bytes of each string are kept.
 */
EMU_EXPORT uint32_t lock_class(const char *name, const char *file);

/* Classes that exist in every run, for locks that come and go with each process. */
#define EMU_CLASS_MMAP_LOCK 1u
#define EMU_CLASS_PTL 2u
#define EMU_CLASS_EXTENTS 3u   /* of a page table, for changes: designs with vmas_in_tables */
#define EMU_CLASS_FREE_AREA 4u /* of free addresses */

static inline uint32_t lock_stat_class(const struct lock_stat *stat)
{
	return stat->place / (LOCK_MODES * EMU_SITES_MAX);
}

/* A new entry, for a place that has none in this phase. */
EMU_EXPORT struct lock_stat *lock_stat_first_use(struct task_struct *task, uint32_t place);
EMU_EXPORT void lock_stat_hold_begin(struct task_struct *task, struct lock_stat *stat, const void *lock);
EMU_EXPORT void lock_stat_hold_end(struct task_struct *task, const void *lock);

static inline struct lock_stat *lock_stat_here(struct task_struct *task, uint32_t class_id, enum lock_mode mode)
{
	struct lock_stat_table *table = task->lock_stats;
	uint32_t place = (class_id * LOCK_MODES + mode) * EMU_SITES_MAX + task->site;

	if (unlikely(!table->at[place]))
		return lock_stat_first_use(task, place);
	return &table->used[table->at[place]];
}

/* One more time of the `nr` that were `sum`, the least of them and the greatest. */
static inline void lock_stat_time(uint64_t ns, uint64_t nr, uint64_t *sum, uint64_t *min, uint64_t *max)
{
	*sum += ns;
	*min = nr == 1 || ns < *min ? ns : *min;
	*max = ns > *max ? ns : *max;
}

/* Each lock calls these on every path: got it / got it after waiting, before that / about to release it. */
static inline void lock_stat_acquired(uint32_t class_id, enum lock_mode mode, const void *lock)
{
	struct task_struct *task = current;
	struct lock_stat *stat = lock_stat_here(task, class_id, mode);

	stat->acquired++;
	if (unlikely(++task->hold_tick % EMU_HOLD_SAMPLE == 0))
		lock_stat_hold_begin(task, stat, lock);
}

static inline void lock_stat_contended(uint32_t class_id, enum lock_mode mode, uint64_t wait_ns)
{
	struct lock_stat *stat = lock_stat_here(current, class_id, mode);

	emu_waited_for(class_id);
	stat->contended++;
	lock_stat_time(wait_ns, stat->contended, &stat->wait_ns, &stat->wait_min_ns, &stat->wait_max_ns);
	current->wait_ns += wait_ns;
	emu_waited(class_id, wait_ns);
}

static inline void lock_stat_release(const void *lock)
{
	struct task_struct *task = current;

	/* Slots fill from 0 on without gaps: with no hold being timed this is one load of the task's own line. */
	if (unlikely(task->holds[0].lock))
		lock_stat_hold_end(task, lock);
}

/* A node of the call-site trie; 0 is the root and ends lists. */
struct emu_site {
	const char *function;
	uint32_t parent, child, sibling;
};

/* The call-site trie. enter returns the site to go back to; leave goes back. */
EMU_EXPORT uint32_t emu_site_enter(const char *function);
static inline void emu_site_leave(uint32_t *saved)
{
	current->site = *saved;
}
#define EMU_CALL_SITE_OF(function) \
	__attribute__((cleanup(emu_site_leave), unused)) uint32_t emu_saved_site__ = emu_site_enter(function)
#define EMU_CALL_SITE() EMU_CALL_SITE_OF(__func__)

/*
 * Latency histograms in HdrHistogram's bucket layout: lowest discernible value 1 ns, 2 significant digits, highest
 * trackable 2^38 - 1 ns (275 s). 256 sub-buckets, the lower half used in the first bucket only; counts of 32 bits.
 * Values above the range are counted in `overflow` and not in `counts`.
 */
#define EMU_HIST_SUB_BITS 8u
#define EMU_HIST_BUCKETS 31u
#define EMU_HIST_COUNTS ((EMU_HIST_BUCKETS + 1) * (1u << (EMU_HIST_SUB_BITS - 1)))
#define EMU_HIST_MAX_NS ((UINT64_C(1) << (EMU_HIST_BUCKETS + EMU_HIST_SUB_BITS - 1)) - 1)

struct emu_hist {
	uint64_t total; /* of counts[] */
	uint64_t overflow;
	uint64_t sum_ns; /* exact, of the counted ones */
	uint64_t max_ns; /* exact, of all */
	uint32_t counts[EMU_HIST_COUNTS];
};

static inline uint32_t emu_hist_index(uint64_t ns)
{
	/* The bucket is how far the value must be shifted until it fits into 256 sub-buckets. */
	uint32_t bucket = 64u - EMU_HIST_SUB_BITS - (uint32_t)__builtin_clzll(ns | ((1u << EMU_HIST_SUB_BITS) - 1));
	uint32_t sub = (uint32_t)(ns >> bucket);

	return (bucket << (EMU_HIST_SUB_BITS - 1)) + sub;
}

static inline void emu_hist_record(struct emu_hist *h, uint64_t ns)
{
	if (ns > h->max_ns)
		h->max_ns = ns;
	if (unlikely(ns > EMU_HIST_MAX_NS)) {
		h->overflow++;
		return;
	}
	h->counts[emu_hist_index(ns)]++;
	h->total++;
	h->sum_ns += ns;
}

#endif
