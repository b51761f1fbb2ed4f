/* SPDX-License-Identifier: MIT */
/*
 * fork.c - whole address spaces: copied by fork, replaced by exec, torn down by exit.
 */
#include "internal.h"

static struct mm_struct *mm_alloc(void)
{
	struct mm_struct *mm = emu_zalloc(sizeof(*mm), emu_node_id());

	emu_mm->init(mm);
	return mm;
}

EMU_NOINLINE struct mm_struct *dup_mmap(struct mm_struct *oldmm)
{
	EMU_CALL_SITE();
	struct mm_struct *mm = mm_alloc();
	struct vm_area_struct *vma, *copy;

	emu_mm->write_lock(oldmm);
	/* Nobody else knows the child's mm yet; its lock nests inside the parent's, as mmap_lock does in the kernel. */
	emu_mm->write_lock(mm);
	mm->mmap_base = oldmm->mmap_base;
	mm->start_brk = oldmm->start_brk;
	mm->brk = oldmm->brk;
	for (vma = emu_mm->find(oldmm, 0, NULL); vma; vma = emu_mm->find(oldmm, vma->vm_end, NULL)) {
		copy = vm_area_alloc(mm, vma->vm_start, vma->vm_end, vma->vm_flags, vma->vm_file, vma->vm_pgoff);
		/* After its parent: a truncate that walks now must meet the parent's PTEs first. */
		if (vma_mapping(vma))
			emu_rmap->insert_after(vma_mapping(vma), copy, vma);
		mm_link(mm, copy);
		copy_page_range(copy, vma);
	}
	emu_mm->write_unlock(mm);
	emu_mm->write_unlock(oldmm);
	return mm;
}

EMU_NOINLINE void exit_mmap(struct mm_struct *mm)
{
	EMU_CALL_SITE();
	struct vm_area_struct *list;

	emu_mm->write_lock(mm);
	list = vms_gather_munmap_vmas(mm, 0, EMU_TASK_SIZE);
	if (list)
		vms_complete_munmap_vmas(mm, list);
	emu_mm->write_unlock(mm);
	EMU_ASSERT(!mm->map_count && !mm->total_vm, "%u VMAs, %llu pages left", mm->map_count,
		   (unsigned long long)mm->total_vm);
	free_pgd(mm);
	if (emu_mm->destroy)
		emu_mm->destroy(mm);
	emu_free(mm);
}

EMU_NOINLINE void exec_mmap(uint64_t mmap_base)
{
	EMU_CALL_SITE();
	struct mm_struct *old = current->mm;

	current->mm = mm_alloc();
	current->mm->mmap_base = mmap_base;
	if (old)
		exit_mmap(old);
}
