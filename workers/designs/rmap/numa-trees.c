/* SPDX-License-Identifier: MIT */
/*
 * numa-trees - one interval tree per NUMA node, one rwsem over all of them (Huang v1, April 2026).
 *
 * A VMA goes into the tree of the node that maps it and remembers which; a forked child and the halves of a split stay
 * in the parent's tree. Trees become smaller and their lines stay on one node; the lock is as hot as before.
 *
 * As posted, mapping_mapped() is a count of the file's VMAs, beside the pointer to the trees: a line that each holder of
 * the lock writes. There it also falls and rises while a VMA is out of its tree to be changed, so that a file with a single
 * mapping looks unmapped for a moment; not here.
 */
#include <emu/rmap.h>

#include <errno.h>

/* Each tree is on a line of its own node. */
struct numa_trees {
	struct rw_semaphore i_mmap_rwsem; /* guards all trees, and changes of vma_count */
	struct interval_tree_root **trees; /* [emu_nr_nodes()], constant */
	_Atomic int64_t vma_count; /* read without the lock */
};

static inline void count_vmas(struct numa_trees *nt, int64_t n)
{
	int64_t count = atomic_load_explicit(&nt->vma_count, memory_order_relaxed);

	atomic_store_explicit(&nt->vma_count, count + n, memory_order_relaxed);
}

static inline struct interval_tree_root *tree_of(struct numa_trees *nt, struct vm_area_struct *vma)
{
	return nt->trees[vma->i_mmap_index];
}

static void numa_trees_init(struct address_space *mapping)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);

	init_rwsem(&nt->i_mmap_rwsem, lock_class("i_mmap_rwsem", mapping->name));
	atomic_init(&nt->vma_count, 0);
	nt->trees = emu_alloc(emu_nr_nodes() * sizeof(*nt->trees), emu_node_id());
	for (uint32_t node = 0; node < emu_nr_nodes(); node++)
		nt->trees[node] = emu_zalloc(EMU_CACHELINE, node);
}

static void numa_trees_destroy(struct address_space *mapping)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);

	for (uint32_t node = 0; node < emu_nr_nodes(); node++)
		emu_free(nt->trees[node]);
	emu_free(nt->trees);
}

static void numa_trees_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			      struct vm_area_struct **prevs, uint32_t n)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);

	for (uint32_t i = 0; i < n; i++)
		vmas[i]->i_mmap_index = prevs ? prevs[i]->i_mmap_index : emu_node_id();
	down_write(&nt->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_insert_after(tree_of(nt, vmas[i]), vmas[i], prevs ? prevs[i] : NULL);
	count_vmas(nt, n);
	up_write(&nt->i_mmap_rwsem);
}

static void numa_trees_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);

	down_write(&nt->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_remove(tree_of(nt, vmas[i]), vmas[i]);
	count_vmas(nt, -(int64_t)n);
	up_write(&nt->i_mmap_rwsem);
}

static void numa_trees_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);

	down_write(&nt->i_mmap_rwsem);
	i_mmap_tree_remove(tree_of(nt, vp->vma), vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(tree_of(nt, vp->adj_next), vp->adj_next);
	if (vp->insert) {
		vp->insert->i_mmap_index = vp->vma->i_mmap_index;
		i_mmap_tree_insert(tree_of(nt, vp->insert), vp->insert);
		count_vmas(nt, 1);
	}
}

static void numa_trees_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);

	if (vp->adj_next)
		i_mmap_tree_insert(tree_of(nt, vp->adj_next), vp->adj_next);
	i_mmap_tree_insert(tree_of(nt, vp->vma), vp->vma);
	if (vp->remove)
		i_mmap_tree_remove(tree_of(nt, vp->remove), vp->remove);
	if (vp->remove2)
		i_mmap_tree_remove(tree_of(nt, vp->remove2), vp->remove2);
	if (vp->remove)
		count_vmas(nt, vp->remove2 ? -2 : -1);
	up_write(&nt->i_mmap_rwsem);
}

static int numa_trees_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock,
			   rmap_walk_fn fn, void *arg)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);
	int ret = 0;

	if (!try_lock)
		down_read(&nt->i_mmap_rwsem);
	else if (!down_read_trylock(&nt->i_mmap_rwsem))
		return -EAGAIN;
	for (uint32_t node = 0; node < emu_nr_nodes() && !ret; node++)
		ret = i_mmap_tree_walk(nt->trees[node], first, last, fn, arg);
	up_read(&nt->i_mmap_rwsem);
	return ret;
}

static bool numa_trees_mapped(struct address_space *mapping)
{
	struct numa_trees *nt = rmap_private(mapping, struct numa_trees);

	return atomic_load_explicit(&nt->vma_count, memory_order_relaxed) != 0;
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "numa-trees",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct numa_trees),
	.init = numa_trees_init,
	.destroy = numa_trees_destroy,
	.insert = numa_trees_insert,
	.remove = numa_trees_remove,
	.prepare = numa_trees_prepare,
	.complete = numa_trees_complete,
	.walk = numa_trees_walk,
	.mapped = numa_trees_mapped,
};
