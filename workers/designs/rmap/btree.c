/* SPDX-License-Identifier: MIT */
/*
 * btree - as `single`, with a tree of wide nodes instead of the interval tree (Guzik: the cost under the lock can go
 * way down with merely a better data structure).
 *
 * Nodes of `node` bytes hold keys and pointers of several VMAs each, as the maple tree's do: see emu/btree.h.
 */
#include <emu/btree.h>
#include <emu/rmap.h>

#include <errno.h>

struct btree {
	struct rw_semaphore i_mmap_rwsem; /* guards the tree */
	struct btree_root i_mmap;
};

static uint32_t node_bytes = 256;

static const struct emu_param params[] = {
	{ .name = "node", .value = &node_bytes, .min = BTREE_NODE_BYTES_MIN, .max = BTREE_NODE_BYTES_MAX,
	  .help = "bytes of a node: 16, and 24 for each entry" },
	{ 0 },
};

static void btree_design_init(struct address_space *mapping)
{
	struct btree *b = rmap_private(mapping, struct btree);

	init_rwsem(&b->i_mmap_rwsem, lock_class("i_mmap_rwsem", mapping->name));
	btree_init(&b->i_mmap, node_bytes);
}

static void tree_insert(struct btree *b, struct vm_area_struct *vma)
{
	vma_set_item(vma);
	btree_insert(&vma->shared_item, &b->i_mmap);
}

static void tree_remove(struct btree *b, struct vm_area_struct *vma)
{
	btree_remove(&vma->shared_item, &b->i_mmap);
}

static void btree_design_insert(struct address_space *mapping, struct vm_area_struct **vmas,
				struct vm_area_struct **prevs, uint32_t n)
{
	struct btree *b = rmap_private(mapping, struct btree);

	down_write(&b->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++) {
		vma_set_item(vmas[i]);
		if (prevs)
			btree_insert_after(&vmas[i]->shared_item, &prevs[i]->shared_item, &b->i_mmap);
		else
			btree_insert(&vmas[i]->shared_item, &b->i_mmap);
	}
	up_write(&b->i_mmap_rwsem);
}

static void btree_design_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct btree *b = rmap_private(mapping, struct btree);

	down_write(&b->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++)
		tree_remove(b, vmas[i]);
	up_write(&b->i_mmap_rwsem);
}

static void btree_design_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct btree *b = rmap_private(mapping, struct btree);

	down_write(&b->i_mmap_rwsem);
	tree_remove(b, vp->vma);
	if (vp->adj_next)
		tree_remove(b, vp->adj_next);
	if (vp->insert)
		tree_insert(b, vp->insert);
}

static void btree_design_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct btree *b = rmap_private(mapping, struct btree);

	if (vp->adj_next)
		tree_insert(b, vp->adj_next);
	tree_insert(b, vp->vma);
	if (vp->remove)
		tree_remove(b, vp->remove);
	if (vp->remove2)
		tree_remove(b, vp->remove2);
	up_write(&b->i_mmap_rwsem);
}

static int btree_design_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock,
			     rmap_walk_fn fn, void *arg)
{
	struct btree *b = rmap_private(mapping, struct btree);
	struct btree_item *item;
	struct btree_iter iter;
	int ret = 0;

	if (!try_lock)
		down_read(&b->i_mmap_rwsem);
	else if (!down_read_trylock(&b->i_mmap_rwsem))
		return -EAGAIN;
	for (item = btree_iter_first(&iter, &b->i_mmap, first, last); item && !ret; item = btree_iter_next(&iter))
		ret = fn(vma_of_item(item), arg);
	up_read(&b->i_mmap_rwsem);
	return ret;
}

static bool btree_design_mapped(struct address_space *mapping)
{
	return !btree_empty(&rmap_private(mapping, struct btree)->i_mmap) ||
	       btree_design_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "btree",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct btree),
	.params = params,
	.init = btree_design_init,
	.insert = btree_design_insert,
	.remove = btree_design_remove,
	.prepare = btree_design_prepare,
	.complete = btree_design_complete,
	.walk = btree_design_walk,
	.mapped = btree_design_mapped,
};
