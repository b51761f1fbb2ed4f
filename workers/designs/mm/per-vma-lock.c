/* SPDX-License-Identifier: MIT */
/*
 * per-vma-lock - a fault locks its VMA alone (Linux 6.4 and later).
 *
 * Changes are serial, under mmap_lock for writing. A VMA that one is about to change is marked with the mm's sequence
 * number, after faults that use it have left; all marks end at once when the number goes up, as mmap_lock is dropped.
 * A fault finds the VMA under RCU, counts itself in and looks at the mark then: marked, gone, or without the anon_vma that
 * its first page needs, it takes mmap_lock for reading instead; so it does when it begins again after it has slept for a
 * page that had to be read.
 *
 *   refcount  bits 0-30   faults that use the VMA
 *             bit  31     a writer waits for them to leave: nobody comes in
 *   seq                   mm's number when it was last marked; 0 = never. Written under mmap_lock
 *
 * Many threads that fault in one VMA all write its refcount.
 */
#include <emu/mm_maple.h>

#define WRITER_WAITS UINT32_C(0x80000000)

struct vma_lock {
	_Atomic uint32_t refcount;
	_Atomic uint32_t seq;
	_Atomic bool detached; /* out of the tree for good */
};

struct per_vma {
	struct mm_maple maple;
	/* Apart from mmap_lock, which all who change write. Starts at 1. */
	__cacheline_aligned _Atomic uint32_t mm_lock_seq;
	struct task_struct *_Atomic writer; /* who waits for a VMA; there is one at most */
};

_Static_assert(sizeof(struct per_vma) <= EMU_MM_SLOT, "does not fit into mm->index");
_Static_assert(sizeof(struct vma_lock) <= EMU_VMA_SLOT, "does not fit into vma->lock");

static uint32_t spin = 1;

static const struct emu_param params[] = { MM_MAPLE_SPIN(spin), { 0 } };

static void per_vma_init(struct mm_struct *mm)
{
	mm_maple_init(mm, spin);
	atomic_init(&mm_private(mm, struct per_vma)->mm_lock_seq, 1);
	atomic_init(&mm_private(mm, struct per_vma)->writer, NULL);
}

/*
 * Marks the VMA until mmap_lock is dropped; returns when no fault uses it. mmap_lock is held for writing.
 */
static EMU_NOINLINE void vma_start_write(struct mm_struct *mm, struct vm_area_struct *vma)
{
	struct per_vma *pv = mm_private(mm, struct per_vma);
	struct vma_lock *lock = vma_private(vma, struct vma_lock);
	uint32_t seq = atomic_load_explicit(&pv->mm_lock_seq, memory_order_relaxed);

	if (atomic_load_explicit(&lock->seq, memory_order_relaxed) == seq)
		return;
	/* Before the bit: the last fault to leave looks for it after it has seen the bit. */
	atomic_store_explicit(&pv->writer, current, memory_order_relaxed);
	/* Acquire: what faults did in the VMA before they left. Release: the writer's name, for the last of them. */
	atomic_fetch_or_explicit(&lock->refcount, WRITER_WAITS, memory_order_acq_rel);
	while (atomic_load_explicit(&lock->refcount, memory_order_acquire) != WRITER_WAITS)
		task_park();
	atomic_store_explicit(&lock->seq, seq, memory_order_relaxed);
	/* Release: who counts itself in from here on sees the mark. */
	atomic_fetch_and_explicit(&lock->refcount, ~WRITER_WAITS, memory_order_release);
}

static void vma_end_read(struct mm_struct *mm, struct vm_area_struct *vma)
{
	struct per_vma *pv = mm_private(mm, struct per_vma);

	/* Release: the fault is over. Acquire: the writer's name. The VMA may be gone from here on; the mm is our own. */
	if (atomic_fetch_sub_explicit(&vma_private(vma, struct vma_lock)->refcount, 1, memory_order_acq_rel) ==
	    (WRITER_WAITS | 1))
		task_unpark(atomic_load_explicit(&pv->writer, memory_order_relaxed));
}

