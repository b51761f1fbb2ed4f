/* SPDX-License-Identifier: MIT */
/*
 * pt-extents-percpu - pt-extents, and each CPU has free addresses of its own, so that it seldom comes to the global tree.
 */
#include <emu/mm_extents.h>

static uint32_t chunk_kib = 8192;

static const struct emu_param params[] = {
	{ "chunk_kib", &chunk_kib, 2048, 1048576, "addresses that a CPU takes from the global tree at once, in KiB",
	  NULL },
	{ 0 },
};

static void extents_init(struct mm_struct *mm)
{
	mm_extents_init(mm, true);
	mm_private(mm, struct mm_extents)->chunk = (uint64_t)chunk_kib << 10;
}

EMU_EXPORT const struct mm_ops emu_mm_ops = MM_EXTENTS_OPS("pt-extents-percpu", extents_init, params);
