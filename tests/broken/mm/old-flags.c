/* SPDX-License-Identifier: MIT */
/*
 * old-flags - a fault that had to let go of the lock looks whether the VMA is still there, but not what it allows.
 *
 * breaks: mprotect
 */
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/mmap-lock-maple.c"
#include "derive.h"

static int forgetful_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct mm_range range = { .start = addr, .end = addr + EMU_PAGE_SIZE, .read = true };
	struct vm_area_struct *vma, copy;
	int err = -EFAULT;

	mm_maple_lock(mm, &range);
	vma = mm_maple_find(mm, addr, addr + 1, NULL);
	if (vma)
		copy = *vma;
	mm_maple_unlock(mm, &range);
	if (!vma)
		return -EFAULT;
	emu_compute(3000);
	mm_maple_lock(mm, &range);
	vma = mm_maple_find(mm, addr, addr + 1, NULL);
	if (vma && vma->vm_file == copy.vm_file && vma->vm_pgoff == copy.vm_pgoff && vma->vm_start == copy.vm_start)
		err = fault_in_vma(&copy, addr, write, busy);
	mm_maple_unlock(mm, &range);
	return err == -EFAULT ? mm_maple_fault(mm, addr, write, busy) : err;
}

DERIVED("old-flags", MAPLE_HOOKS, .fault = forgetful_fault);
