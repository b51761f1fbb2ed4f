/* SPDX-License-Identifier: MIT */
/*
 * mmap.c - mmap, munmap, mprotect and brk of the current task's mm.
 */
#include "internal.h"

#include <errno.h>

static uint32_t calc_vm_flags(uint32_t prot, uint32_t flags)
{
	uint32_t vm_flags = prot & VM_ACCESS; /* PROT_* and VM_* agree on these bits */

	if (flags & EMU_MAP_SHARED)
		vm_flags |= VM_SHARED;
	else if (vm_flags & VM_WRITE)
		vm_flags |= VM_ACCOUNT;
	if (flags & EMU_MAP_GROWSDOWN)
		vm_flags |= VM_GROWSDOWN;
	if (flags & EMU_MAP_SPECIAL)
		vm_flags |= VM_SPECIAL;
	return vm_flags;
}

static int64_t get_unmapped_area(struct mm_struct *mm, uint64_t addr, uint64_t len, uint32_t flags)
{
	struct vm_area_struct *vma, *prev;
	int64_t found;

	if (flags & (EMU_MAP_FIXED | EMU_MAP_FIXED_NOREPLACE)) {
		if (addr % EMU_PAGE_SIZE)
			return -EINVAL;
		if (addr > EMU_TASK_SIZE - len)
			return -ENOMEM;
		if (flags & EMU_MAP_FIXED_NOREPLACE) {
			vma = emu_mm->find(mm, addr, NULL);
			if (vma && vma->vm_start < addr + len)
				return -EEXIST;
		}
		return (int64_t)addr;
	}
	addr = page_align(addr);
	if (addr) {
		if (addr < MMAP_MIN_ADDR)
			addr = MMAP_MIN_ADDR;
		vma = emu_mm->find(mm, addr, &prev);
		if (addr <= EMU_TASK_SIZE - len && (!vma || addr + len <= vm_start_gap(vma)) &&
		    (!prev || addr >= prev->vm_end))
			return (int64_t)addr;
	}
	found = emu_mm->free_area(mm, len, MMAP_MIN_ADDR, mm->mmap_base);
	/* Nothing below the base: above it, as the kernel does. */
	if (found < 0)
		found = emu_mm->free_area(mm, len, mm->mmap_base, EMU_TASK_SIZE);
	return found;
}

static void vma_new(struct mm_struct *mm, uint64_t start, uint64_t end, uint32_t vm_flags, struct address_space *file,
		    uint64_t pgoff)
{
	struct vm_area_struct *vma = vm_area_alloc(mm, start, end, vm_flags, file, pgoff);

	mm_link(mm, vma);
	vma_link_file(vma);
}

static EMU_NOINLINE void mmap_region(struct mm_struct *mm, uint64_t addr, uint64_t len, uint32_t vm_flags,
				     struct address_space *file, uint64_t pgoff)
{
	EMU_CALL_SITE();
	struct vm_area_struct *old = vms_gather_munmap_vmas(mm, addr, addr + len);
	struct vm_area_struct *prev;

	emu_mm->find(mm, addr, &prev);
	if (!vma_merge(mm, prev, addr, addr + len, vm_flags, file, pgoff))
		vma_new(mm, addr, addr + len, vm_flags, file, pgoff);
	if (old)
		vms_complete_munmap_vmas(mm, old);
}

int64_t emu_sys_mmap(uint64_t addr, uint64_t len, uint32_t prot, uint32_t flags, struct address_space *file,
		     uint64_t offset)
{
	struct mm_struct *mm = current->mm;
	bool shared = flags & EMU_MAP_SHARED, private = flags & EMU_MAP_PRIVATE;
	int64_t found;

	if (!len || offset % EMU_PAGE_SIZE || shared == private)
		return -EINVAL;
	if (!file != !!(flags & EMU_MAP_ANONYMOUS) && !(flags & EMU_MAP_SPECIAL))
		return -EBADF;
	/* Shared anonymous memory is a file of its own in the kernel; a workload names one. */
	if (shared && !file)
		return -EOPNOTSUPP;
	len = page_align(len);
	if (!len || len > EMU_TASK_SIZE)
		return -ENOMEM;

	emu_mm->write_lock(mm);
	found = get_unmapped_area(mm, addr, len, flags);
	if (found >= 0) {
		mmap_region(mm, (uint64_t)found, len, calc_vm_flags(prot, flags), file, offset >> EMU_PAGE_SHIFT);
		if (flags & EMU_MAP_BRK)
			mm->start_brk = mm->brk = (uint64_t)found + len;
	}
	emu_mm->write_unlock(mm);
	return found;
}

static EMU_NOINLINE void do_munmap(struct mm_struct *mm, uint64_t start, uint64_t end)
{
	EMU_CALL_SITE();
	struct vm_area_struct *old = vms_gather_munmap_vmas(mm, start, end);

	if (old)
		vms_complete_munmap_vmas(mm, old);
}

