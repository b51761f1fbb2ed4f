/* SPDX-License-Identifier: MIT */
/*
 * mm_extents.h - VMAs in the bottom-level page tables: what pt-extents and pt-extents-percpu are made of.
 *
 * There is no tree of all VMAs and no lock of the whole mm. A VMA is in the red-black tree of the page table (2 MiB) in
 * which it lies; a mapping that is longer is one VMA in each table that it touches (vmas_in_tables). So a mapping of n
 * tables costs n VMAs, n tables from the start, n entries in its file's i_mmap, and n locks whenever it is mapped,
 * unmapped or copied. A fault pays none of that: it walks down the page table, which it has to do anyway, and takes the one
 * lock that it takes anyway, ptl.
 *
 *   ptl       guards PTEs and, for faults, the tree of VMAs and what is in them
 *   changing  the lock of a table for changes, which may sleep and take i_mmap inside: ptl comes after i_mmap. A change
 *             takes that of all tables in its range, in order of their addresses, and ptl only to write
 *
 * Whether addresses are free is decided by the VMAs, under `changing`. The free-address tree, with a lock of its own that
 * is held for one search, only proposes: it knows what it gave away and what it was given back, and learns about mappings
 * at fixed addresses when a proposal turns out to be taken.
 * Page tables stay until the mm goes.
 */
#ifndef EMU_MM_EXTENTS_H
#define EMU_MM_EXTENTS_H

#include <emu/maple.h>
#include <emu/mm_ops.h>

/* In page_table.extents. */
struct extents {
	struct rw_semaphore changing; /* set up by pte_alloc() */
	struct task_struct *_Atomic owner; /* of `changing` */
	struct rb_root vmas; /* in order; written with `changing` and ptl held */
};

/* Free addresses of a CPU: that CPU's alone, whose tasks use them with preemption off. */
#define FREE_PIECES 16u
struct free_cpu {
	struct {
		uint64_t start, end;
	} piece[FREE_PIECES];
	uint32_t nr;
};

struct mm_extents {
	struct qspinlock free_lock;
	struct maple_root used; /* an entry: not free, as far as is known. Under free_lock */
	/* Of CPUs, in an mm with several threads; NULL: none so far. */
	__cacheline_aligned struct free_cpu *_Atomic *_Atomic cpus;
	bool percpu;
	uint64_t chunk; /* bytes that a CPU takes at once */
};

_Static_assert(sizeof(struct extents) <= EMU_PT_SLOT, "does not fit into a page table");
_Static_assert(sizeof(struct mm_extents) <= EMU_MM_SLOT, "does not fit into mm->index");

static inline struct extents *extents_of(struct page_table *table)
{
	return (struct extents *)(void *)table->extents;
}

static inline void mm_extents_init(struct mm_struct *mm, bool percpu)
{
	struct mm_extents *me = mm_private(mm, struct mm_extents);

	spin_lock_init(&me->free_lock, EMU_CLASS_FREE_AREA);
	maple_init(&me->used);
	atomic_init(&me->cpus, NULL);
	me->percpu = percpu;
}

static inline void mm_extents_destroy(struct mm_struct *mm)
{
	struct mm_extents *me = mm_private(mm, struct mm_extents);
	struct free_cpu *_Atomic *cpus = atomic_load_explicit(&me->cpus, memory_order_relaxed);

	maple_store(&me->used, 0, UINT64_MAX, NULL);
	for (uint32_t i = 0; cpus && i < emu_nr_cpus(); i++)
		emu_free(atomic_load_explicit(&cpus[i], memory_order_relaxed));
	emu_free((void *)cpus);
}

/*
 * Free addresses
 */

static inline void addresses_set(struct mm_extents *me, uint64_t start, uint64_t end, bool used)
{
	spin_lock(&me->free_lock);
	maple_store(&me->used, start, end - 1, used ? &me->used : NULL);
	spin_unlock(&me->free_lock);
}

/* The highest in the range that seems to be free, taken; or -ENOMEM. */
static inline int64_t addresses_take(struct mm_extents *me, uint64_t len, uint64_t low, uint64_t high)
{
	int64_t found;

	spin_lock(&me->free_lock);
	found = maple_free_area(&me->used, len, low, high);
	if (found >= 0)
		maple_store(&me->used, (uint64_t)found, (uint64_t)found + len - 1, &me->used);
	spin_unlock(&me->free_lock);
	return found;
}

