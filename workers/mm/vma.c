/* SPDX-License-Identifier: MIT */
/*
 * vma.c - VMAs: split, merge, link to and unlink from files.
 *
 * A change of bounds is bracketed by vma_prepare() and vma_complete(): between them the rmap design keeps the file's
 * i_mmap locked and the VMA out of it, because bounds are the key of both trees.
 */
#include "internal.h"

#include <string.h>

const struct mm_ops *emu_mm;
const struct rmap_ops *emu_rmap;
uint32_t emu_batch = EMU_BATCH_EXIT;

struct vm_area_struct *vm_area_alloc(struct mm_struct *mm, uint64_t start, uint64_t end, uint32_t flags,
				     struct address_space *file, uint64_t pgoff)
{
	struct vm_area_struct *vma = emu_alloc(sizeof(*vma), emu_node_id());

	vma->vm_mm = mm;
	vma->vm_start = start;
	vma->vm_end = end;
	vma->vm_flags = flags;
	vma->vm_file = file;
	/* As in the kernel: the page offset of anonymous memory is its address, so that neighbours always fit. */
	vma->vm_pgoff = file ? pgoff : start >> EMU_PAGE_SHIFT;
	vma->i_mmap_index = 0;
	atomic_init(&vma->anon, 0);
	memset(vma->lock, 0, sizeof(vma->lock));
	return vma;
}

/* Faults may still look at it. */
void vm_area_free(struct vm_area_struct *vma)
{
	emu_free_rcu(vma);
}

static void mm_resize(struct mm_struct *mm, struct vm_area_struct *vma, uint64_t start, uint64_t end)
{
	struct vma_change to = { start, end, vma->vm_pgoff, vma->vm_flags };

	/* The difference may be negative: it wraps around, and back. */
	to.pgoff += (start >> EMU_PAGE_SHIFT) - (vma->vm_start >> EMU_PAGE_SHIFT);
	emu_mm->change(mm, vma, &to);
}

EMU_NOINLINE void vma_link_file(struct vm_area_struct *vma)
{
	EMU_CALL_SITE();
	struct address_space *mapping = vma_mapping(vma);

	if (mapping)
		emu_rmap->insert(mapping, &vma, NULL, 1);
}

EMU_NOINLINE void vma_prepare(struct vma_prepare *vp)
{
	EMU_CALL_SITE();

	vp->mapping = vma_mapping(vp->vma);
	if (vp->mapping)
		emu_rmap->prepare(vp->mapping, vp);
}

EMU_NOINLINE void vma_complete(struct mm_struct *mm, struct vma_prepare *vp)
{
	EMU_CALL_SITE();

	if (vp->insert)
		emu_mm->link(mm, vp->insert);
	if (vp->mapping) {
		/* The i_mmap lock is held: whoever wants this file waits for it. */
		if (current->vma_change_ns) {
			emu_compute(current->vma_change_ns);
			current->work_ahead_ns += current->vma_change_ns;
		}
		emu_rmap->complete(vp->mapping, vp);
	}
	if (vp->remove)
		vm_area_free(vp->remove);
	if (vp->remove2)
		vm_area_free(vp->remove2);
}

/* What `from` had pages of its own in, or a part of it, is `vma`'s from now on. */
static void vma_inherit_anon(struct vm_area_struct *vma, struct vm_area_struct *from)
{
	if (from && atomic_load_explicit(&from->anon, memory_order_relaxed))
		atomic_store_explicit(&vma->anon, 1, memory_order_relaxed);
}

/* Splits at addr, inside vma. The new VMA is the lower half if new_below, else the upper. */
EMU_NOINLINE void __split_vma(struct mm_struct *mm, struct vm_area_struct *vma, uint64_t addr, bool new_below)
{
	EMU_CALL_SITE();
	uint64_t start = new_below ? vma->vm_start : addr;
	uint64_t end = new_below ? addr : vma->vm_end;
	struct vma_prepare vp = { .vma = vma };

	EMU_ASSERT(addr > vma->vm_start && addr < vma->vm_end && !(addr % EMU_PAGE_SIZE), "split at %#llx",
		   (unsigned long long)addr);
	vp.insert = vm_area_alloc(mm, start, end, vma->vm_flags, vma->vm_file,
				  vma->vm_pgoff + ((start - vma->vm_start) >> EMU_PAGE_SHIFT));
	vma_prepare(&vp);
	if (new_below)
		mm_resize(mm, vma, addr, vma->vm_end);
	else
		mm_resize(mm, vma, vma->vm_start, addr);
	/* Now that no fault can give it a page in the other half any more. */
	vma_inherit_anon(vp.insert, vma);
	vma_complete(mm, &vp);
}

