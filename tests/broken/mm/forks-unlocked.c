/* SPDX-License-Identifier: MIT */
/*
 * forks-unlocked - a fork locks no table, and copies from those that others are changing.
 *
 * breaks: fork
 */
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/pt-extents.c"
#include "derive.h"

static bool is_fork(struct mm_struct *mm, uint64_t end)
{
	return end == EMU_TASK_SIZE && atomic_load(&mm->mm_users) > 1;
}

static int64_t no_fork_lock(struct mm_struct *mm, struct mm_range *range)
{
	if (!range->start && is_fork(mm, range->end))
		range->start = EMU_TASK_SIZE - EMU_PAGE_SIZE;
	return mm_extents_lock(mm, range);
}

/* In tables that others have locked, too. Takes its time, so that these may come between. */
static struct vm_area_struct *find_unlocked(struct mm_struct *mm, uint64_t addr, uint64_t end,
					    struct vm_area_struct **prev)
{
	struct vm_area_struct *vma = NULL, *before;

	if (!is_fork(mm, end))
		return mm_extents_find(mm, addr, end, prev);
	emu_compute(1000);
	for (uint64_t at = addr; at < end && !vma; at = (at | (EMU_PMD_SIZE - 1)) + 1) {
		struct page_table *table = pte_find_from(mm, &at, end);

		if (table)
			vma = extent_find(extents_of(table), at, &before);
	}
	return vma;
}

DERIVED("forks-unlocked", MM_EXTENTS_HOOKS, .init = extents_init, .lock = no_fork_lock, .find = find_unlocked);
