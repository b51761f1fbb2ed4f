/* SPDX-License-Identifier: MIT */
/*
 * mm_ops.h - what an mm design is: how a process's VMAs are indexed and locked, and how a page fault finds one.
 *
 * A design is one C file that ends with `const struct mm_ops emu_mm_ops = { ... };`. All CPUs may run threads of one mm.
 *
 * A change (mmap, munmap, mprotect, brk, fork, exit) locks a range, looks with find, changes with link and change, and
 * unlocks. A fault does all of its own in the hook `fault`, with the help of pgtable.h.
 *
 * What every design must keep: a fault sees a VMA as it was before a change or after it, never a mixture; once munmap has
 * returned no fault in its range succeeds; once mprotect has returned none goes by the old protection; two mmaps get
 * addresses that do not overlap; a fork copies what the range lock keeps as it is; a VMA that a fault may still look
 * at is not freed (VMAs are, by RCU, after they were unlinked).
 */
#ifndef EMU_MM_OPS_H
#define EMU_MM_OPS_H

#include <emu/pgtable.h>
#include <emu/rcu.h>
#include <emu/rmap.h>

#include <errno.h>

#define EMU_MM_VERSION 5u

/* A range of addresses that a change is about. Whole pages. */
struct mm_range {
	uint64_t start, end;
	/* Not 0: any free range of so many bytes in [start, end); the lock hook makes the highest one the range. */
	uint64_t len;
	bool map;      /* VMAs will be linked in it; implied by len */
	bool read;     /* VMAs will only be looked at: others may look too, and faults go on */
	bool unmapped; /* told at unlock: nothing is mapped in the range any more, its addresses are free */
};

/* What a VMA's properties become. */
struct vma_change {
	uint64_t start, end, pgoff;
	uint32_t flags;
};

struct mm_ops {
	const char *name;
	uint32_t version; /* EMU_MM_VERSION */
	uint32_t machine; /* EMU_MACHINE_ID */
	uint32_t size;	  /* bytes used of mm->index, at most EMU_MM_SLOT */
	/*
	 * Each VMA lies in one page table: a mapping over the border of two is several VMAs, which never merge. And page
	 * tables stay until the mm goes, because the design keeps something in them.
	 */
	bool vmas_in_tables;
	const struct emu_param *params;

	/* A new mm; nobody else knows it. Required. */
	void (*init)(struct mm_struct *mm);
	/* The mm is empty and nobody else knows it. Not required. */
	void (*destroy)(struct mm_struct *mm);

	/*
	 * Exclude every other change of VMAs in the range, and in the page tables that it touches. The range may be chosen,
	 * see struct mm_range: -ENOMEM, with nothing locked, if there is none. Otherwise 0. May sleep. Required.
	 */
	int64_t (*lock)(struct mm_struct *mm, struct mm_range *range);
	void (*unlock)(struct mm_struct *mm, struct mm_range *range);
	/*
	 * munmap and a brk that shrinks have taken out all that they take out; PTEs and page tables are still to go. If others
	 * may look meanwhile, and faults go on beside the range, let them, and set range->read. Not required.
	 */
	void (*downgrade)(struct mm_struct *mm, struct mm_range *range);

	/*
	 * The first VMA that overlaps [addr, end), or NULL; *prev, if prev is not NULL, is the last one that ends at addr
	 * or before, or NULL; with vmas_in_tables not if it is in another table. The range is locked. Required.
	 */
	struct vm_area_struct *(*find)(struct mm_struct *mm, uint64_t addr, uint64_t end, struct vm_area_struct **prev);

	/*
	 * Add. The range of `vma`, which is locked, is free. Faults may use it from now on: a VMA of a file is in i_mmap before
	 * that, so that walkers find what is mapped. Required.
	 */
	void (*link)(struct mm_struct *mm, struct vm_area_struct *vma);

	/*
	 * vma_set() it to this, with no fault in between that could see one half; its order among the VMAs stays. May be
	 * what it is already: then too, faults that use the VMA are over when this returns. The range is locked, and where a
	 * file's VMA changes its bounds, the i_mmap lock is held. What a VMA gives up another one gets, by link or change,
	 * before the range is unlocked; nothing is looked for there until then.
	 * `to` NULL: take it out of the index. The caller frees it, by RCU. Required.
	 */
	void (*change)(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to);

	/*
	 * A page fault: find the VMA, keep it as it is and hand it to handle_mm_fault() or its parts, whose results these
	 * are. -EFAULT where there is none. -EAGAIN: *busy is the file whose pages the caller is to wait for before it tries
	 * again; it has a reference. No lock is held, before and after. Required.
	 */
	int (*fault)(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy);
};

#define mm_private(mm, type) ((type *)(void *)(mm)->index)
#define vma_private(vma, type) ((type *)(void *)(vma)->lock)

/*
 * Some designs let faults look while this goes on; with release, so that these find out afterwards. Bounds that stay are
 * not written: a walker may be reading them, who has the i_mmap lock and the change has not.
 */
static inline void vma_set(struct vm_area_struct *vma, const struct vma_change *to)
{
	if (vma->vm_start != to->start)
		__atomic_store_n(&vma->vm_start, to->start, __ATOMIC_RELEASE);
	if (vma->vm_end != to->end)
		__atomic_store_n(&vma->vm_end, to->end, __ATOMIC_RELEASE);
	if (vma->vm_pgoff != to->pgoff)
		__atomic_store_n(&vma->vm_pgoff, to->pgoff, __ATOMIC_RELEASE);
	__atomic_store_n(&vma->vm_flags, to->flags, __ATOMIC_RELEASE);
}

/* A fault's way to take mmap_lock, as in the kernel: it tries, by compare-and-exchange, before it waits. */
static inline void down_read_for_fault(struct rw_semaphore *mmap_lock)
{
	if (!down_read_trylock(mmap_lock))
		down_read(mmap_lock);
}

/*
 * For `fault` with a lock held under which VMAs stay as they are, vma being what overlaps the page or NULL.
 */
static inline int fault_in_vma(struct vm_area_struct *vma, uint64_t addr, bool write, struct address_space **busy)
{
	int err = vma ? handle_mm_fault(vma, addr, write) : -EFAULT;

	if (err == -EAGAIN)
		*busy = vma->vm_file;
	return err;
}

#endif
