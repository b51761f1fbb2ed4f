/* SPDX-License-Identifier: MIT */
/*
 * mmap-sem-rbtree - one red-black tree of VMAs, one rwsem (Linux up to 6.0).
 *
 * The tree is augmented with the largest gap of each subtree, so that a free range is found in one descent. All of it
 * is guarded by mmap_lock.
 */
#include <emu/mm_ops.h>

#include <errno.h>

static uint32_t spin = 1;      /* do writers spin while the owner runs? */
static uint32_t downgrade = 1; /* is munmap's second half a reader? */

static const char *const on_off[] = { "off", "on" };

static const struct emu_param params[] = {
	{ "spin", &spin, 0, 1, "may who waits for mmap_lock spin, or overtake? off: FIFO, asleep, as before Linux 3.10",
	  on_off },
	{ "downgrade", &downgrade, 0, 1,
	  "does munmap let faults go on once its VMAs are out? off: as before Linux 4.20", on_off },
	{ 0 },
};

struct mmap_sem {
	struct rw_semaphore mmap_lock;
	struct rb_root rb;
};

_Static_assert(sizeof(struct mmap_sem) <= EMU_MM_SLOT, "does not fit into mm->index");

static inline struct vm_area_struct *entry(struct rb_node *node)
{
	return node ? rb_entry(node, struct vm_area_struct, vm_rb) : NULL;
}

static inline uint64_t gap_between(uint64_t end, uint64_t start)
{
	return start > end ? start - end : 0;
}

/* Recomputes a node from its children; false when nothing changed. */
static bool gap_update(struct vm_area_struct *vma)
{
	struct vm_area_struct *left = entry(vma->vm_rb.rb_left), *right = entry(vma->vm_rb.rb_right);
	uint64_t start = vm_start_gap(vma), end = vma->vm_end, gap = 0, between;

	if (left) {
		gap = left->rb_subtree_gap;
		between = gap_between(left->rb_subtree_end, start);
		gap = between > gap ? between : gap;
		start = left->rb_subtree_start;
	}
	if (right) {
		gap = right->rb_subtree_gap > gap ? right->rb_subtree_gap : gap;
		between = gap_between(end, right->rb_subtree_start);
		gap = between > gap ? between : gap;
		end = right->rb_subtree_end;
	}
	if (vma->rb_subtree_start == start && vma->rb_subtree_end == end && vma->rb_subtree_gap == gap)
		return false;
	vma->rb_subtree_start = start;
	vma->rb_subtree_end = end;
	vma->rb_subtree_gap = gap;
	return true;
}

static void gap_propagate(struct rb_node *node, struct rb_node *stop)
{
	while (node != stop && gap_update(entry(node)))
		node = rb_parent(node);
}

static void gap_copy(struct rb_node *old, struct rb_node *new_node)
{
	entry(new_node)->rb_subtree_start = entry(old)->rb_subtree_start;
	entry(new_node)->rb_subtree_end = entry(old)->rb_subtree_end;
	entry(new_node)->rb_subtree_gap = entry(old)->rb_subtree_gap;
}

static void gap_rotate(struct rb_node *old, struct rb_node *new_node)
{
	gap_copy(old, new_node);
	gap_update(entry(old));
}

static const struct rb_augment_callbacks gap_callbacks = { gap_propagate, gap_copy, gap_rotate };

static void mmap_sem_init(struct mm_struct *mm)
{
	struct mmap_sem *ms = mm_private(mm, struct mmap_sem);

	init_rwsem(&ms->mmap_lock, EMU_CLASS_MMAP_LOCK);
	ms->mmap_lock.no_spin = !spin;
	ms->rb.rb_node = NULL;
}

static struct vm_area_struct *mmap_sem_find(struct mm_struct *mm, uint64_t addr, uint64_t end,
					    struct vm_area_struct **prev)
{
	struct rb_node *node = mm_private(mm, struct mmap_sem)->rb.rb_node;
	struct vm_area_struct *found = NULL, *before = NULL;

	while (node) {
		struct vm_area_struct *vma = entry(node);

		if (vma->vm_end > addr) {
			found = vma;
			node = node->rb_left;
		} else {
			before = vma;
			node = node->rb_right;
		}
	}
	if (prev)
		*prev = before;
	return found && found->vm_start < end ? found : NULL;
}

