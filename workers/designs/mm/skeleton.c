/* SPDX-License-Identifier: MIT */
/*
 * skeleton - an mm design to copy. It works: one B-tree of VMAs and one rwsem, as Linux 6.1. Change it step by step.
 *
 * Compile for the native engine (HEADERS: the folder include/ of the installed package):
 *
 *   cc -std=gnu11 -O2 -g -fPIC -shared -DEMU_MACHINE_NATIVE -IHEADERS -o mine.so mine.c
 *
 * A design decides how a process's VMAs are indexed and locked, and how a page fault finds one. It keeps these rules
 * (emu/mm_ops.h says the same at each hook):
 *   - A fault sees a VMA as it was before a change or after it: never half of one, never the hole between two halves.
 *   - Once munmap has returned, no fault in its range succeeds and no page is left; once mprotect has returned, none goes by
 *     the old protection.
 *   - Two mmaps never get addresses that overlap.
 *   - A fork copies what the locked range keeps as it is.
 *   - What a fault may still look at is not freed. VMAs and page tables are freed by RCU (emu/rcu.h); so must be what a
 *     design allocates, if its faults look without a lock.
 *   - Lock order: the design's locks, then i_mmap, then a page table's ptl.
 *
 * `emu check ./mine.c` looks for breaches, `emu run --mm per-vma-lock,./mine.c` for speed. All CPUs may be threads of one
 * process. Words that several of them use are _Atomic or guarded by a lock, and all waiting is a lock's.
 */
#include <emu/maple.h>
#include <emu/mm_ops.h>

/*
 * The design's part of a process, at most EMU_MM_SLOT bytes; zero at first. What is larger comes from emu_zalloc() in init
 * and goes in destroy. A design may also have EMU_VMA_SLOT bytes in each VMA, on a line of their own:
 * vma_private(vma, struct my_vma).
 */
struct skeleton {
	struct rw_semaphore mmap_lock;
	struct maple_root tree; /* by address; readers need no lock if they are in an RCU section */
};

/* Parameters that the user may set, as --mm ./mine.c:spin=0, and their defaults. */
static uint32_t spin = 1;

static const struct emu_param params[] = {
	{ .name = "spin", .value = &spin, .max = 1, .help = "1: writers spin on a running owner before they sleep" },
	{ 0 },
};

/* A new process; nobody else knows it. The class is the name under which reports show the lock. Required. */
static void skeleton_init(struct mm_struct *mm)
{
	struct skeleton *s = mm_private(mm, struct skeleton);

	init_rwsem(&s->mmap_lock, EMU_CLASS_MMAP_LOCK);
	s->mmap_lock.no_spin = !spin;
	maple_init(&s->tree);
}

/* The process goes and maps nothing: free what init allocated. Not required: NULL where nothing was. */
static void skeleton_destroy(struct mm_struct *mm)
{
	(void)mm;
}

/* The highest free range of the length that is asked for. A stack keeps a gap below it free. */
static int64_t choose_addresses(struct skeleton *s, struct mm_range *range)
{
	uint64_t high = range->end;

	for (;;) {
		int64_t found = maple_free_area(&s->tree, range->len, range->start, high);
		struct vm_area_struct *next;

		if (found < 0)
			return found;
		next = maple_find(&s->tree, (uint64_t)found + range->len);
		if (!next || vm_start_gap(next) >= (uint64_t)found + range->len) {
			range->start = (uint64_t)found;
			range->end = range->start + range->len;
			return 0;
		}
		if (vm_start_gap(next) < range->start)
			return -ENOMEM;
		high = vm_start_gap(next);
	}
}

/*
 * Before mmap, munmap, mprotect, brk, fork, exit: nobody else changes VMAs in the range until unlock. `read`: they are only
 * looked at. With a length the range is chosen here, under the same hold of the lock: else two would choose the same.
 * Both are required.
 */
static int64_t skeleton_lock(struct mm_struct *mm, struct mm_range *range)
{
	struct skeleton *s = mm_private(mm, struct skeleton);
	int64_t err = 0;

	if (range->read) {
		down_read(&s->mmap_lock);
		return 0;
	}
	down_write(&s->mmap_lock);
	if (range->len)
		err = choose_addresses(s, range);
	if (err)
		up_write(&s->mmap_lock);
	return err;
}

static void skeleton_unlock(struct mm_struct *mm, struct mm_range *range)
{
	struct skeleton *s = mm_private(mm, struct skeleton);

	if (range->read)
		up_read(&s->mmap_lock);
	else
		up_write(&s->mmap_lock);
}

/* A munmap has taken out all that it takes out: from here on it only clears PTEs, beside which others may look. */
static void skeleton_downgrade(struct mm_struct *mm, struct mm_range *range)
{
	downgrade_write(&mm_private(mm, struct skeleton)->mmap_lock);
	range->read = true;
}

/* The first VMA that overlaps [addr, end), and the last before addr. The range is locked. Required. */
static struct vm_area_struct *skeleton_find(struct mm_struct *mm, uint64_t addr, uint64_t end,
					    struct vm_area_struct **prev)
{
	struct skeleton *s = mm_private(mm, struct skeleton);
	struct vm_area_struct *vma = maple_find(&s->tree, addr);

	if (prev)
		*prev = maple_find_before(&s->tree, addr);
	return vma && vma->vm_start < end ? vma : NULL;
}

/* Into the index. Required. */
static void skeleton_link(struct mm_struct *mm, struct vm_area_struct *vma)
{
	maple_store(&mm_private(mm, struct skeleton)->tree, vma->vm_start, vma->vm_end - 1, vma);
}

/*
 * The VMA becomes this: a border moves (split, merge), or its flags change; nowhere else are they written. PTEs are changed
 * after it. A design whose faults run beside it must keep them out of this VMA from here on until unlock, or have them find
 * out, under ptl, that it has changed. fork calls it with what the VMA is already, so that faults in it are over.
 * NULL: the VMA goes out of the index, and the caller frees it, by RCU. Required.
 */
static void skeleton_change(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	struct maple_root *tree = &mm_private(mm, struct skeleton)->tree;
	uint64_t start = vma->vm_start, end = vma->vm_end;

	if (!to) {
		maple_store(tree, start, end - 1, NULL);
		return;
	}
	if (to->start > start)
		maple_store(tree, start, to->start - 1, NULL);
	if (to->end < end)
		maple_store(tree, to->end, end - 1, NULL);
	if (to->start < start || to->end > end)
		maple_store(tree, to->start, to->end - 1, vma);
	vma_set(vma, to);
}

/*
 * A page fault: find the VMA, keep it as it is, and hand it to handle_mm_fault(), which takes ptl and sets the PTE;
 * fault_in_vma() does that, and says -EFAULT where there is none. This is the hook to make faster. Required.
 */
static int skeleton_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct skeleton *s = mm_private(mm, struct skeleton);
	int err;

	down_read_for_fault(&s->mmap_lock);
	err = fault_in_vma(maple_load(&s->tree, addr), addr, write, busy);
	up_read(&s->mmap_lock);
	return err;
}

EMU_EXPORT const struct mm_ops emu_mm_ops = {
	.name = "skeleton",
	.version = EMU_MM_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct skeleton),
	.params = params,
	.init = skeleton_init,
	.destroy = skeleton_destroy,
	.lock = skeleton_lock,
	.unlock = skeleton_unlock,
	.downgrade = skeleton_downgrade,
	.find = skeleton_find,
	.link = skeleton_link,
	.change = skeleton_change,
	.fault = skeleton_fault,
};