/* This CPU's, if the mm has several threads and the design gives CPUs any. With preemption off. */
static inline struct free_cpu *free_cpu(struct mm_struct *mm)
{
	struct mm_extents *me = mm_private(mm, struct mm_extents);
	struct free_cpu *_Atomic *cpus = atomic_load_explicit(&me->cpus, memory_order_acquire), *_Atomic *others = NULL;
	struct free_cpu *own;

	if (!me->percpu || atomic_load_explicit(&mm->mm_users, memory_order_relaxed) == 1)
		return NULL;
	if (!cpus) {
		cpus = emu_zalloc(emu_nr_cpus() * sizeof(*cpus), emu_node_id());
		if (!atomic_compare_exchange_strong_explicit(&me->cpus, &others, cpus, memory_order_acq_rel,
							     memory_order_acquire)) {
			emu_free((void *)cpus);
			cpus = others;
		}
	}
	own = atomic_load_explicit(&cpus[emu_cpu_id()], memory_order_relaxed);
	if (!own) {
		own = emu_zalloc(sizeof(*own), emu_node_id());
		atomic_store_explicit(&cpus[emu_cpu_id()], own, memory_order_relaxed);
	}
	return own;
}

/* The highest of the CPU's own addresses; or -ENOMEM. */
static inline int64_t free_cpu_take(struct free_cpu *own, uint64_t len, uint64_t low, uint64_t high)
{
	uint32_t best = FREE_PIECES;

	for (uint32_t i = 0; i < own->nr; i++)
		if (own->piece[i].end - own->piece[i].start >= len && own->piece[i].start >= low &&
		    own->piece[i].end <= high && (best == FREE_PIECES || own->piece[i].end > own->piece[best].end))
			best = i;
	if (best == FREE_PIECES)
		return -ENOMEM;
	own->piece[best].end -= len;
	low = own->piece[best].end;
	if (own->piece[best].start == low)
		own->piece[best] = own->piece[--own->nr];
	return (int64_t)low;
}

/* False: it has enough pieces. */
static inline bool free_cpu_give(struct free_cpu *own, uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; i < own->nr; i++) {
		if (own->piece[i].start != end && own->piece[i].end != start)
			continue;
		/* Joined, it may join another. */
		start = own->piece[i].start < start ? own->piece[i].start : start;
		end = own->piece[i].end > end ? own->piece[i].end : end;
		own->piece[i] = own->piece[--own->nr];
		i = UINT32_MAX;
	}
	if (own->nr == FREE_PIECES)
		return false;
	own->piece[own->nr].start = start;
	own->piece[own->nr++].end = end;
	return true;
}

/* More from the global tree, in whole tables, so that CPUs do not meet in one. */
static inline bool free_cpu_fill(struct mm_extents *me, struct free_cpu *own, uint64_t low, uint64_t high)
{
	uint64_t want = me->chunk + EMU_PMD_SIZE, start;
	int64_t found = own->nr < FREE_PIECES ? addresses_take(me, want, low, high) : -ENOMEM;

	if (found < 0)
		return false;
	start = ((uint64_t)found + EMU_PMD_SIZE - 1) & ~(EMU_PMD_SIZE - 1);
	if (start > (uint64_t)found)
		addresses_set(me, (uint64_t)found, start, false);
	if (start + me->chunk < (uint64_t)found + want)
		addresses_set(me, start + me->chunk, (uint64_t)found + want, false);
	return free_cpu_give(own, start, start + me->chunk);
}

static inline int64_t propose(struct mm_struct *mm, uint64_t len, uint64_t low, uint64_t high)
{
	struct mm_extents *me = mm_private(mm, struct mm_extents);
	int64_t found = -ENOMEM;
	struct free_cpu *own;

	emu_preempt_disable();
	own = free_cpu(mm);
	if (own && len <= me->chunk / 4) {
		found = free_cpu_take(own, len, low, high);
		if (found < 0 && free_cpu_fill(me, own, low, high))
			found = free_cpu_take(own, len, low, high);
	}
	emu_preempt_enable();
	return found < 0 ? addresses_take(me, len, low, high) : found;
}