static void mmap_sem_link(struct mm_struct *mm, struct vm_area_struct *vma)
{
	struct rb_root *root = &mm_private(mm, struct mmap_sem)->rb;
	struct rb_node **link = &root->rb_node, *parent = NULL;

	while (*link) {
		parent = *link;
		EMU_ASSERT(vma->vm_end <= entry(parent)->vm_start || vma->vm_start >= entry(parent)->vm_end,
			   "VMAs overlap at %#llx", (unsigned long long)vma->vm_start);
		link = vma->vm_start < entry(parent)->vm_start ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&vma->vm_rb, parent, link);
	vma->rb_subtree_start = vm_start_gap(vma);
	vma->rb_subtree_end = vma->vm_end;
	vma->rb_subtree_gap = 0;
	gap_propagate(parent, NULL);
	rb_insert_augmented(&vma->vm_rb, root, &gap_callbacks);
}

static void mmap_sem_change(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	bool moved;

	if (!to) {
		rb_erase_augmented(&vma->vm_rb, &mm_private(mm, struct mmap_sem)->rb, &gap_callbacks);
		return;
	}
	moved = to->start != vma->vm_start || to->end != vma->vm_end;
	vma_set(vma, to);
	if (moved)
		gap_propagate(&vma->vm_rb, NULL);
}

/* The highest len bytes in [low, high) between `left` and `right`, the borders of the VMAs around this subtree. */
static int64_t highest_gap(struct rb_node *node, uint64_t left, uint64_t right, uint64_t len, uint64_t low, uint64_t high)
{
	uint64_t from = left > low ? left : low, to = right < high ? right : high;
	struct vm_area_struct *vma = entry(node);
	int64_t found;

	if (to < from || to - from < len)
		return -ENOMEM;
	if (!vma)
		return (int64_t)(to - len);
	if (vma->rb_subtree_gap < len && gap_between(left, vma->rb_subtree_start) < len &&
	    gap_between(vma->rb_subtree_end, right) < len)
		return -ENOMEM;
	found = highest_gap(node->rb_right, vma->vm_end, right, len, low, high);
	if (found < 0)
		found = highest_gap(node->rb_left, left, vm_start_gap(vma), len, low, high);
	return found;
}

static int64_t mmap_sem_lock(struct mm_struct *mm, struct mm_range *range)
{
	struct mmap_sem *ms = mm_private(mm, struct mmap_sem);
	int64_t found;

	if (range->read) {
		down_read(&ms->mmap_lock);
		return 0;
	}
	down_write(&ms->mmap_lock);
	if (!range->len)
		return 0;
	found = highest_gap(ms->rb.rb_node, 0, UINT64_MAX, range->len, range->start, range->end);
	if (found < 0) {
		up_write(&ms->mmap_lock);
		return found;
	}
	range->start = (uint64_t)found;
	range->end = range->start + range->len;
	return 0;
}

static void mmap_sem_unlock(struct mm_struct *mm, struct mm_range *range)
{
	struct mmap_sem *ms = mm_private(mm, struct mmap_sem);

	if (range->read)
		up_read(&ms->mmap_lock);
	else
		up_write(&ms->mmap_lock);
}

static void mmap_sem_downgrade(struct mm_struct *mm, struct mm_range *range)
{
	if (!downgrade)
		return;
	downgrade_write(&mm_private(mm, struct mmap_sem)->mmap_lock);
	range->read = true;
}

static int mmap_sem_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct mmap_sem *ms = mm_private(mm, struct mmap_sem);
	int err;

	down_read_for_fault(&ms->mmap_lock);
	err = fault_in_vma(mmap_sem_find(mm, addr, addr + 1, NULL), addr, write, busy);
	up_read(&ms->mmap_lock);
	return err;
}

EMU_EXPORT const struct mm_ops emu_mm_ops = {
	.name = "mmap-sem-rbtree",
	.version = EMU_MM_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct mmap_sem),
	.params = params,
	.init = mmap_sem_init,
	.lock = mmap_sem_lock,
	.unlock = mmap_sem_unlock,
	.downgrade = mmap_sem_downgrade,
	.find = mmap_sem_find,
	.link = mmap_sem_link,
	.change = mmap_sem_change,
	.fault = mmap_sem_fault,
};
