/* SPDX-License-Identifier: MIT */
/*
 * skeleton - an rmap design to copy. It works: one tree, one rwsem, as `single`. Change it step by step.
 *
 * Compile for the native engine (HEADERS: the folder include/ of the installed package):
 *
 *   cc -std=gnu11 -O2 -g -fPIC -shared -DEMU_MACHINE_NATIVE -IHEADERS -o mine.so mine.c
 *
 * The rules that a design keeps are at the top of emu/rmap.h. What a hook may use: the locks of emu/rwsem.h and
 * emu/qspinlock.h, the trees of emu/interval_tree.h and emu/rbtree.h, C11 atomics, and the services of emu/machine.h.
 * Plain C: no inline assembly, no pthread, no loop that waits without emu_spin_wait() or smp_cond_load_acquire().
 */
#include <emu/rmap.h>

#include <errno.h>

/* What this design keeps per file, in mapping->i_mmap. More than EMU_RMAP_SLOT bytes: emu_alloc() and a pointer. */
struct skeleton {
	struct rw_semaphore rwsem; /* guards tree */
	struct interval_tree_root tree;
};

/* Parameters that the user may set, as --rmap ./mine.c:spin=0, and their defaults. */
static uint32_t spin = 1;

static const struct emu_param params[] = {
	{ .name = "spin", .value = &spin, .max = 1, .help = "1: writers spin on a running owner before they sleep" },
	{ 0 },
};

/* A new file; nobody else knows it. The class names the lock in every report. Required. */
static void skeleton_init(struct address_space *mapping)
{
	struct skeleton *s = rmap_private(mapping, struct skeleton);

	init_rwsem(&s->rwsem, lock_class("i_mmap_rwsem", mapping->name));
	s->rwsem.no_spin = !spin;
	s->tree = (struct interval_tree_root){ 0 };
}

/* The file goes and no VMA maps it: free what init allocated. Not required: NULL where nothing was. */
static void skeleton_destroy(struct address_space *mapping)
{
	(void)mapping;
}

/*
 * Up to 8 VMAs of one process, all of this file. mmap: prevs is NULL. fork: vmas[i] is the child's copy of prevs[i], which
 * a walk in progress must meet first. vma->i_mmap_index is yours to use. Required.
 */
static void skeleton_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			    struct vm_area_struct **prevs, uint32_t n)
{
	struct skeleton *s = rmap_private(mapping, struct skeleton);

	down_write(&s->rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_insert_after(&s->tree, vmas[i], prevs ? prevs[i] : NULL);
	up_write(&s->rwsem);
}

/* munmap and exit: up to 8 VMAs of one process, all of this file. Required. */
static void skeleton_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct skeleton *s = rmap_private(mapping, struct skeleton);

	down_write(&s->rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_remove(&s->tree, vmas[i]);
	up_write(&s->rwsem);
}

/* split, merge: bounds are about to change. Lock; take vp->vma and vp->adj_next out; link vp->insert. Required. */
static void skeleton_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct skeleton *s = rmap_private(mapping, struct skeleton);

	down_write(&s->rwsem);
	i_mmap_tree_remove(&s->tree, vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(&s->tree, vp->adj_next);
	if (vp->insert)
		i_mmap_tree_insert(&s->tree, vp->insert);
}

/* Bounds have changed: put them back, take vp->remove and vp->remove2 out, unlock what prepare locked. Required. */
static void skeleton_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct skeleton *s = rmap_private(mapping, struct skeleton);

	if (vp->adj_next)
		i_mmap_tree_insert(&s->tree, vp->adj_next);
	i_mmap_tree_insert(&s->tree, vp->vma);
	if (vp->remove)
		i_mmap_tree_remove(&s->tree, vp->remove);
	if (vp->remove2)
		i_mmap_tree_remove(&s->tree, vp->remove2);
	up_write(&s->rwsem);
}

/* truncate, reclaim, migration: fn for each VMA that maps a page of [first, last]. try_lock: never wait. Required. */
static int skeleton_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
			 void *arg)
{
	struct skeleton *s = rmap_private(mapping, struct skeleton);
	int ret;

	if (!try_lock)
		down_read(&s->rwsem);
	else if (!down_read_trylock(&s->rwsem))
		return -EAGAIN;
	ret = i_mmap_tree_walk(&s->tree, first, last, fn, arg);
	up_read(&s->rwsem);
	return ret;
}

/* Does anybody map the file? A tree may look empty while its only VMA is between prepare and complete. Required. */
static bool skeleton_mapped(struct address_space *mapping)
{
	return !i_mmap_tree_empty(&rmap_private(mapping, struct skeleton)->tree) ||
	       skeleton_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "skeleton",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct skeleton),
	.params = params,
	.init = skeleton_init,
	.destroy = skeleton_destroy,
	.insert = skeleton_insert,
	.remove = skeleton_remove,
	.prepare = skeleton_prepare,
	.complete = skeleton_complete,
	.walk = skeleton_walk,
	.mapped = skeleton_mapped,
};
