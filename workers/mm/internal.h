/* SPDX-License-Identifier: MIT */
/*
 * internal.h - what the files of the small mm share. Not for designs.
 */
#ifndef EMU_MM_INTERNAL_H
#define EMU_MM_INTERNAL_H

#include <emu/mm_ops.h>
#include <emu/pgtable.h>

/* The loaded designs; constant while CPUs run. */
extern EMU_EXPORT const struct mm_ops *emu_mm;
extern EMU_EXPORT const struct rmap_ops *emu_rmap;

#define MMAP_MIN_ADDR UINT64_C(65536)
#define FILE_BATCH 8u /* VMAs of one file under one hold of its lock: as unlink_file_vma_batch since Linux 6.10 */

/* What is done to several VMAs of one file at once: the parameter `batch` of every rmap design. Set by the loader. */
enum emu_batch { EMU_BATCH_NONE, EMU_BATCH_EXIT, EMU_BATCH_FORK, EMU_BATCH_EXEC };
extern uint32_t emu_batch;

static inline uint64_t page_align(uint64_t bytes)
{
	return (bytes + EMU_PAGE_SIZE - 1) & ~(EMU_PAGE_SIZE - 1);
}

/*
 * machine/walker.c: which address spaces there are, for the check after a walk; no part of what is emulated. A listed
 * mm's page tables are freed with the lock held.
 */
void emu_mm_register(struct mm_struct *mm);
void emu_mm_unregister(struct mm_struct *mm);
void emu_page_tables_lock(struct mm_struct *mm);
void emu_page_tables_unlock(struct mm_struct *mm);

/* machine/program.c: what the call under way computes with its range locked, which it is; whoever wants that waits. */
EMU_EXPORT void emu_locked_work(void);

/* mmap.c: what a program maps of a file in several calls, at once. */
#define MAP_SEGMENTS_MAX 16u
struct map_segment {
	uint64_t start, end;
	uint32_t vm_flags;
	struct address_space *file; /* NULL: anonymous */
	uint64_t pgoff;
};
uint32_t calc_vm_flags(uint32_t prot, uint32_t flags);
/*
 * Maps the segments, in order of address, in place of all there is in [addr, addr + len); what they leave free is free
 * then. -ESTALE: that is not where mmap(hint, len, flags) would go now; nothing was done.
 */
int64_t emu_map_segments(uint64_t addr, uint64_t len, uint64_t hint, uint32_t flags, const struct map_segment *segments,
			 uint32_t n, uint64_t brk);

/* vma.c. The range is locked for writing for all of these. */
struct vm_area_struct *vm_area_alloc(struct mm_struct *mm, uint64_t start, uint64_t end, uint32_t flags,
				     struct address_space *file, uint64_t pgoff);
void vm_area_free(struct vm_area_struct *vma);
void vma_prepare(struct vma_prepare *vp);
void vma_complete(struct mm_struct *mm, struct vma_prepare *vp);
void __split_vma(struct mm_struct *mm, struct vm_area_struct *vma, uint64_t addr, bool new_below);
struct vm_area_struct *vma_merge(struct mm_struct *mm, struct vm_area_struct *prev, uint64_t start, uint64_t end,
				 uint32_t flags, struct address_space *file, uint64_t pgoff);
/* VMAs of one file to be linked together. prevs[0] NULL: mappings, else the parents of forked ones. */
struct link_vma_file_batch {
	uint32_t count;
	struct vm_area_struct *vmas[FILE_BATCH], *prevs[FILE_BATCH];
};
void link_file_vma_batch_final(struct link_vma_file_batch *vb);
/* Is there room for one more of this file? */
static inline bool link_file_vma_batch_fits(const struct link_vma_file_batch *vb, const struct vm_area_struct *vma)
{
	return !vb->count || (vb->count < FILE_BATCH && vma_mapping(vb->vmas[0]) == vma_mapping(vma));
}

/* Takes [start, end) out of the mm's index, splitting at the ends. A list by detached_next, in order of address. */
struct vm_area_struct *vms_gather_munmap_vmas(struct mm_struct *mm, uint64_t start, uint64_t end);
/* Clears the PTEs of a gathered list, before anything else is mapped there. */
void vms_clear_ptes(struct mm_struct *mm, struct vm_area_struct *list);
/* Unlinks a gathered list, which has no PTEs any more, from the files, frees its page tables and it. */
void vms_complete_munmap_vmas(struct mm_struct *mm, struct vm_area_struct *list);

/*
 * All of it for [start, end), which is locked. downgraded: what is locked, if nothing else changes in it; else NULL.
 * False: there was nothing, and what is locked is locked as it was.
 */
static inline bool clear_range(struct mm_struct *mm, uint64_t start, uint64_t end, struct mm_range *downgraded)
{
	struct vm_area_struct *old = vms_gather_munmap_vmas(mm, start, end);

	if (!old)
		return false;
	if (downgraded && emu_mm->downgrade)
		emu_mm->downgrade(mm, downgraded);
	vms_clear_ptes(mm, old);
	vms_complete_munmap_vmas(mm, old);
	return true;
}

/* The first address after addr where a VMA has to end, if VMAs have to. */
static inline uint64_t vma_border(uint64_t addr)
{
	return emu_mm->vmas_in_tables ? (addr | (EMU_PMD_SIZE - 1)) + 1 : UINT64_MAX;
}

#endif
