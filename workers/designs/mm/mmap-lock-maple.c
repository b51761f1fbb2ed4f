/* SPDX-License-Identifier: MIT */
/*
 * mmap-lock-maple - VMAs in a maple tree, one rwsem (Linux 6.1): faults take mmap_lock for reading, changes for writing.
 */
#include <emu/mm_maple.h>

static uint32_t spin = 1;

static const struct emu_param params[] = { MM_MAPLE_SPIN(spin), { 0 } };

static void mmap_lock_init(struct mm_struct *mm)
{
	mm_maple_init(mm, spin);
}

EMU_EXPORT const struct mm_ops emu_mm_ops = {
	.name = "mmap-lock-maple",
	.version = EMU_MM_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct mm_maple),
	.params = params,
	.init = mmap_lock_init,
	.lock = mm_maple_lock,
	.unlock = mm_maple_unlock,
	.downgrade = mm_maple_downgrade,
	.find = mm_maple_find,
	.link = mm_maple_link,
	.change = mm_maple_change,
	.fault = mm_maple_fault,
};
