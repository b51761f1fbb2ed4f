/* SPDX-License-Identifier: MIT */
/*
 * pt-extents - VMAs are kept in the bottom-level page tables, each table's under its own lock (Piggin's proposal).
 */
#include <emu/mm_extents.h>

static void extents_init(struct mm_struct *mm)
{
	mm_extents_init(mm, false);
}

EMU_EXPORT const struct mm_ops emu_mm_ops = {
	.name = "pt-extents",
	.init = extents_init,
	MM_EXTENTS_HOOKS,
};