static inline void give_back(struct mm_struct *mm, uint64_t start, uint64_t end)
{
	struct mm_extents *me = mm_private(mm, struct mm_extents);
	struct free_cpu *own;
	bool given;

	emu_preempt_disable();
	own = free_cpu(mm);
	given = own && end - start <= me->chunk / 4 && free_cpu_give(own, start, end);
	emu_preempt_enable();
	if (!given)
		addresses_set(me, start, end, false);
}

/*
 * VMAs of a table
 */

static inline struct vm_area_struct *extent_entry(struct rb_node *node)
{
	return node ? rb_entry(node, struct vm_area_struct, vm_rb) : NULL;
}

/* The first VMA that ends after addr; *prev: the one before. `changing` or ptl is held. */
static inline struct vm_area_struct *extent_find(struct extents *e, uint64_t addr, struct vm_area_struct **prev)
{
	struct vm_area_struct *found = NULL, *before = NULL, *vma = extent_entry(e->vmas.rb_node);

	while (vma) {
		if (vma->vm_end > addr) {
			found = vma;
			vma = extent_entry(vma->vm_rb.rb_left);
		} else {
			before = vma;
			vma = extent_entry(vma->vm_rb.rb_right);
		}
	}
	*prev = before;
	return found;
}

static inline bool extents_owned(struct page_table *table)
{
	return table && atomic_load_explicit(&extents_of(table)->owner, memory_order_relaxed) == current;
}

static inline struct vm_area_struct *mm_extents_find(struct mm_struct *mm, uint64_t addr, uint64_t end,
						     struct vm_area_struct **prev)
{
	struct vm_area_struct *before = NULL;

	if (prev)
		*prev = NULL;
	for (uint64_t at = addr, next; at < end; at = next) {
		struct page_table *table = pte_find_from(mm, &at, end);
		struct vm_area_struct *vma;

		if (!table)
			return NULL;
		next = (at | (EMU_PMD_SIZE - 1)) + 1;
		if (!extents_owned(table))
			continue;
		vma = extent_find(extents_of(table), at, &before);
		if (prev && at == addr)
			*prev = before;
		if (vma)
			return vma->vm_start < end ? vma : NULL;
	}
	return NULL;
}

static inline void mm_extents_link(struct mm_struct *mm, struct vm_area_struct *vma)
{
	struct page_table *table = pte_alloc(mm, vma->vm_start);
	struct rb_root *root = &extents_of(table)->vmas;
	struct rb_node **link = &root->rb_node, *parent = NULL;

	spin_lock(&table->ptl);
	while (*link) {
		parent = *link;
		EMU_ASSERT(vma->vm_end <= extent_entry(parent)->vm_start || vma->vm_start >= extent_entry(parent)->vm_end,
			   "VMAs overlap at %#llx", (unsigned long long)vma->vm_start);
		link = vma->vm_start < extent_entry(parent)->vm_start ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&vma->vm_rb, parent, link);
	rb_insert_color(&vma->vm_rb, root);
	spin_unlock(&table->ptl);
	/* The room for a stack to grow is not proposed to anybody. */
	if (vma->vm_flags & VM_GROWSDOWN && vm_start_gap(vma) < vma->vm_start)
		addresses_set(mm_private(mm, struct mm_extents), vm_start_gap(vma), vma->vm_start, true);
}

static inline void mm_extents_change(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	struct page_table *table = pte_find(mm, vma->vm_start, NULL);

	spin_lock(&table->ptl);
	if (to)
		vma_set(vma, to);
	else
		rb_erase(&vma->vm_rb, &extents_of(table)->vmas);
	spin_unlock(&table->ptl);
}

/*
 * Ranges
 */

/*
 * Where there is no table there is nothing to lock, unless VMAs are to be linked. But while one is waited for, another CPU
 * may make one before it, and map in both: that one comes first then, or half of the mapping would be changed or copied.
 */
static inline void lock_tables(struct mm_struct *mm, const struct mm_range *range)
{
	for (uint64_t at = range->start, next; at < range->end; at = next) {
		uint64_t from = at, again = at;
		struct page_table *table = range->map ? pte_alloc(mm, at) : pte_find_from(mm, &at, range->end);

		if (!table)
			return;
		next = (at | (EMU_PMD_SIZE - 1)) + 1;
		down_write(&extents_of(table)->changing);
		if (at > from && pte_find_from(mm, &again, range->end) != table) {
			up_write(&extents_of(table)->changing);
			next = from;
			continue;
		}
		atomic_store_explicit(&extents_of(table)->owner, current, memory_order_relaxed);
	}
}

