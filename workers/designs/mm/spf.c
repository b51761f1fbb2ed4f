/* SPDX-License-Identifier: MIT */
/*
 * spf - speculative page faults: no lock but that of the page table, which is only tried (Dufour's series).
 *
 * A fault finds the VMA under RCU, copies it, takes the page-table lock if it is free, and looks whether the VMA's sequence
 * count is what it was before the copy: if not, or if anything else is in the way, it starts again with mmap_lock held for
 * reading. Changes are serial under mmap_lock; each makes the count odd, changes the VMA, and makes it even again. A
 * VMA that is gone stays odd.
 *
 * Why looking under the page-table lock is enough: a change clears or protects PTEs after the VMA, with that lock held.
 * Either it comes after the fault and finds the PTE, or the fault finds the count changed.
 */
#include <emu/mm_maple.h>

struct spf_vma {
	_Atomic uint32_t sequence; /* odd: changes, or is gone. Written under mmap_lock */
};

_Static_assert(sizeof(struct mm_maple) <= EMU_MM_SLOT, "does not fit into mm->index");

static uint32_t spin = 1;

static const struct emu_param params[] = { MM_MAPLE_SPIN(spin), { 0 } };

static void spf_init(struct mm_struct *mm)
{
	mm_maple_init(mm, spin);
}

static inline _Atomic uint32_t *sequence_of(struct vm_area_struct *vma)
{
	return &vma_private(vma, struct spf_vma)->sequence;
}

static inline void vm_write_begin(struct vm_area_struct *vma)
{
	/* Relaxed: vma_set() stores with release, so that who sees any of it sees this. */
	atomic_fetch_add_explicit(sequence_of(vma), 1, memory_order_relaxed);
}

static inline void vm_write_end(struct vm_area_struct *vma)
{
	atomic_fetch_add_explicit(sequence_of(vma), 1, memory_order_release);
}

#define vma_get(vma, field) __atomic_load_n(&(vma)->field, __ATOMIC_ACQUIRE)

/* What the VMA is, if that is one thing; false: it is being changed. Acquire loads keep the second look at the end. */
static bool vma_copy(struct vm_area_struct *vma, struct vm_area_struct *copy, uint32_t *sequence)
{
	*sequence = atomic_load_explicit(sequence_of(vma), memory_order_acquire);
	if (*sequence & 1)
		return false;
	copy->vm_start = vma_get(vma, vm_start);
	copy->vm_end = vma_get(vma, vm_end);
	copy->vm_flags = vma_get(vma, vm_flags);
	copy->vm_pgoff = vma_get(vma, vm_pgoff);
	atomic_init(&copy->anon, atomic_load_explicit(&vma->anon, memory_order_acquire));
	/* These never change. */
	copy->vm_mm = vma->vm_mm;
	copy->vm_file = vma->vm_file;
	return atomic_load_explicit(sequence_of(vma), memory_order_relaxed) == *sequence;
}

static bool allows(const struct vm_area_struct *vma, uint64_t addr, bool write)
{
	return addr >= vma->vm_start && addr < vma->vm_end && (vma->vm_flags & VM_ACCESS) &&
	       (!write || (vma->vm_flags & VM_WRITE));
}

/* The first page of its own: to note that in the VMA takes mmap_lock. */
static bool needs_anon_vma(struct vm_area_struct *vma, bool write)
{
	return !atomic_load_explicit(&vma->anon, memory_order_relaxed) && !(vma->vm_flags & VM_SHARED) &&
	       (write || !vma->vm_file);
}

/* 0 or -EAGAIN (see the hook), or -ENOENT: not this way. */
static int speculative_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct vm_area_struct *vma = maple_load(&mm_private(mm, struct mm_maple)->tree, addr), copy;
	struct page_table *table;
	int err = -ENOENT;
	uint32_t sequence;

	if (!vma || !vma_copy(vma, &copy, &sequence) || !allows(&copy, addr, write) || needs_anon_vma(&copy, write))
		return -ENOENT;
	/* To make a table where VMAs may be going would leave it there for ever. */
	table = pte_find(mm, addr, NULL);
	if (!table)
		return -ENOENT;
	take_page();
	if (!spin_trylock(&table->ptl))
		return -ENOENT;
	if (atomic_load_explicit(sequence_of(vma), memory_order_acquire) == sequence)
		err = handle_pte_fault(table, &copy, addr, write);
	spin_unlock(&table->ptl);
	/* What must be read takes the other way, as whatever sleeps. */
	if (err == -EAGAIN && current->fault_missing) {
		put_file(copy.vm_file);
		return -ENOENT;
	}
	if (err == -EAGAIN)
		*busy = copy.vm_file;
	return err == -EIO ? -ENOENT : err;
}

static int spf_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	int err;

	rcu_read_lock();
	err = speculative_fault(mm, addr, write, busy);
	rcu_read_unlock();
	return err == -ENOENT ? mm_maple_fault(mm, addr, write, busy) : err;
}

static void spf_change(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	vm_write_begin(vma);
	mm_maple_change(mm, vma, to);
	/* Who found what goes must not use it any more. */
	if (to)
		vm_write_end(vma);
}

EMU_EXPORT const struct mm_ops emu_mm_ops = {
	.name = "spf",
	.version = EMU_MM_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct mm_maple),
	.params = params,
	.init = spf_init,
	.lock = mm_maple_lock,
	.unlock = mm_maple_unlock,
	.downgrade = mm_maple_downgrade,
	.find = mm_maple_find,
	.link = mm_maple_link,
	.change = spf_change,
	.fault = spf_fault,
};
