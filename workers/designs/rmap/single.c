/* SPDX-License-Identifier: MIT */
/*
 * single - one interval tree, one rwsem (mainline Linux).
 *
 * i_mmap_rwsem guards the tree: writers change it, walkers read it.
 */
#include <emu/rmap.h>

#include <errno.h>

struct single {
	struct rw_semaphore i_mmap_rwsem;
	struct interval_tree_root i_mmap;
};

static void single_init(struct address_space *mapping)
{
	struct single *s = rmap_private(mapping, struct single);

	init_rwsem(&s->i_mmap_rwsem, lock_class("i_mmap_rwsem", mapping->name));
	s->i_mmap = (struct interval_tree_root){ 0 };
}

static void single_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			  struct vm_area_struct **prevs, uint32_t n)
{
	struct single *s = rmap_private(mapping, struct single);

	down_write(&s->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_insert_after(&s->i_mmap, vmas[i], prevs ? prevs[i] : NULL);
	up_write(&s->i_mmap_rwsem);
}

static void single_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct single *s = rmap_private(mapping, struct single);

	down_write(&s->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_remove(&s->i_mmap, vmas[i]);
	up_write(&s->i_mmap_rwsem);
}

static void single_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct single *s = rmap_private(mapping, struct single);

	down_write(&s->i_mmap_rwsem);
	i_mmap_tree_remove(&s->i_mmap, vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(&s->i_mmap, vp->adj_next);
	if (vp->insert)
		i_mmap_tree_insert(&s->i_mmap, vp->insert);
}

static void single_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct single *s = rmap_private(mapping, struct single);

	if (vp->adj_next)
		i_mmap_tree_insert(&s->i_mmap, vp->adj_next);
	i_mmap_tree_insert(&s->i_mmap, vp->vma);
	if (vp->remove)
		i_mmap_tree_remove(&s->i_mmap, vp->remove);
	if (vp->remove2)
		i_mmap_tree_remove(&s->i_mmap, vp->remove2);
	up_write(&s->i_mmap_rwsem);
}

static int single_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
		       void *arg)
{
	struct single *s = rmap_private(mapping, struct single);
	int ret;

	if (!try_lock)
		down_read(&s->i_mmap_rwsem);
	else if (!down_read_trylock(&s->i_mmap_rwsem))
		return -EAGAIN;
	ret = i_mmap_tree_walk(&s->i_mmap, first, last, fn, arg);
	up_read(&s->i_mmap_rwsem);
	return ret;
}

static bool single_mapped(struct address_space *mapping)
{
	return !i_mmap_tree_empty(&rmap_private(mapping, struct single)->i_mmap) ||
	       single_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "single",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct single),
	.init = single_init,
	.insert = single_insert,
	.remove = single_remove,
	.prepare = single_prepare,
	.complete = single_complete,
	.walk = single_walk,
	.mapped = single_mapped,
};