/* Those that were locked: others may have been made since. */
static inline void unlock_tables(struct mm_struct *mm, const struct mm_range *range)
{
	for (uint64_t at = range->start, next; at < range->end; at = next) {
		struct page_table *table = pte_find_from(mm, &at, range->end);

		if (!table)
			return;
		next = (at | (EMU_PMD_SIZE - 1)) + 1;
		if (!extents_owned(table))
			continue;
		atomic_store_explicit(&extents_of(table)->owner, NULL, memory_order_relaxed);
		up_write(&extents_of(table)->changing);
	}
}

/*
 * Of a proposal that is not free: what is, is given back. The rest belongs to VMAs, and comes back with them. A forked mm
 * knows nothing yet, so that this is how it learns of what it has: a VMA at a time, not a proposal.
 */
static inline void give_back_holes(struct mm_struct *mm, const struct mm_range *range)
{
	struct mm_extents *me = mm_private(mm, struct mm_extents);

	for (uint64_t at = range->start; at < range->end;) {
		struct vm_area_struct *vma = mm_extents_find(mm, at, range->end, NULL);
		uint64_t hole_end = vma ? vma->vm_start : range->end;

		if (at < hole_end)
			addresses_set(me, at, hole_end, false);
		/* A VMA may be found that reaches beyond: it lies in the tables that are locked. */
		if (vma && vma->vm_start < range->start)
			addresses_set(me, vma->vm_start, range->start, true);
		if (vma && vma->vm_end > range->end)
			addresses_set(me, range->end, vma->vm_end, true);
		at = vma ? vma->vm_end : range->end;
	}
}

static inline int64_t mm_extents_lock(struct mm_struct *mm, struct mm_range *range)
{
	uint64_t low = range->start, high = range->end;

	if (!range->len) {
		lock_tables(mm, range);
		return 0;
	}
	range->map = true;
	for (;;) {
		int64_t found = propose(mm, range->len, low, high);

		if (found < 0)
			return found;
		range->start = (uint64_t)found;
		range->end = range->start + range->len;
		lock_tables(mm, range);
		if (!mm_extents_find(mm, range->start, range->end, NULL))
			return 0;
		give_back_holes(mm, range);
		unlock_tables(mm, range);
	}
}

static inline void mm_extents_unlock(struct mm_struct *mm, struct mm_range *range)
{
	unlock_tables(mm, range);
	if (range->unmapped)
		give_back(mm, range->start, range->end);
}

static inline int fault_in_table(struct mm_struct *mm, struct page_table *table, uint64_t addr, bool write,
				 struct address_space **busy)
{
	struct vm_area_struct *vma, *prev;
	int err = -EFAULT;

	spin_lock(&table->ptl);
	vma = extent_find(extents_of(table), addr, &prev);
	if (vma && vma->vm_start <= addr)
		err = handle_pte_fault(table, vma, addr, write);
	if (!err && mm->tables_know_cpus)
		table_set_known(table);
	/* To sleep, it lets go of the table; the file stays. Then all is looked up again. */
	if (err == -EAGAIN)
		*busy = vma->vm_file;
	spin_unlock(&table->ptl);
	return err;
}

static inline int mm_extents_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct page_table *table = pte_find(mm, addr, NULL);
	int err;

	/* Where a VMA is, there is a table. */
	if (!table)
		return -EFAULT;
	take_page();
	err = fault_in_table(mm, table, addr, write, busy);
	if (err != -EFAULT)
		return err;
	/* A change that splits or merges takes VMAs out for a moment: only when it is over, nothing is nothing. */
	down_read(&extents_of(table)->changing);
	err = fault_in_table(mm, table, addr, write, busy);
	up_read(&extents_of(table)->changing);
	return err;
}

/* All of a design's mm_ops but its name, parameters and init. */
#define MM_EXTENTS_HOOKS                                                                         \
	.version = EMU_MM_VERSION, .machine = EMU_MACHINE_ID, .size = sizeof(struct mm_extents), \
	.vmas_in_tables = true, .destroy = mm_extents_destroy, .lock = mm_extents_lock,          \
	.unlock = mm_extents_unlock, .find = mm_extents_find, .link = mm_extents_link,           \
	.change = mm_extents_change, .fault = mm_extents_fault

#endif
