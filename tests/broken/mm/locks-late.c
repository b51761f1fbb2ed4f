/* SPDX-License-Identifier: MIT */
/*
 * locks-late - free addresses are chosen under a lock that is dropped before the range is used.
 *
 * breaks: addresses
 */
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/mmap-lock-maple.c"
#include "derive.h"

static int64_t late_lock(struct mm_struct *mm, struct mm_range *range)
{
	int64_t err = mm_maple_lock(mm, range);

	if (!range->len || err)
		return err;
	mm_maple_unlock(mm, range);
	emu_compute(500);
	range->len = 0;
	return mm_maple_lock(mm, range);
}

DERIVED("locks-late", MAPLE_HOOKS, .lock = late_lock);
