/* SPDX-License-Identifier: MIT */
/*
 * mmap.c - mmap, munmap, mprotect and brk of the current task's mm.
 */
#include "internal.h"

#include <errno.h>

#define FILE_SIZE_MAX UINT64_C(0x7fffffffffffffff) /* the kernel's MAX_LFS_FILESIZE */

uint32_t calc_vm_flags(uint32_t prot, uint32_t flags)
{
	uint32_t vm_flags = prot & VM_ACCESS; /* PROT_* and VM_* agree on these bits */

	if (flags & EMU_MAP_SHARED)
		vm_flags |= VM_SHARED;
	else if ((vm_flags & VM_WRITE) && !(flags & EMU_MAP_NORESERVE))
		vm_flags |= VM_ACCOUNT;
	if (flags & EMU_MAP_NORESERVE)
		vm_flags |= VM_NORESERVE;
	if (flags & EMU_MAP_GROWSDOWN)
		vm_flags |= VM_GROWSDOWN;
	if (flags & EMU_MAP_STACK)
		vm_flags |= VM_NOHUGEPAGE;
	if (flags & EMU_MAP_SPECIAL)
		vm_flags |= VM_SPECIAL;
	return vm_flags;
}

/*
 * Is [addr, addr + len), which is locked, free, and far enough from a stack above it? Where VMAs are in tables, and not all
 * of them are locked, the stack may be in one after the last that is: in order of address, as all of them are locked. What
 * is mapped there from then on comes later, and at a fixed address.
 */
static bool range_is_free(struct mm_struct *mm, uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len, border = vma_border(end - 1);
	struct vm_area_struct *vma = emu_mm->find(mm, addr, end + EMU_STACK_GUARD_GAP, NULL);
	struct mm_range beyond = { .start = border, .end = end + EMU_STACK_GUARD_GAP, .read = true };
	bool is_free = !vma || end <= vm_start_gap(vma);

	if (!emu_mm->vmas_in_tables || vma || beyond.start >= beyond.end)
		return is_free;
	emu_mm->lock(mm, &beyond);
	vma = emu_mm->find(mm, beyond.start, beyond.end, NULL);
	is_free = !vma || end <= vm_start_gap(vma);
	emu_mm->unlock(mm, &beyond);
	return is_free;
}

/* The call is the lock's call site; what is done under the lock has sites of its own. */
static void lock_range(struct mm_struct *mm, struct mm_range *range, const char *call)
{
	EMU_CALL_SITE_OF(call);
	emu_mm->lock(mm, range);
}

/* Locks the range of a new mapping: where it has to be, where the program would like it, or the highest that is free. */
static int64_t lock_unmapped_area(struct mm_struct *mm, uint64_t addr, uint64_t len, uint32_t flags,
				  struct mm_range *range)
{
	EMU_CALL_SITE_OF("emu_sys_mmap");
	bool noreplace = flags & EMU_MAP_FIXED_NOREPLACE, fixed = (flags & EMU_MAP_FIXED) || noreplace;

	if (fixed && addr > EMU_TASK_SIZE - len)
		return -ENOMEM;
	if (fixed && addr % EMU_PAGE_SIZE)
		return -EINVAL;
	/* A wish is rounded down, and nothing is wished for in the first page. */
	addr &= ~(EMU_PAGE_SIZE - 1);
	if (addr && addr < MMAP_MIN_ADDR && !fixed)
		addr = MMAP_MIN_ADDR;
	if (fixed || (addr && addr <= EMU_TASK_SIZE - len)) {
		*range = (struct mm_range){ .start = addr, .end = addr + len, .map = true };
		emu_mm->lock(mm, range);
		if (noreplace ? !emu_mm->find(mm, addr, addr + len, NULL) : fixed || range_is_free(mm, addr, len))
			return 0;
		emu_mm->unlock(mm, range);
		if (noreplace)
			return -EEXIST;
	}
	*range = (struct mm_range){ .start = MMAP_MIN_ADDR, .end = mm->mmap_base, .len = len };
	/* An image may have its base lower still, and a design need not know ranges that end before they start. */
	if (range->start < range->end && !emu_mm->lock(mm, range))
		return 0;
	/* Nothing below the base: above it, as the kernel does. */
	*range = (struct mm_range){ .start = mm->mmap_base, .end = EMU_TASK_SIZE, .len = len };
	return emu_mm->lock(mm, range);
}

