/* SPDX-License-Identifier: MIT */
/*
 * sleeps-and-trusts - a fault that has slept for its page, with the lock dropped, goes on with the VMA that it had found.
 *
 * breaks: munmap
 */
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/mmap-lock-maple.c"
#include "derive.h"

static int trusting_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct mm_range range = { .start = addr, .end = addr + EMU_PAGE_SIZE, .read = true };
	struct vm_area_struct *vma, copy;
	int err;

	mm_maple_lock(mm, &range);
	vma = mm_maple_find(mm, addr, addr + 1, NULL);
	err = fault_in_vma(vma, addr, write, busy);
	if (vma)
		copy = *vma;
	mm_maple_unlock(mm, &range);
	if (err == -EAGAIN) {
		wait_on_pages(*busy);
		err = fault_in_vma(&copy, addr, write, busy);
	}
	return err;
}

DERIVED("sleeps-and-trusts", MAPLE_HOOKS, .fault = trusting_fault);
