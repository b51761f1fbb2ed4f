/* SPDX-License-Identifier: MIT */
/*
 * pt-extents-percpu - pt-extents, and each CPU has free addresses of its own, so that it seldom comes to the global tree.
 *
 * What is left that all threads share is the TLB: with page tables that all CPUs use, each munmap interrupts all CPUs
 * that run the process (flush=mm), and no index can make up for that. flush=table takes what RadixVM added, page tables
 * of each CPU's own: a CPU's first access to a table is a fault, and those that had none are not interrupted.
 */
#include <emu/mm_extents.h>

static uint32_t chunk_kib = 8192;

static uint32_t flush = 1;

static const char *const flush_values[] = { "mm", "table" };

static const struct emu_param params[] = {
	{ "chunk_kib", &chunk_kib, 2048, 1048576, "addresses that a CPU takes from the global tree at once, in KiB",
	  NULL },
	{ "flush", &flush, 0, 1, "whom munmap interrupts: CPUs that run the mm, or those that used the page table",
	  flush_values },
	{ 0 },
};

static void extents_init(struct mm_struct *mm)
{
	mm_extents_init(mm, true);
	mm_private(mm, struct mm_extents)->chunk = (uint64_t)chunk_kib << 10;
	mm->tables_know_cpus = flush;
}

EMU_EXPORT const struct mm_ops emu_mm_ops = {
	.name = "pt-extents-percpu",
	.params = params,
	.init = extents_init,
	MM_EXTENTS_HOOKS,
};