static void vma_new(struct mm_struct *mm, uint64_t start, uint64_t end, uint32_t vm_flags, struct address_space *file,
		    uint64_t pgoff)
{
	struct vm_area_struct *vma = vm_area_alloc(mm, start, end, vm_flags, file, pgoff);

	/*
	 * Where faults do not wait for the range (spf, pt-extents) they may map its pages from link() on: a walker that
	 * comes then must find it. Linux has it the other way round, and the VMA locked for writing until both are done.
	 */
	vma_link_file(vma);
	emu_mm->link(mm, vma);
}

static EMU_NOINLINE void mmap_region(struct mm_struct *mm, uint64_t addr, uint64_t len, uint32_t vm_flags,
				     struct address_space *file, uint64_t pgoff)
{
	EMU_CALL_SITE();
	uint64_t end = addr + len, border;
	struct vm_area_struct *prev;

	/* As Linux does since 6.12 for files: before it calls the file's mmap(). Before 6.12 always. */
	clear_range(mm, addr, end, NULL);
	for (; addr < end; pgoff += (border - addr) >> EMU_PAGE_SHIFT, addr = border) {
		border = vma_border(addr) < end ? vma_border(addr) : end;
		emu_mm->find(mm, addr, border, &prev);
		if (!vma_merge(mm, prev, addr, border, vm_flags, file, pgoff))
			vma_new(mm, addr, border, vm_flags, file, pgoff);
	}
}

int64_t emu_sys_mmap(uint64_t addr, uint64_t len, uint32_t prot, uint32_t flags, struct address_space *file,
		     uint64_t offset)
{
	struct mm_struct *mm = current->mm;
	bool shared = flags & EMU_MAP_SHARED, private = flags & EMU_MAP_PRIVATE;
	struct mm_range range;
	int64_t err;

	if (!len || offset % EMU_PAGE_SIZE || shared == private)
		return -EINVAL;
	if (!file != !!(flags & EMU_MAP_ANONYMOUS) && !(flags & EMU_MAP_SPECIAL))
		return -EBADF;
	/* Shared anonymous memory is a file of its own in the kernel; a workload names one. */
	if (shared && !file)
		return -EOPNOTSUPP;
	/* Only anonymous memory grows. */
	if (file && flags & EMU_MAP_GROWSDOWN)
		return -EINVAL;
	len = page_align(len);
	if (!len || len > EMU_TASK_SIZE)
		return -ENOMEM;
	if (file && (len > FILE_SIZE_MAX || offset > FILE_SIZE_MAX - len))
		return -EOVERFLOW;

	err = lock_unmapped_area(mm, addr, len, flags, &range);
	if (err)
		return err;
	emu_locked_work();
	mmap_region(mm, range.start, len, calc_vm_flags(prot, flags), file, offset >> EMU_PAGE_SHIFT);
	if (flags & EMU_MAP_BRK) {
		mm->start_brk = range.start + len;
		atomic_store_explicit(&mm->brk, mm->start_brk, memory_order_relaxed);
	}
	emu_mm->unlock(mm, &range);
	emu_rcu_quiescent();
	return (int64_t)range.start;
}

/* Those of the batch, in the order of vma_new(). */
static void link_segments(struct mm_struct *mm, struct link_vma_file_batch *vb)
{
	link_file_vma_batch_final(vb);
	for (uint32_t i = 0; i < vb->count; i++)
		emu_mm->link(mm, vb->vmas[i]);
	vb->count = 0;
}

/* A segment's VMAs; those of files are linked with the batch. */
static void map_segment(struct mm_struct *mm, const struct map_segment *s, struct link_vma_file_batch *vb)
{
	uint64_t pgoff = s->pgoff;

	for (uint64_t at = s->start, border; at < s->end; pgoff += (border - at) >> EMU_PAGE_SHIFT, at = border) {
		struct vm_area_struct *vma, *prev;

		border = vma_border(at) < s->end ? vma_border(at) : s->end;
		if (!s->file) {
			emu_mm->find(mm, at, border, &prev);
			if (vma_merge(mm, prev, at, border, s->vm_flags, NULL, 0))
				continue;
		}
		vma = vm_area_alloc(mm, at, border, s->vm_flags, s->file, pgoff);
		if (!vma_mapping(vma)) {
			emu_mm->link(mm, vma);
			continue;
		}
		if (!link_file_vma_batch_fits(vb, vma))
			link_segments(mm, vb);
		vb->prevs[vb->count] = NULL;
		vb->vmas[vb->count++] = vma;
	}
}

/* False: nothing was mapped there. */
static EMU_NOINLINE bool do_munmap(struct mm_struct *mm, uint64_t start, uint64_t end, struct mm_range *downgraded)
{
	EMU_CALL_SITE();

	return clear_range(mm, start, end, downgraded);
}

