/* SPDX-License-Identifier: MIT */
/*
 * rmap_shards.h - a file's VMAs spread over several interval trees, each with its own lock: what sharded designs share.
 *
 * vma->i_mmap_index says in which shard a VMA is. It is set by rmap_shards_insert(), inherited from the parent by fork
 * and split, and constant while the VMA is linked.
 *
 * Rules for callers:
 *   - A modifier takes the locks of the shards that it changes; the functions below do that. Several are taken in
 *     ascending order, each once.
 *   - A walker must keep modifiers out of all shards at once, or it may meet a merge's VMAs twice or not at all: by
 *     rmap_shards_walk_locked(), or by a lock of the design's own outside of these, then rmap_shards_walk().
 *   - Order between shards is that of their numbers, and a child is in its parent's shard: so a walk meets the parent
 *     first.
 */
#ifndef EMU_RMAP_SHARDS_H
#define EMU_RMAP_SHARDS_H

#include <emu/rmap.h>

#include <errno.h>

/* On lines of its own, on the node of the CPUs that are expected to use it. */
struct rmap_shard {
	struct rw_semaphore rwsem; /* guards the tree. A sleeping lock: it is held over all of prepare ... complete */
	struct interval_tree_root tree;
};

/* Constant once set up. */
struct rmap_shards {
	uint32_t nr;
	struct rmap_shard *shard[];
};

/* What chooses the shard of a new VMA; the names are for struct emu_param. */
enum rmap_shards_by { RMAP_SHARDS_BY_CPU, RMAP_SHARDS_BY_VMA, RMAP_SHARDS_BY_MM };
__attribute__((unused)) static const char *const rmap_shards_by_names[] = { "cpu", "vma", "mm" };

static inline uint32_t rmap_shards_choose(const struct rmap_shards *s, enum rmap_shards_by by,
					  const struct address_space *mapping, const struct vm_area_struct *vma)
{
	const void *object = by == RMAP_SHARDS_BY_VMA ? (const void *)vma : vma->vm_mm;
	uint64_t distance, hash;

	/* CPUs are divided evenly and in order: neighbours share a shard where there are more CPUs than shards. */
	if (by == RMAP_SHARDS_BY_CPU)
		return (uint32_t)((uint64_t)emu_cpu_id() * s->nr / emu_nr_cpus());
	/* Relative to the file: two equal runs may have the arena at different addresses. */
	distance = ((uintptr_t)object - (uintptr_t)mapping) / EMU_CACHELINE;
	hash = distance * UINT64_C(0x9e3779b97f4a7c15) >> 32;
	return (uint32_t)(hash * s->nr >> 32);
}

static inline struct rmap_shards *rmap_shards_alloc(uint32_t nr, uint32_t class_id)
{
	struct rmap_shards *s = emu_alloc(sizeof(*s) + nr * sizeof(s->shard[0]), emu_node_id());

	s->nr = nr;
	for (uint32_t i = 0; i < nr; i++) {
		uint32_t cpu = (uint32_t)((uint64_t)i * emu_nr_cpus() / nr);

		s->shard[i] = emu_zalloc(sizeof(struct rmap_shard), emu_cpu_to_node(cpu));
		init_rwsem(&s->shard[i]->rwsem, class_id);
	}
	return s;
}

static inline void rmap_shards_free(struct rmap_shards *s)
{
	for (uint32_t i = 0; i < s->nr; i++)
		emu_free(s->shard[i]);
	emu_free(s);
}

static inline struct interval_tree_root *rmap_shard_tree(struct rmap_shards *s, struct vm_area_struct *vma)
{
	return &s->shard[vma->i_mmap_index]->tree;
}

/*
 * As in rmap_ops; `index` is the shard of new VMAs, all of which go in under one hold of its lock. Of forked ones, neighbours
 * whose parents are in one shard do.
 */