/* Counts this fault in, unless the VMA is being changed. In an RCU read-side section. */
static bool vma_start_read(struct mm_struct *mm, struct vm_area_struct *vma)
{
	struct per_vma *pv = mm_private(mm, struct per_vma);
	struct vma_lock *lock = vma_private(vma, struct vma_lock);
	uint32_t count, number;

	/* A first look, to leave alone what is being changed. */
	if (atomic_load_explicit(&lock->seq, memory_order_relaxed) ==
	    atomic_load_explicit(&pv->mm_lock_seq, memory_order_acquire))
		return false;
	/* Acquire: pairs with the end of vma_start_write(). */
	count = atomic_load_explicit(&lock->refcount, memory_order_relaxed);
	do {
		if (count & WRITER_WAITS)
			return false;
	} while (!atomic_compare_exchange_weak_explicit(&lock->refcount, &count, count + 1, memory_order_acquire,
							memory_order_relaxed));
	/* Acquire, and first: a mark that has ended ended with the release of the number; what was done under it is seen. */
	number = atomic_load_explicit(&pv->mm_lock_seq, memory_order_acquire);
	if (atomic_load_explicit(&lock->seq, memory_order_relaxed) != number &&
	    !atomic_load_explicit(&lock->detached, memory_order_relaxed))
		return true;
	vma_end_read(mm, vma);
	return false;
}

static struct vm_area_struct *lock_vma_under_rcu(struct mm_struct *mm, uint64_t addr)
{
	struct vm_area_struct *vma;

	rcu_read_lock();
	vma = maple_load(&mm_private(mm, struct per_vma)->maple.tree, addr);
	if (vma && !vma_start_read(mm, vma))
		vma = NULL;
	rcu_read_unlock();
	/* From the tree to the lock it may have moved. */
	if (vma && (addr < vma->vm_start || addr >= vma->vm_end)) {
		vma_end_read(mm, vma);
		vma = NULL;
	}
	return vma;
}

/* Needs the fault an anon_vma that is not there yet? To find one, the kernel looks at the VMA's neighbours. */
static bool needs_anon_vma(struct vm_area_struct *vma, bool write)
{
	return !atomic_load_explicit(&vma->anon, memory_order_relaxed) && !(vma->vm_flags & VM_SHARED) &&
	       (write || !vma->vm_file);
}

static int per_vma_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	/* As in the kernel: a fault that has slept for a page comes again with mmap_lock. */
	struct vm_area_struct *vma = current->fault_tried ? NULL : lock_vma_under_rcu(mm, addr);
	int err;

	if (!vma)
		return mm_maple_fault(mm, addr, write, busy);
	if (needs_anon_vma(vma, write)) {
		vma_end_read(mm, vma);
		return mm_maple_fault(mm, addr, write, busy);
	}
	err = fault_in_vma(vma, addr, write, busy);
	vma_end_read(mm, vma);
	return err;
}

static void vma_end_write_all(struct mm_struct *mm)
{
	struct per_vma *pv = mm_private(mm, struct per_vma);
	uint32_t seq = atomic_load_explicit(&pv->mm_lock_seq, memory_order_relaxed) + 1;

	/* Release: all that was changed, for whoever finds that the marks have ended. 0 is for VMAs that never had one. */
	atomic_store_explicit(&pv->mm_lock_seq, seq ? seq : 1, memory_order_release);
}

static void per_vma_unlock(struct mm_struct *mm, struct mm_range *range)
{
	if (!range->read)
		vma_end_write_all(mm);
	mm_maple_unlock(mm, range);
}

static void per_vma_downgrade(struct mm_struct *mm, struct mm_range *range)
{
	vma_end_write_all(mm);
	mm_maple_downgrade(mm, range);
}

static void per_vma_link(struct mm_struct *mm, struct vm_area_struct *vma)
{
	/* Not to be used before the change is complete. Nobody knows it yet: nobody is waited for. */
	atomic_store_explicit(&vma_private(vma, struct vma_lock)->seq,
			      atomic_load_explicit(&mm_private(mm, struct per_vma)->mm_lock_seq, memory_order_relaxed),
			      memory_order_relaxed);
	mm_maple_link(mm, vma);
}

static void per_vma_change(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	vma_start_write(mm, vma);
	/* Whoever found it before and comes in later sees the mark, or this, with the number that ends the mark. */
	if (!to)
		atomic_store_explicit(&vma_private(vma, struct vma_lock)->detached, true, memory_order_relaxed);
	mm_maple_change(mm, vma, to);
}

EMU_EXPORT const struct mm_ops emu_mm_ops = {
	.name = "per-vma-lock",
	.version = EMU_MM_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct per_vma),
	.params = params,
	.init = per_vma_init,
	.lock = mm_maple_lock,
	.unlock = per_vma_unlock,
	.downgrade = per_vma_downgrade,
	.find = mm_maple_find,
	.link = per_vma_link,
	.change = per_vma_change,
	.fault = per_vma_fault,
};