EMU_NOINLINE int64_t emu_map_segments(uint64_t addr, uint64_t len, uint64_t hint, uint32_t flags,
				      const struct map_segment *segments, uint32_t n, uint64_t brk)
{
	EMU_CALL_SITE();
	struct link_vma_file_batch vb = { 0 };
	struct mm_struct *mm = current->mm;
	struct mm_range range;

	if (lock_unmapped_area(mm, hint, len, flags, &range))
		return -ESTALE;
	if (range.start != addr) {
		emu_mm->unlock(mm, &range);
		return -ESTALE;
	}
	emu_locked_work();
	/* The segments may leave holes: page tables there go now, while nothing new is above them. */
	do_munmap(mm, addr, addr + len, NULL);
	for (const struct map_segment *s = segments; s < segments + n; s++)
		map_segment(mm, s, &vb);
	link_segments(mm, &vb);
	if (brk) {
		mm->start_brk = brk;
		atomic_store_explicit(&mm->brk, brk, memory_order_relaxed);
	}
	emu_mm->unlock(mm, &range);
	return (int64_t)addr;
}

int64_t emu_sys_munmap(uint64_t addr, uint64_t len)
{
	struct mm_struct *mm = current->mm;
	struct mm_range range = { .start = addr, .end = addr + page_align(len), .unmapped = true };

	len = page_align(len);
	if (addr % EMU_PAGE_SIZE || !len || len > EMU_TASK_SIZE || addr > EMU_TASK_SIZE - len)
		return -EINVAL;
	lock_range(mm, &range, __func__);
	emu_locked_work();
	do_munmap(mm, addr, addr + len, &range);
	emu_mm->unlock(mm, &range);
	emu_rcu_quiescent();
	return 0;
}

/* Gives [start, end), inside vma, new flags: by merging it with a neighbour or by splitting. */
static EMU_NOINLINE void mprotect_fixup(struct mm_struct *mm, struct vm_area_struct *prev, struct vm_area_struct *vma,
					uint64_t start, uint64_t end, uint32_t flags)
{
	EMU_CALL_SITE();
	uint64_t pgoff = vma->vm_pgoff + ((start - vma->vm_start) >> EMU_PAGE_SHIFT);

	if (flags == vma->vm_flags)
		return;
	if (!vma_merge(mm, start > vma->vm_start ? vma : prev, start, end, flags, vma->vm_file, pgoff)) {
		if (start > vma->vm_start)
			__split_vma(mm, vma, start, true);
		if (end < vma->vm_end)
			__split_vma(mm, vma, end, false);
		emu_mm->change(mm, vma, &(struct vma_change){ vma->vm_start, vma->vm_end, vma->vm_pgoff, flags });
	}
	/* After the VMA: a fault that goes by the old flags is over, or finds out that they are old. */
	if (change_protection(mm, start, end, flags))
		flush_tlb_range(mm, start, end);
}

int64_t emu_sys_mprotect(uint64_t addr, uint64_t len, uint32_t prot)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma, *prev;
	struct mm_range range;
	int64_t err = 0;
	uint64_t end;

	if (addr % EMU_PAGE_SIZE)
		return -EINVAL;
	if (!len)
		return 0;
	end = addr + page_align(len);
	if (end <= addr || addr >= EMU_TASK_SIZE)
		return -ENOMEM;
	/* Nothing is mapped beyond: a hole like any other, which is met when all before it has been changed. */
	if (end > EMU_TASK_SIZE) {
		end = EMU_TASK_SIZE;
		err = -ENOMEM;
	}

	range = (struct mm_range){ .start = addr, .end = end };
	lock_range(mm, &range, __func__);
	emu_locked_work();
	while (addr < end) {
		uint64_t tmp;
		uint32_t flags;

		vma = emu_mm->find(mm, addr, end, &prev);
		/* A hole: what came before it stays changed, as in the kernel. */
		if (!vma || vma->vm_start > addr) {
			err = -ENOMEM;
			break;
		}
		tmp = vma->vm_end < end ? vma->vm_end : end;
		flags = (vma->vm_flags & ~VM_ACCESS) | (prot & VM_ACCESS);
		if ((flags & (VM_WRITE | VM_SHARED | VM_NORESERVE)) == VM_WRITE)
			flags |= VM_ACCOUNT;
		mprotect_fixup(mm, prev, vma, addr, tmp, flags);
		addr = tmp;
	}
	emu_mm->unlock(mm, &range);
	emu_rcu_quiescent();
	return err;
}

