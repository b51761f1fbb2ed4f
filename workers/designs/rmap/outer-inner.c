/* SPDX-License-Identifier: MIT */
/*
 * outer-inner - shards with a lock each, under one rwsem whose meaning is inverted (Guzik's worst case).
 *
 * Modifiers take the outer lock for read and then the lock of the shard that they change: they exclude each other only
 * within a shard, but all of them still write the outer lock's line. A walker takes the outer lock for write and needs
 * nothing else. The shard of a new VMA is chosen by CPU, by VMA or by mm; a forked child and the halves of a split stay
 * in the parent's.
 */
#include <emu/rmap_shards.h>

struct outer_inner {
	struct rw_semaphore outer; /* for read: to change one shard under its own lock; for write: to look at all */
	struct rmap_shards *shards; /* constant */
};

static uint32_t nr_shards = 64, by = RMAP_SHARDS_BY_CPU;

static const struct emu_param params[] = {
	{ .name = "shards", .value = &nr_shards, .min = 1, .max = 4096, .help = "trees with a lock each, per file" },
	{ .name = "by", .value = &by, .max = RMAP_SHARDS_BY_MM, .values = rmap_shards_by_names,
	  .help = "what chooses the tree of a new VMA: cpu, vma or mm" },
	{ 0 },
};

static void outer_inner_init(struct address_space *mapping)
{
	struct outer_inner *oi = rmap_private(mapping, struct outer_inner);

	init_rwsem(&oi->outer, lock_class("i_mmap_rwsem", mapping->name));
	oi->shards = rmap_shards_alloc(nr_shards, lock_class("i_mmap_shard", mapping->name));
}

static void outer_inner_destroy(struct address_space *mapping)
{
	rmap_shards_free(rmap_private(mapping, struct outer_inner)->shards);
}

static void outer_inner_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			       struct vm_area_struct **prevs, uint32_t n)
{
	struct outer_inner *oi = rmap_private(mapping, struct outer_inner);
	/* By VMA, each new one goes where it belongs. */
	uint32_t each = prevs || by != RMAP_SHARDS_BY_VMA ? n : 1;

	down_read(&oi->outer);
	for (uint32_t i = 0; i < n; i += each)
		rmap_shards_insert(oi->shards, vmas + i, prevs, each,
				   prevs ? 0 : rmap_shards_choose(oi->shards, by, mapping, vmas[i]));
	up_read(&oi->outer);
}

static void outer_inner_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct outer_inner *oi = rmap_private(mapping, struct outer_inner);

	down_read(&oi->outer);
	rmap_shards_remove(oi->shards, vmas, n);
	up_read(&oi->outer);
}

static void outer_inner_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct outer_inner *oi = rmap_private(mapping, struct outer_inner);

	down_read(&oi->outer);
	rmap_shards_prepare(oi->shards, vp);
}

static void outer_inner_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct outer_inner *oi = rmap_private(mapping, struct outer_inner);

	rmap_shards_complete(oi->shards, vp);
	up_read(&oi->outer);
}

static int outer_inner_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock,
			    rmap_walk_fn fn, void *arg)
{
	struct outer_inner *oi = rmap_private(mapping, struct outer_inner);
	int ret;

	if (!try_lock)
		down_write(&oi->outer);
	else if (!down_write_trylock(&oi->outer))
		return -EAGAIN;
	ret = rmap_shards_walk(oi->shards, first, last, fn, arg);
	up_write(&oi->outer);
	return ret;
}

static bool outer_inner_mapped(struct address_space *mapping)
{
	return rmap_shards_in_use(rmap_private(mapping, struct outer_inner)->shards) ||
	       outer_inner_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "outer-inner",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct outer_inner),
	.params = params,
	.init = outer_inner_init,
	.destroy = outer_inner_destroy,
	.insert = outer_inner_insert,
	.remove = outer_inner_remove,
	.prepare = outer_inner_prepare,
	.complete = outer_inner_complete,
	.walk = outer_inner_walk,
	.mapped = outer_inner_mapped,
};