/* May a range with these properties join `vma`, pgoff being what the range's first page would have there? */
static bool can_vma_merge(const struct vm_area_struct *vma, uint32_t flags, const struct address_space *file,
			  uint64_t vma_pgoff_wanted)
{
	if ((vma->vm_flags | flags) & VM_SPECIAL)
		return false;
	return vma->vm_flags == flags && vma->vm_file == file && vma->vm_pgoff == vma_pgoff_wanted;
}

/*
 * [start, end) is about to have these properties: let a neighbour cover it. The range is either free or made of one
 * VMA or the head or tail of one (mprotect); prev is the VMA before it, or the one that starts before `start` and
 * covers it. Returns the VMA that covers the range now, or NULL when no neighbour fits.
 */
EMU_NOINLINE struct vm_area_struct *vma_merge(struct mm_struct *mm, struct vm_area_struct *prev, uint64_t start,
					      uint64_t end, uint32_t flags, struct address_space *file, uint64_t pgoff)
{
	EMU_CALL_SITE();
	uint64_t pages = (end - start) >> EMU_PAGE_SHIFT;
	/* What the range is made of, if anything. */
	struct vm_area_struct *curr = emu_mm->find(mm, start, end, NULL);
	struct vm_area_struct *next;
	struct vma_prepare vp = { 0 };
	bool with_prev, with_next;

	/* What meets at a border stays apart. */
	if (vma_border(start - 1) == start)
		prev = NULL;
	next = vma_border(end - 1) == end ? NULL : emu_mm->find(mm, end, end + 1, NULL);
	if (!file)
		pgoff = start >> EMU_PAGE_SHIFT;
	with_prev = prev && prev != curr && prev->vm_end == start &&
		    can_vma_merge(prev, flags, file, pgoff - vma_pages(prev));
	with_next = next && next != curr && next->vm_start == end && can_vma_merge(next, flags, file, pgoff + pages);

	if (with_prev) {
		vp.vma = prev;
		if (curr && curr->vm_end == end)
			vp.remove = curr;
		else
			vp.adj_next = curr; /* loses its head */
		if (with_next) {
			if (vp.remove)
				vp.remove2 = next;
			else
				vp.remove = next;
		}
		vma_prepare(&vp);
		if (vp.adj_next)
			mm_resize(mm, vp.adj_next, end, vp.adj_next->vm_end);
		if (vp.remove)
			emu_mm->change(mm, vp.remove, NULL);
		if (vp.remove2)
			emu_mm->change(mm, vp.remove2, NULL);
		mm_resize(mm, prev, prev->vm_start, with_next ? next->vm_end : end);
	} else if (with_next) {
		vp.vma = next;
		if (curr && curr->vm_start == start)
			vp.remove = curr;
		else if (curr)
			vp.adj_next = curr; /* loses its tail */
		vma_prepare(&vp);
		if (vp.adj_next)
			mm_resize(mm, curr, curr->vm_start, start);
		if (vp.remove)
			emu_mm->change(mm, vp.remove, NULL);
		mm_resize(mm, next, start, next->vm_end);
	} else {
		return NULL;
	}
	vma_inherit_anon(vp.vma, vp.adj_next);
	vma_inherit_anon(vp.vma, vp.remove);
	vma_inherit_anon(vp.vma, vp.remove2);
	vma_complete(mm, &vp);
	return vp.vma;
}

void link_file_vma_batch_final(struct link_vma_file_batch *vb)
{
	if (vb->count)
		emu_rmap->insert(vma_mapping(vb->vmas[0]), vb->vmas, vb->prevs[0] ? vb->prevs : NULL, vb->count);
}

/* Up to FILE_BATCH VMAs of one file, to be unlinked under one hold of its lock. */
struct unlink_vma_file_batch {
	uint32_t count;
	struct vm_area_struct *vmas[FILE_BATCH];
};

