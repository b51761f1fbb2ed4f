/* SPDX-License-Identifier: MIT */
/*
 * rmap.h - what an rmap design is: how a file's VMAs are indexed and locked.
 *
 * A design is one C file that includes this header and ends with `const struct rmap_ops emu_rmap_ops = { ... };`.
 * designs/rmap/skeleton.c is the one to copy. Built-in designs and a user's go through the same loader.
 *
 * What every design must keep, or declare that it does not: a walk sees each VMA linked before it began and not removed
 * before it ended, none twice; a walk in progress sees a parent before the child that was forked from it; nothing between
 * prepare and complete is visible to a walk; a trylock walk gets all or nothing before its first callback.
 */
#ifndef EMU_RMAP_H
#define EMU_RMAP_H

#include <emu/mm.h>

#define EMU_RMAP_VERSION 3u

/* A parameter that the user may set: --rmap cpu-locks:cpus=8. The loader checks the range and writes *value. */
struct emu_param {
	const char *name;
	uint32_t *value;
	uint32_t min, max;
	const char *help;
	const char *const *values; /* [max + 1]: what the user types for 0, 1, ... max; NULL: a number */
};

/* Called for each VMA of a walk, with the design's walk locks held. Non-zero ends the walk and is its result. */
typedef int (*rmap_walk_fn)(struct vm_area_struct *vma, void *arg);

struct rmap_ops {
	const char *name;		/* as the user types it */
	uint32_t version;		/* EMU_RMAP_VERSION */
	uint32_t machine;		/* EMU_MACHINE_ID */
	uint32_t size;			/* bytes used of mapping->i_mmap, at most EMU_RMAP_SLOT */
	const struct emu_param *params; /* ends with a NULL name; NULL: none */

	/* A new file: set up trees and locks. One CPU, nobody else knows the file. Required. */
	void (*init)(struct address_space *mapping);

	/* The file goes: no VMA maps it, nobody else knows it. Frees what init allocated. Not required. */
	void (*destroy)(struct address_space *mapping);

	/*
	 * Link `n` (1..8) VMAs of one mm, all of this file, with as few acquisitions as the index allows. prevs is NULL: they
	 * are new (mmap); else vmas[i] is the child's copy of prevs[i] and goes just after it (fork). n is 1 but with
	 * batch=exit+fork and exit+fork+exec. The caller holds the mm's lock for writing; so in all hooks down to complete.
	 * Required.
	 */
	void (*insert)(struct address_space *mapping, struct vm_area_struct **vmas, struct vm_area_struct **prevs,
		       uint32_t n);

	/* Unlink `n` (1..8) VMAs of one mm, all of this file (munmap, exit). Required. */
	void (*remove)(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n);

	/*
	 * The bounds of vp->vma (and vp->adj_next) are about to change: lock, take them out of the index, and link
	 * vp->insert if there is one. Locks stay held until complete. Required.
	 */
	void (*prepare)(struct address_space *mapping, struct vma_prepare *vp);

	/* The bounds have changed: put vp->vma and vp->adj_next back, take vp->remove and vp->remove2 out, unlock. Required. */
	void (*complete)(struct address_space *mapping, struct vma_prepare *vp);

	/*
	 * Call fn for every VMA that maps a page in [first, last]. try_lock: -EAGAIN before the first callback where a
	 * lock is not free. -EOPNOTSUPP, always and without a callback, for a file that the design keeps out of its
	 * index. Otherwise 0 or what fn returned. The caller holds no lock. Required.
	 */
	int (*walk)(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
		    void *arg);

	/*
	 * Does any VMA map this file? Right at some time during the call, also while a VMA is between prepare and
	 * complete. Should touch no line that modifiers write, and no lock, where the answer is yes. Required.
	 */
	bool (*mapped)(struct address_space *mapping);
};

/* The design's own part of a file. */
#define rmap_private(mapping, type) ((type *)(void *)(mapping)->i_mmap)

/*
 * VMAs in an interval tree, keyed by vm_pgoff: what most designs are made of. The caller's lock guards the tree.
 */
static inline void i_mmap_tree_insert(struct interval_tree_root *tree, struct vm_area_struct *vma)
{
	vma_set_interval(vma);
	interval_tree_insert(&vma->shared, tree);
}

/* Just after `prev`; NULL: where its pages belong. */
static inline void i_mmap_tree_insert_after(struct interval_tree_root *tree, struct vm_area_struct *vma,
					    struct vm_area_struct *prev)
{
	vma_set_interval(vma);
	if (prev)
		interval_tree_insert_after(&vma->shared, &prev->shared, tree);
	else
		interval_tree_insert(&vma->shared, tree);
}

static inline void i_mmap_tree_remove(struct interval_tree_root *tree, struct vm_area_struct *vma)
{
	interval_tree_remove(&vma->shared, tree);
}

static inline int i_mmap_tree_walk(struct interval_tree_root *tree, uint64_t first, uint64_t last, rmap_walk_fn fn,
				   void *arg)
{
	struct interval_tree_node *node;
	int ret = 0;

	for (node = interval_tree_iter_first(tree, first, last); node && !ret;
	     node = interval_tree_iter_next(node, first, last))
		ret = fn(vma_of(node), arg);
	return ret;
}

/*
 * The trees, by i_mmap_index, that hold the VMAs of vp: ascending and each once, so that whoever locks them in this
 * order cannot deadlock. Returns how many. vp->insert must have its index.
 */
#define VMA_PREPARE_MAX 5u
static inline uint32_t vma_prepare_trees(const struct vma_prepare *vp, uint32_t trees[VMA_PREPARE_MAX])
{
	struct vm_area_struct *vmas[VMA_PREPARE_MAX] = { vp->vma, vp->adj_next, vp->insert, vp->remove, vp->remove2 };
	uint32_t n = 0;

	for (uint32_t i = 0; i < VMA_PREPARE_MAX; i++) {
		uint32_t at = n;

		if (!vmas[i])
			continue;
		while (at && trees[at - 1] >= vmas[i]->i_mmap_index)
			at--;
		if (at < n && trees[at] == vmas[i]->i_mmap_index)
			continue;
		for (uint32_t j = n++; j > at; j--)
			trees[j] = trees[j - 1];
		trees[at] = vmas[i]->i_mmap_index;
	}
	return n;
}

/* Ends a walk at its first VMA: what mapped() asks when a tree looks empty. */
static inline int rmap_found(struct vm_area_struct *vma, void *arg)
{
	(void)vma;
	(void)arg;
	return 1;
}

/* Without the lock: a tree may look empty while its only VMA is between prepare and complete. */
static inline bool i_mmap_tree_empty(const struct interval_tree_root *tree)
{
	return !READ_ONCE(tree->rb.rb_node);
}

#endif