int64_t emu_sys_munmap(uint64_t addr, uint64_t len)
{
	struct mm_struct *mm = current->mm;

	len = page_align(len);
	if (addr % EMU_PAGE_SIZE || !len || len > EMU_TASK_SIZE || addr > EMU_TASK_SIZE - len)
		return -EINVAL;
	emu_mm->write_lock(mm);
	do_munmap(mm, addr, addr + len);
	emu_mm->write_unlock(mm);
	return 0;
}

/* Gives [start, end), inside vma, new flags: by merging it with a neighbour or by splitting. */
static EMU_NOINLINE struct vm_area_struct *mprotect_fixup(struct mm_struct *mm, struct vm_area_struct *prev,
							  struct vm_area_struct *vma, uint64_t start, uint64_t end,
							  uint32_t flags)
{
	EMU_CALL_SITE();
	uint64_t pgoff = vma->vm_pgoff + ((start - vma->vm_start) >> EMU_PAGE_SHIFT);
	struct vm_area_struct *merged;

	if (flags == vma->vm_flags)
		return vma;
	/* Before the VMA changes: once it has joined another, start and end are no longer its own. */
	change_protection(mm, start, end, flags);
	merged = vma_merge(mm, start > vma->vm_start ? vma : prev, start, end, flags, vma->vm_file, pgoff);
	if (merged)
		return merged;
	if (start > vma->vm_start)
		__split_vma(mm, vma, start, true);
	if (end < vma->vm_end)
		__split_vma(mm, vma, end, false);
	vma->vm_flags = flags;
	return vma;
}

int64_t emu_sys_mprotect(uint64_t addr, uint64_t len, uint32_t prot)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma, *prev;
	int64_t err = 0;
	uint64_t end;

	if (addr % EMU_PAGE_SIZE)
		return -EINVAL;
	len = page_align(len);
	if (!len)
		return 0;
	end = addr + len;
	if (end <= addr || end > EMU_TASK_SIZE)
		return -ENOMEM;

	emu_mm->write_lock(mm);
	while (addr < end) {
		uint64_t tmp;
		uint32_t flags;

		vma = emu_mm->find(mm, addr, &prev);
		/* A hole: what came before it stays changed, as in the kernel. */
		if (!vma || vma->vm_start > addr) {
			err = -ENOMEM;
			break;
		}
		tmp = vma->vm_end < end ? vma->vm_end : end;
		flags = (vma->vm_flags & ~VM_ACCESS) | (prot & VM_ACCESS);
		if ((flags & (VM_WRITE | VM_SHARED)) == VM_WRITE)
			flags |= VM_ACCOUNT;
		mprotect_fixup(mm, prev, vma, addr, tmp, flags);
		addr = tmp;
	}
	emu_mm->write_unlock(mm);
	return err;
}

/* The heap grows by [start, end), which is free. As in the kernel it never joins what lies before start_brk (bss). */
static EMU_NOINLINE void do_brk_flags(struct mm_struct *mm, uint64_t start, uint64_t end)
{
	EMU_CALL_SITE();
	const uint32_t flags = VM_READ | VM_WRITE | VM_ACCOUNT;
	struct vm_area_struct *prev;

	emu_mm->find(mm, start, &prev);
	if (start == page_align(mm->start_brk) || !vma_merge(mm, prev, start, end, flags, NULL, 0))
		vma_new(mm, start, end, flags, NULL, 0);
}

int64_t emu_sys_brk(uint64_t brk)
{
	struct mm_struct *mm = current->mm;
	uint64_t old_end, new_end;
	struct vm_area_struct *next;

	emu_mm->write_lock(mm);
	if (brk < mm->start_brk || brk > EMU_TASK_SIZE)
		goto out;
	old_end = page_align(mm->brk);
	new_end = page_align(brk);
	if (new_end < old_end) {
		do_munmap(mm, new_end, old_end);
	} else if (new_end > old_end) {
		/* One page stays free before the next mapping. */
		next = emu_mm->find(mm, old_end, NULL);
		if (next && new_end + EMU_PAGE_SIZE > vm_start_gap(next))
			goto out;
		do_brk_flags(mm, old_end, new_end);
	}
	mm->brk = brk;
out:
	brk = mm->brk;
	emu_mm->write_unlock(mm);
	return (int64_t)brk;
}

EMU_NOINLINE int64_t emu_sys_fault(uint64_t addr, bool write)
{
	EMU_CALL_SITE();
	struct mm_struct *mm = current->mm;
	int64_t err;

	do {
		struct address_space *mapping = NULL;
		struct vm_area_struct *vma;

		err = -EFAULT;
		emu_mm->read_lock(mm);
		vma = emu_mm->find(mm, addr, NULL);
		if (vma && vma->vm_start <= addr) {
			mapping = vma->vm_file;
			err = handle_mm_fault(vma, addr, write);
		}
		emu_mm->read_unlock(mm);
		if (err == -EAGAIN)
			wait_on_pages(mapping);
	} while (err == -EAGAIN);
	return err;
}