static EMU_NOINLINE void unlink_file_vma_batch_final(struct unlink_vma_file_batch *vb)
{
	EMU_CALL_SITE();

	if (vb->count)
		emu_rmap->remove(vma_mapping(vb->vmas[0]), vb->vmas, vb->count);
	vb->count = 0;
}

static void unlink_file_vma_batch_add(struct unlink_vma_file_batch *vb, struct vm_area_struct *vma)
{
	if (!vma_mapping(vma))
		return;
	if (vb->count == (emu_batch == EMU_BATCH_NONE ? 1 : FILE_BATCH) ||
	    (vb->count && vma_mapping(vb->vmas[0]) != vma_mapping(vma)))
		unlink_file_vma_batch_final(vb);
	vb->vmas[vb->count++] = vma;
}

/*
 * A batch ends where a gap of a page table's reach begins: the kernel frees page tables as it goes. The list lies
 * between floor and ceiling, where VMAs that stay end and begin.
 */
static EMU_NOINLINE void free_pgtables(struct mm_struct *mm, struct vm_area_struct *list, uint64_t floor,
				       uint64_t ceiling)
{
	EMU_CALL_SITE();

	for (struct vm_area_struct *vma = list; vma;) {
		struct unlink_vma_file_batch vb = { 0 };
		struct vm_area_struct *next = vma->detached_next;
		uint64_t start = vma->vm_start;

		unlink_file_vma_batch_add(&vb, vma);
		while (next && next->vm_start <= vma->vm_end + EMU_PMD_SIZE) {
			vma = next;
			next = vma->detached_next;
			unlink_file_vma_batch_add(&vb, vma);
		}
		unlink_file_vma_batch_final(&vb);
		if (!emu_mm->vmas_in_tables)
			free_pgd_range(mm, start, vma->vm_end, floor, next ? next->vm_start : ceiling);
		vma = next;
	}
}

EMU_NOINLINE struct vm_area_struct *vms_gather_munmap_vmas(struct mm_struct *mm, uint64_t start, uint64_t end)
{
	EMU_CALL_SITE();
	struct vm_area_struct *list = NULL, **tail = &list;
	struct vm_area_struct *vma = emu_mm->find(mm, start, end, NULL);

	if (vma && vma->vm_start < start)
		__split_vma(mm, vma, start, true);
	for (; vma; vma = start < end ? emu_mm->find(mm, start, end, NULL) : NULL) {
		if (vma->vm_end > end)
			__split_vma(mm, vma, end, false);
		start = vma->vm_end;
		emu_mm->change(mm, vma, NULL);
		vma->detached_next = NULL;
		*tail = vma;
		tail = &vma->detached_next;
	}
	return list;
}

EMU_NOINLINE void vms_clear_ptes(struct mm_struct *mm, struct vm_area_struct *list)
{
	EMU_CALL_SITE();
	uint64_t cleared = 0, end = 0;

	/* Who never had a fault has no page tables. */
	if (!atomic_load_explicit(&mm->pgd, memory_order_relaxed))
		return;
	for (struct vm_area_struct *vma = list; vma; vma = vma->detached_next) {
		cleared += unmap_page_range(mm, vma->vm_start, vma->vm_end);
		end = vma->vm_end;
	}
	if (cleared)
		flush_tlb_range(mm, list->vm_start, end);
}

EMU_NOINLINE void vms_complete_munmap_vmas(struct mm_struct *mm, struct vm_area_struct *list)
{
	EMU_CALL_SITE();
	/* Frees nothing: who has no page tables yet may get some meanwhile, by faults beside this range. */
	uint64_t floor = UINT64_MAX, ceiling = 0;

	if (atomic_load_explicit(&mm->pgd, memory_order_relaxed) && !emu_mm->vmas_in_tables) {
		struct vm_area_struct *prev, *next = emu_mm->find(mm, list->vm_start, EMU_TASK_SIZE, &prev);

		floor = prev ? prev->vm_end : 0;
		ceiling = next ? next->vm_start : UINT64_MAX;
	}
	free_pgtables(mm, list, floor, ceiling);
	while (list) {
		struct vm_area_struct *vma = list;

		list = vma->detached_next;
		vm_area_free(vma);
	}
}
