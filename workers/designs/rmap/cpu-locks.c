/* SPDX-License-Identifier: MIT */
/*
 * cpu-locks - one interval tree and one rwsem per group of CPUs (Guzik: partition by a number of cores, not by node).
 *
 * As numa-locks, but the groups are `cpus` CPUs with neighbouring numbers each, whatever the nodes are: it helps on one
 * big node too. A VMA stays in the group that mapped it; a forked child and the halves of a split stay with the parent.
 * A change takes the lock of one group, a walker takes all, in order. Unlinking keeps its batch where it can.
 */
#include <emu/rmap_shards.h>

struct cpu_locks {
	struct rmap_shards *groups; /* constant */
};

static uint32_t cpus_per_group = 8;

static const struct emu_param params[] = {
	{ .name = "cpus", .value = &cpus_per_group, .min = 1, .max = 4096,
	  .help = "CPUs that share a tree and its lock" },
	{ 0 },
};

static inline struct rmap_shards *groups_of(struct address_space *mapping)
{
	return rmap_private(mapping, struct cpu_locks)->groups;
}

static void cpu_locks_init(struct address_space *mapping)
{
	uint32_t nr = (emu_nr_cpus() + cpus_per_group - 1) / cpus_per_group;

	rmap_private(mapping, struct cpu_locks)->groups =
		rmap_shards_alloc(nr, lock_class("i_mmap_rwsem", mapping->name));
}

static void cpu_locks_destroy(struct address_space *mapping)
{
	rmap_shards_free(groups_of(mapping));
}

static void cpu_locks_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			     struct vm_area_struct **prevs, uint32_t n)
{
	rmap_shards_insert(groups_of(mapping), vmas, prevs, n, emu_cpu_id() / cpus_per_group);
}

static void cpu_locks_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	rmap_shards_remove(groups_of(mapping), vmas, n);
}

static void cpu_locks_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	rmap_shards_prepare(groups_of(mapping), vp);
}

static void cpu_locks_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	rmap_shards_complete(groups_of(mapping), vp);
}

static int cpu_locks_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
			  void *arg)
{
	return rmap_shards_walk_locked(groups_of(mapping), first, last, try_lock, fn, arg);
}

static bool cpu_locks_mapped(struct address_space *mapping)
{
	return rmap_shards_in_use(groups_of(mapping)) ||
	       cpu_locks_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "cpu-locks",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct cpu_locks),
	.params = params,
	.init = cpu_locks_init,
	.destroy = cpu_locks_destroy,
	.insert = cpu_locks_insert,
	.remove = cpu_locks_remove,
	.prepare = cpu_locks_prepare,
	.complete = cpu_locks_complete,
	.walk = cpu_locks_walk,
	.mapped = cpu_locks_mapped,
};
