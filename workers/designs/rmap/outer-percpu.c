/* SPDX-License-Identifier: MIT */
/*
 * outer-percpu - as outer-inner, with an outer lock that modifiers do not share (Falcato's further step).
 *
 * A modifier marks its own CPU's counter and takes the lock of the shard that it changes: with a shard a CPU it writes
 * no line that another CPU writes too. A walker raises a flag that keeps new modifiers out and waits until every CPU's
 * counter is zero: it looks at as many lines as there are CPUs. See emu/percpu_rwsem.h.
 */
#include <emu/percpu_rwsem.h>
#include <emu/rmap_shards.h>

struct outer_percpu {
	struct percpu_rwsem outer; /* for read: to change one shard under its own lock; for write: to look at all */
	struct rmap_shards *shards; /* constant */
};

static uint32_t nr_shards = 64, by = RMAP_SHARDS_BY_CPU;

static const struct emu_param params[] = {
	{ .name = "shards", .value = &nr_shards, .min = 1, .max = 4096, .help = "trees with a lock each, per file" },
	{ .name = "by", .value = &by, .max = RMAP_SHARDS_BY_MM, .values = rmap_shards_by_names,
	  .help = "what chooses the tree of a new VMA: cpu, vma or mm" },
	{ 0 },
};

static void outer_percpu_init(struct address_space *mapping)
{
	struct outer_percpu *op = rmap_private(mapping, struct outer_percpu);

	init_percpu_rwsem(&op->outer, lock_class("i_mmap_rwsem", mapping->name));
	op->shards = rmap_shards_alloc(nr_shards, lock_class("i_mmap_shard", mapping->name));
}

static void outer_percpu_destroy(struct address_space *mapping)
{
	struct outer_percpu *op = rmap_private(mapping, struct outer_percpu);

	rmap_shards_free(op->shards);
	destroy_percpu_rwsem(&op->outer);
}

static void outer_percpu_insert(struct address_space *mapping, struct vm_area_struct **vmas,
				struct vm_area_struct **prevs, uint32_t n)
{
	struct outer_percpu *op = rmap_private(mapping, struct outer_percpu);
	/* By VMA, each new one goes where it belongs. */
	uint32_t each = prevs || by != RMAP_SHARDS_BY_VMA ? n : 1;

	percpu_down_read(&op->outer);
	for (uint32_t i = 0; i < n; i += each)
		rmap_shards_insert(op->shards, vmas + i, prevs, each,
				   prevs ? 0 : rmap_shards_choose(op->shards, by, mapping, vmas[i]));
	percpu_up_read(&op->outer);
}

static void outer_percpu_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct outer_percpu *op = rmap_private(mapping, struct outer_percpu);

	percpu_down_read(&op->outer);
	rmap_shards_remove(op->shards, vmas, n);
	percpu_up_read(&op->outer);
}

static void outer_percpu_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct outer_percpu *op = rmap_private(mapping, struct outer_percpu);

	percpu_down_read(&op->outer);
	rmap_shards_prepare(op->shards, vp);
}

static void outer_percpu_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct outer_percpu *op = rmap_private(mapping, struct outer_percpu);

	rmap_shards_complete(op->shards, vp);
	percpu_up_read(&op->outer);
}

static int outer_percpu_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock,
			    rmap_walk_fn fn, void *arg)
{
	struct outer_percpu *op = rmap_private(mapping, struct outer_percpu);
	int ret;

	if (!try_lock)
		percpu_down_write(&op->outer);
	else if (!percpu_down_write_trylock(&op->outer))
		return -EAGAIN;
	ret = rmap_shards_walk(op->shards, first, last, fn, arg);
	percpu_up_write(&op->outer);
	return ret;
}

static bool outer_percpu_mapped(struct address_space *mapping)
{
	return rmap_shards_in_use(rmap_private(mapping, struct outer_percpu)->shards) ||
	       outer_percpu_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "outer-percpu",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct outer_percpu),
	.params = params,
	.init = outer_percpu_init,
	.destroy = outer_percpu_destroy,
	.insert = outer_percpu_insert,
	.remove = outer_percpu_remove,
	.prepare = outer_percpu_prepare,
	.complete = outer_percpu_complete,
	.walk = outer_percpu_walk,
	.mapped = outer_percpu_mapped,
};