static inline void rmap_shards_insert(struct rmap_shards *s, struct vm_area_struct **vmas, struct vm_area_struct **prevs,
				      uint32_t n, uint32_t index)
{
	if (!prevs) {
		for (uint32_t i = 0; i < n; i++)
			vmas[i]->i_mmap_index = index;
		down_write(&s->shard[index]->rwsem);
		for (uint32_t i = 0; i < n; i++)
			i_mmap_tree_insert(&s->shard[index]->tree, vmas[i]);
		up_write(&s->shard[index]->rwsem);
		return;
	}
	for (uint32_t i = 0, end; i < n; i = end) {
		struct rmap_shard *shard;

		index = prevs[i]->i_mmap_index;
		shard = s->shard[index];
		end = i;
		do
			vmas[end]->i_mmap_index = index;
		while (++end < n && prevs[end]->i_mmap_index == index);
		down_write(&shard->rwsem);
		for (; i < end; i++)
			i_mmap_tree_insert_after(&shard->tree, vmas[i], prevs[i]);
		up_write(&shard->rwsem);
	}
}

/* Neighbours in the batch that are in one shard leave it under one hold of its lock. */
static inline void rmap_shards_remove(struct rmap_shards *s, struct vm_area_struct **vmas, uint32_t n)
{
	for (uint32_t i = 0; i < n;) {
		uint32_t index = vmas[i]->i_mmap_index;

		down_write(&s->shard[index]->rwsem);
		while (i < n && vmas[i]->i_mmap_index == index)
			i_mmap_tree_remove(&s->shard[index]->tree, vmas[i++]);
		up_write(&s->shard[index]->rwsem);
	}
}

static inline void rmap_shards_prepare(struct rmap_shards *s, struct vma_prepare *vp)
{
	uint32_t trees[VMA_PREPARE_MAX], n;

	if (vp->insert)
		vp->insert->i_mmap_index = vp->vma->i_mmap_index;
	n = vma_prepare_trees(vp, trees);
	for (uint32_t i = 0; i < n; i++)
		down_write(&s->shard[trees[i]]->rwsem);
	i_mmap_tree_remove(rmap_shard_tree(s, vp->vma), vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(rmap_shard_tree(s, vp->adj_next), vp->adj_next);
	if (vp->insert)
		i_mmap_tree_insert(rmap_shard_tree(s, vp->insert), vp->insert);
}

static inline void rmap_shards_complete(struct rmap_shards *s, struct vma_prepare *vp)
{
	uint32_t trees[VMA_PREPARE_MAX], n = vma_prepare_trees(vp, trees);

	if (vp->adj_next)
		i_mmap_tree_insert(rmap_shard_tree(s, vp->adj_next), vp->adj_next);
	i_mmap_tree_insert(rmap_shard_tree(s, vp->vma), vp->vma);
	if (vp->remove)
		i_mmap_tree_remove(rmap_shard_tree(s, vp->remove), vp->remove);
	if (vp->remove2)
		i_mmap_tree_remove(rmap_shard_tree(s, vp->remove2), vp->remove2);
	while (n--)
		up_write(&s->shard[trees[n]]->rwsem);
}

/* The caller keeps modifiers out of all shards. */
static inline int rmap_shards_walk(struct rmap_shards *s, uint64_t first, uint64_t last, rmap_walk_fn fn, void *arg)
{
	int ret = 0;

	for (uint32_t i = 0; i < s->nr && !ret; i++)
		ret = i_mmap_tree_walk(&s->shard[i]->tree, first, last, fn, arg);
	return ret;
}

/* A walk as in rmap_ops, for designs that have no lock but the shards'. */
static inline int rmap_shards_walk_locked(struct rmap_shards *s, uint64_t first, uint64_t last, bool try_lock,
					  rmap_walk_fn fn, void *arg)
{
	uint32_t locked = 0;
	int ret = 0;

	for (; locked < s->nr; locked++) {
		if (!try_lock) {
			down_read(&s->shard[locked]->rwsem);
		} else if (!down_read_trylock(&s->shard[locked]->rwsem)) {
			ret = -EAGAIN;
			break;
		}
	}
	if (!ret)
		ret = rmap_shards_walk(s, first, last, fn, arg);
	while (locked--)
		up_read(&s->shard[locked]->rwsem);
	return ret;
}

/* Without any lock. False says nothing: a VMA may be between prepare and complete, or one came and another went. */
static inline bool rmap_shards_in_use(const struct rmap_shards *s)
{
	for (uint32_t i = 0; i < s->nr; i++)
		if (!i_mmap_tree_empty(&s->shard[i]->tree))
			return true;
	return false;
}

#endif
