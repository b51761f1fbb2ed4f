/* SPDX-License-Identifier: MIT */
/*
 * faults-unlocked - a fault takes no lock: it finds what is half-way through a change.
 *
 * breaks: change
 */
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/mmap-lock-maple.c"
#include "derive.h"

static int unlocked_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct vm_area_struct *vma = mm_maple_find(mm, addr, addr + 1, NULL);

	emu_compute(500);
	return fault_in_vma(vma, addr, write, busy);
}

DERIVED("faults-unlocked", MAPLE_HOOKS, .fault = unlocked_fault);
