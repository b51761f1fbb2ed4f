/* SPDX-License-Identifier: MIT */
/*
 * old-copy - a fault copies the VMA under the lock, and uses the copy without: as a speculative one that never looks again.
 *
 * breaks: munmap
 */
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/mmap-lock-maple.c"
#include "derive.h"

static int copying_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct mm_range range = { .start = addr, .end = addr + EMU_PAGE_SIZE, .read = true };
	struct vm_area_struct *vma, copy;

	mm_maple_lock(mm, &range);
	vma = mm_maple_find(mm, addr, addr + 1, NULL);
	if (vma)
		copy = *vma;
	mm_maple_unlock(mm, &range);
	emu_compute(3000);
	return fault_in_vma(vma ? &copy : NULL, addr, write, busy);
}

DERIVED("old-copy", MAPLE_HOOKS, .fault = copying_fault);
