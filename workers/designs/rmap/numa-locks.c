/* SPDX-License-Identifier: MIT */
/*
 * numa-locks - one interval tree and one rwsem per NUMA node (Huang v2, June 2026).
 *
 * As numa-trees, but a change takes the lock of one tree. A walker takes all locks, in order of the nodes, before it
 * looks at the first tree. As posted, linking and unlinking take the tree's lock once per VMA, and mapping_mapped() is a
 * count that all nodes add to (numa-trees.c has more about it).
 * A merge may join VMAs of different trees: their locks are taken in order of the nodes too.
 */
#include <emu/rmap.h>

#include <errno.h>

/* One node's, on lines of that node. */
struct node_tree {
	struct rw_semaphore rwsem; /* guards the tree */
	struct interval_tree_root tree;
};

struct numa_locks {
	struct node_tree **nodes; /* [emu_nr_nodes()], constant */
	_Atomic int64_t vma_count; /* changed under the lock of a VMA's tree, read without */
};

static inline void count_vmas(struct address_space *mapping, int64_t n)
{
	atomic_fetch_add_explicit(&rmap_private(mapping, struct numa_locks)->vma_count, n, memory_order_relaxed);
}

static inline struct node_tree *tree_of(struct address_space *mapping, struct vm_area_struct *vma)
{
	return rmap_private(mapping, struct numa_locks)->nodes[vma->i_mmap_index];
}

static void numa_locks_init(struct address_space *mapping)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);
	uint32_t class_id = lock_class("i_mmap_rwsem", mapping->name);

	atomic_init(&nl->vma_count, 0);
	nl->nodes = emu_alloc(emu_nr_nodes() * sizeof(*nl->nodes), emu_node_id());
	for (uint32_t node = 0; node < emu_nr_nodes(); node++) {
		nl->nodes[node] = emu_zalloc(sizeof(struct node_tree), node);
		init_rwsem(&nl->nodes[node]->rwsem, class_id);
	}
}

static void numa_locks_destroy(struct address_space *mapping)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);

	for (uint32_t node = 0; node < emu_nr_nodes(); node++)
		emu_free(nl->nodes[node]);
	emu_free(nl->nodes);
}

static void numa_locks_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			      struct vm_area_struct **prevs, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct vm_area_struct *vma = vmas[i], *prev = prevs ? prevs[i] : NULL;
		struct node_tree *nt;

		if (!prev)
			vma->i_mmap_index = emu_node_id();
		nt = tree_of(mapping, prev ? prev : vma);
		/* In the parent's tree, wherever the child runs: a walk must meet the parent first. */
		if (prev)
			vma->i_mmap_index = prev->i_mmap_index;
		down_write(&nt->rwsem);
		i_mmap_tree_insert_after(&nt->tree, vma, prev);
		count_vmas(mapping, 1);
		up_write(&nt->rwsem);
	}
}

static void numa_locks_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct node_tree *nt = tree_of(mapping, vmas[i]);

		down_write(&nt->rwsem);
		i_mmap_tree_remove(&nt->tree, vmas[i]);
		count_vmas(mapping, -1);
		up_write(&nt->rwsem);
	}
}

static void numa_locks_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);
	uint32_t nodes[VMA_PREPARE_MAX], n;

	if (vp->insert)
		vp->insert->i_mmap_index = vp->vma->i_mmap_index;
	n = vma_prepare_trees(vp, nodes);
	for (uint32_t i = 0; i < n; i++)
		down_write(&nl->nodes[nodes[i]]->rwsem);
	i_mmap_tree_remove(&tree_of(mapping, vp->vma)->tree, vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(&tree_of(mapping, vp->adj_next)->tree, vp->adj_next);
	if (vp->insert) {
		i_mmap_tree_insert(&tree_of(mapping, vp->insert)->tree, vp->insert);
		count_vmas(mapping, 1);
	}
}

static void numa_locks_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);
	uint32_t nodes[VMA_PREPARE_MAX], n = vma_prepare_trees(vp, nodes);

	if (vp->adj_next)
		i_mmap_tree_insert(&tree_of(mapping, vp->adj_next)->tree, vp->adj_next);
	i_mmap_tree_insert(&tree_of(mapping, vp->vma)->tree, vp->vma);
	if (vp->remove)
		i_mmap_tree_remove(&tree_of(mapping, vp->remove)->tree, vp->remove);
	if (vp->remove2)
		i_mmap_tree_remove(&tree_of(mapping, vp->remove2)->tree, vp->remove2);
	if (vp->remove)
		count_vmas(mapping, vp->remove2 ? -2 : -1);
	while (n--)
		up_write(&nl->nodes[nodes[n]]->rwsem);
}

static int numa_locks_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock,
			   rmap_walk_fn fn, void *arg)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);
	uint32_t locked = 0;
	int ret = 0;

	for (; locked < emu_nr_nodes(); locked++) {
		if (!try_lock) {
			down_read(&nl->nodes[locked]->rwsem);
		} else if (!down_read_trylock(&nl->nodes[locked]->rwsem)) {
			ret = -EAGAIN;
			break;
		}
	}
	for (uint32_t node = 0; node < emu_nr_nodes() && !ret; node++)
		ret = i_mmap_tree_walk(&nl->nodes[node]->tree, first, last, fn, arg);
	while (locked--)
		up_read(&nl->nodes[locked]->rwsem);
	return ret;
}

static bool numa_locks_mapped(struct address_space *mapping)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);

	return atomic_load_explicit(&nl->vma_count, memory_order_relaxed) != 0;
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "numa-locks",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct numa_locks),
	.init = numa_locks_init,
	.destroy = numa_locks_destroy,
	.insert = numa_locks_insert,
	.remove = numa_locks_remove,
	.prepare = numa_locks_prepare,
	.complete = numa_locks_complete,
	.walk = numa_locks_walk,
	.mapped = numa_locks_mapped,
};
