/* SPDX-License-Identifier: MIT */
/*
 * fork.c - whole address spaces: copied by fork, shared by threads, replaced by exec, torn down by the last exit.
 */
#include "internal.h"

#define WHOLE_MM { .end = EMU_TASK_SIZE }

static struct mm_struct *mm_alloc(void)
{
	struct mm_struct *mm = emu_zalloc(sizeof(*mm) + (emu_nr_cpus() + 63) / 64 * sizeof(mm->cpumask[0]),
					  emu_node_id());

	atomic_init(&mm->mm_users, 1);
	emu_mm->init(mm);
	emu_mm_register(mm);
	return mm;
}

/* Pages are copied when the child's VMA is in i_mmap, after its parent: a truncate meets them there. */
static void link_children(struct link_vma_file_batch *vb)
{
	link_file_vma_batch_final(vb);
	for (uint32_t i = 0; i < vb->count; i++)
		copy_page_range(vb->vmas[i], vb->prevs[i]);
	vb->count = 0;
}

EMU_NOINLINE struct mm_struct *dup_mmap(struct mm_struct *oldmm)
{
	EMU_CALL_SITE();
	struct mm_struct *mm = mm_alloc();
	struct link_vma_file_batch vb = { 0 };
	struct mm_range old_range = WHOLE_MM, range = WHOLE_MM;
	struct vm_area_struct *vma, *copy;

	emu_mm->lock(oldmm, &old_range);
	/* Nobody else knows the child's mm yet; its lock nests inside the parent's, as mmap_lock does in the kernel. */
	emu_mm->lock(mm, &range);
	mm->mmap_base = oldmm->mmap_base;
	mm->start_brk = oldmm->start_brk;
	atomic_store_explicit(&mm->brk, atomic_load_explicit(&oldmm->brk, memory_order_relaxed), memory_order_relaxed);
	for (uint64_t at = 0; (vma = emu_mm->find(oldmm, at, EMU_TASK_SIZE, NULL)); at = vma->vm_end) {
		/* It stays as it is; but faults that use it must be over. */
		emu_mm->change(oldmm, vma,
			       &(struct vma_change){ vma->vm_start, vma->vm_end, vma->vm_pgoff, vma->vm_flags });
		copy = vm_area_alloc(mm, vma->vm_start, vma->vm_end, vma->vm_flags, vma->vm_file, vma->vm_pgoff);
		emu_mm->link(mm, copy);
		if (!vma_mapping(vma)) {
			copy_page_range(copy, vma);
			continue;
		}
		if (emu_batch < EMU_BATCH_FORK || !link_file_vma_batch_fits(&vb, vma))
			link_children(&vb);
		vb.vmas[vb.count] = copy;
		vb.prevs[vb.count++] = vma;
	}
	link_children(&vb);
	emu_mm->unlock(mm, &range);
	/* Pages that both share can no longer be written. */
	flush_tlb_range(oldmm, 0, EMU_TASK_SIZE);
	emu_mm->unlock(oldmm, &old_range);
	return mm;
}

static EMU_NOINLINE void exit_mmap(struct mm_struct *mm)
{
	EMU_CALL_SITE();
	struct mm_range range = WHOLE_MM;

	emu_mm->lock(mm, &range);
	clear_range(mm, 0, EMU_TASK_SIZE, NULL);
	emu_mm->unlock(mm, &range);
	emu_mm_unregister(mm);
	if (emu_mm->vmas_in_tables)
		free_pgd_range(mm, 0, EMU_TASK_SIZE, 0, UINT64_MAX);
	free_pgd(mm);
	if (emu_mm->destroy)
		emu_mm->destroy(mm);
	emu_free(mm);
}

void mmput(struct mm_struct *mm)
{
	/* Release: what this task did to the mm. Acquire: what the others did before they left. */
	if (atomic_fetch_sub_explicit(&mm->mm_users, 1, memory_order_acq_rel) == 1)
		exit_mmap(mm);
}

void switch_mm(struct mm_struct *mm)
{
	struct mm_struct *old = current->mm;
	uint32_t word = current->cpu / 64;
	uint64_t bit = UINT64_C(1) << current->cpu % 64;

	if (mm == old)
		return;
	/* Where tasks share CPUs another thread may be there too: its bit stays, and who flushes looks at who runs. */
	if (old && emu_nr_tasks() == emu_nr_cpus())
		atomic_fetch_and_explicit(&old->cpumask[word], ~bit, memory_order_relaxed);
	if (mm)
		atomic_fetch_or_explicit(&mm->cpumask[word], bit, memory_order_relaxed);
	current->mm = mm;
}

EMU_NOINLINE void exec_mmap(uint64_t mmap_base)
{
	EMU_CALL_SITE();
	struct mm_struct *old = current->mm, *mm = mm_alloc();

	mm->mmap_base = mmap_base;
	switch_mm(mm);
	if (old)
		mmput(old);
}
