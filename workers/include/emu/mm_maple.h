/* SPDX-License-Identifier: MIT */
/*
 * mm_maple.h - for mm designs that keep VMAs in a maple tree under an mmap_lock: the hooks that they have in common. How a
 * fault finds its VMA, and what else a change has to do for that, is the design's own.
 *
 * The design's part of an mm begins with a struct mm_maple.
 */
#ifndef EMU_MM_MAPLE_H
#define EMU_MM_MAPLE_H

#include <emu/maple.h>
#include <emu/mm_ops.h>

struct mm_maple {
	struct rw_semaphore mmap_lock;
	struct maple_root tree; /* by address */
};

static inline void mm_maple_init(struct mm_struct *mm, bool spin)
{
	struct mm_maple *m = mm_private(mm, struct mm_maple);

	init_rwsem(&m->mmap_lock, EMU_CLASS_MMAP_LOCK);
	m->mmap_lock.no_spin = !spin;
	maple_init(&m->tree);
}

static inline struct vm_area_struct *mm_maple_find(struct mm_struct *mm, uint64_t addr, uint64_t end,
						   struct vm_area_struct **prev)
{
	struct mm_maple *m = mm_private(mm, struct mm_maple);
	struct vm_area_struct *vma = maple_find(&m->tree, addr);

	if (prev)
		*prev = maple_find_before(&m->tree, addr);
	return vma && vma->vm_start < end ? vma : NULL;
}

static inline void mm_maple_link(struct mm_struct *mm, struct vm_area_struct *vma)
{
	maple_store(&mm_private(mm, struct mm_maple)->tree, vma->vm_start, vma->vm_end - 1, vma);
}

/*
 * What a VMA gives up stays its own in the tree until another VMA is stored there, as in the kernel: one store for a split.
 * Faults meanwhile see that the VMA is being changed.
 */
static inline void mm_maple_change(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	struct maple_root *tree = &mm_private(mm, struct mm_maple)->tree;

	if (!to) {
		maple_store(tree, vma->vm_start, vma->vm_end - 1, NULL);
		return;
	}
	if (to->start < vma->vm_start || to->end > vma->vm_end)
		maple_store(tree, to->start, to->end - 1, vma);
	vma_set(vma, to);
}

/* The highest range whose end keeps away from a stack above it. */
static inline int64_t mm_maple_free_area(struct mm_maple *m, const struct mm_range *range)
{
	uint64_t high = range->end;

	for (;;) {
		int64_t found = maple_free_area(&m->tree, range->len, range->start, high);
		struct vm_area_struct *next;

		if (found < 0)
			return found;
		next = maple_find(&m->tree, (uint64_t)found + range->len);
		if (!next || vm_start_gap(next) >= (uint64_t)found + range->len)
			return found;
		if (vm_start_gap(next) < range->start)
			return -ENOMEM;
		high = vm_start_gap(next);
	}
}

static inline int64_t mm_maple_lock(struct mm_struct *mm, struct mm_range *range)
{
	struct mm_maple *m = mm_private(mm, struct mm_maple);
	int64_t found;

	if (range->read) {
		down_read(&m->mmap_lock);
		return 0;
	}
	down_write(&m->mmap_lock);
	if (!range->len)
		return 0;
	found = mm_maple_free_area(m, range);
	if (found < 0) {
		up_write(&m->mmap_lock);
		return found;
	}
	range->start = (uint64_t)found;
	range->end = range->start + range->len;
	return 0;
}

static inline void mm_maple_unlock(struct mm_struct *mm, struct mm_range *range)
{
	struct mm_maple *m = mm_private(mm, struct mm_maple);

	if (range->read)
		up_read(&m->mmap_lock);
	else
		up_write(&m->mmap_lock);
}

/* As Linux since 4.20. */
static inline void mm_maple_downgrade(struct mm_struct *mm, struct mm_range *range)
{
	downgrade_write(&mm_private(mm, struct mm_maple)->mmap_lock);
	range->read = true;
}

/* The fault of those who cannot, or need not, do without mmap_lock. */
static inline int mm_maple_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct mm_maple *m = mm_private(mm, struct mm_maple);
	int err;

	down_read_for_fault(&m->mmap_lock);
	err = fault_in_vma(maple_load(&m->tree, addr), addr, write, busy);
	up_read(&m->mmap_lock);
	return err;
}

/* The parameter of all of them. */
static const char *const mm_maple_on_off[] = { "off", "on" };
#define MM_MAPLE_SPIN(variable) \
	{ "spin", &(variable), 0, 1, "may who waits for mmap_lock spin, or overtake?", mm_maple_on_off }

#endif