/* The heap grows by [start, end), which is free. As in the kernel it never joins what lies before start_brk (bss). */
static EMU_NOINLINE void do_brk_flags(struct mm_struct *mm, uint64_t start, uint64_t end)
{
	EMU_CALL_SITE();
	const uint32_t flags = VM_READ | VM_WRITE | VM_ACCOUNT;
	struct vm_area_struct *prev;

	for (uint64_t border; start < end; start = border) {
		border = vma_border(start) < end ? vma_border(start) : end;
		emu_mm->find(mm, start, border, &prev);
		if (start == page_align(mm->start_brk) || !vma_merge(mm, prev, start, border, flags, NULL, 0))
			vma_new(mm, start, border, flags, NULL, 0);
	}
}

/* Locks what lies between the break and `brk`; returns the break, which stays that. */
static uint64_t lock_brk(struct mm_struct *mm, uint64_t brk, struct mm_range *range)
{
	for (;;) {
		uint64_t old = atomic_load_explicit(&mm->brk, memory_order_relaxed);

		/* The page of the old end too: whoever moves it has that one. */
		*range = (struct mm_range){ .start = page_align(old < brk ? old : brk),
					    .end = page_align(old < brk ? brk : old) + EMU_PAGE_SIZE,
					    .map = true };
		lock_range(mm, range, "emu_sys_brk");
		if (atomic_load_explicit(&mm->brk, memory_order_relaxed) == old)
			return old;
		emu_mm->unlock(mm, range);
	}
}

int64_t emu_sys_brk(uint64_t brk)
{
	struct mm_struct *mm = current->mm;
	uint64_t old, old_end, new_end = page_align(brk);
	struct mm_range range;

	if (brk < mm->start_brk || brk > EMU_TASK_SIZE - EMU_PAGE_SIZE)
		return (int64_t)atomic_load_explicit(&mm->brk, memory_order_relaxed);
	old = lock_brk(mm, brk, &range);
	emu_locked_work();
	old_end = page_align(old);
	if (new_end > old_end) {
		/* One page stays free before the next mapping. */
		if (range_is_free(mm, old_end, new_end - old_end + EMU_PAGE_SIZE))
			do_brk_flags(mm, old_end, new_end);
		else
			brk = old;
	}
	/* Before anybody else is let in. But as in the kernel a heap that the program has unmapped does not shrink. */
	atomic_store_explicit(&mm->brk, brk, memory_order_relaxed);
	if (new_end < old_end && !do_munmap(mm, new_end, old_end, &range)) {
		brk = old;
		atomic_store_explicit(&mm->brk, brk, memory_order_relaxed);
	}
	emu_mm->unlock(mm, &range);
	emu_rcu_quiescent();
	return (int64_t)brk;
}

int64_t emu_sys_madvise_dontneed(uint64_t addr, uint64_t len)
{
	struct mm_struct *mm = current->mm;
	uint64_t end = addr + page_align(len);
	struct mm_range range = { .start = addr, .end = end < EMU_TASK_SIZE ? end : EMU_TASK_SIZE, .read = true };
	int64_t err = 0;

	if (addr % EMU_PAGE_SIZE || end < addr || (len && end == addr))
		return -EINVAL;
	if (!len)
		return 0;
	if (addr >= EMU_TASK_SIZE)
		return -ENOMEM;
	lock_range(mm, &range, __func__);
	emu_locked_work();
	/* Only tables that VMAs keep: with those locked for looking, none goes. */
	for (uint64_t at = addr; at < end;) {
		struct vm_area_struct *vma = at < range.end ? emu_mm->find(mm, at, range.end, NULL) : NULL;

		/* A hole: what lies after it is given back all the same, as in the kernel. */
		if (!vma || vma->vm_start > at)
			err = -ENOMEM;
		if (!vma)
			break;
		at = vma->vm_end < range.end ? vma->vm_end : range.end;
		if (unmap_page_range(mm, vma->vm_start > addr ? vma->vm_start : addr, at))
			flush_tlb_range(mm, addr, at);
	}
	emu_mm->unlock(mm, &range);
	emu_rcu_quiescent();
	return err;
}

EMU_NOINLINE int64_t emu_sys_fault(uint64_t addr, bool write)
{
	EMU_CALL_SITE();
	struct task_struct *task = current;
	int64_t err;

	/* Of an earlier fault. */
	if (unlikely(task->fault_file || task->fault_tried)) {
		task->fault_file = NULL;
		task->fault_missing = task->fault_tried = false;
	}
	do {
		struct address_space *busy = NULL;

		err = emu_mm->fault(current->mm, addr, write, &busy);
		if (err == -EAGAIN)
			wait_on_pages(busy);
	} while (err == -EAGAIN);
	return err;
}
