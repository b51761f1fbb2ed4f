/* SPDX-License-Identifier: MIT */
/*
 * exclude - flagged files are in no tree at all; the others are as in `single` (Liu's RMAP_EXCLUDE, April 2026).
 *
 * Flagged, for a file's life and by its name: shared libraries, that is names with ".so" at the end or before a dot
 * (libc.so.6, ld-linux-x86-64.so.2); or all files, with files=all.
 *
 * What that loses. A walk of a flagged file finds nobody, so it is refused with -EOPNOTSUPP before the first callback:
 * such a file cannot be truncated, its mapped pages cannot be reclaimed, migrated, or write-protected for writeback.
 * What stays right: mapped(). Each CPU counts the VMAs that it linked and those that it unlinked, on a line of its own,
 * because one counter for all would be as hot as the lock that this design avoids.
 */
#include <emu/rmap.h>

#include <errno.h>
#include <string.h>

/* One CPU's. Neither ever falls. */
struct cpu_counts {
	__cacheline_aligned _Atomic uint64_t linked;
	_Atomic uint64_t unlinked;
};

struct exclude {
	struct rw_semaphore i_mmap_rwsem;

	struct interval_tree_root i_mmap;
	struct cpu_counts *counts; /* [emu_nr_cpus()], constant; NULL: the file is not flagged */
};

enum { FILES_LIBS, FILES_ALL };

static const char *const files_names[] = { "libs", "all" };
static uint32_t files = FILES_LIBS;

static const struct emu_param params[] = {
	{ .name = "files", .value = &files, .max = FILES_ALL, .values = files_names,
	  .help = "what is kept out of the trees: libs (names with .so) or all" },
	{ 0 },
};

static bool is_library(const char *name)
{
	for (const char *so = strstr(name, ".so"); so; so = strstr(so + 1, ".so"))
		if (so[3] == '\0' || so[3] == '.')
			return true;
	return false;
}

static void exclude_init(struct address_space *mapping)
{
	struct exclude *e = rmap_private(mapping, struct exclude);

	init_rwsem(&e->i_mmap_rwsem, lock_class("i_mmap_rwsem", mapping->name));
	e->i_mmap = (struct interval_tree_root){ 0 };
	e->counts = NULL;
	if (files == FILES_ALL || is_library(mapping->name))
		e->counts = emu_zalloc(emu_nr_cpus() * sizeof(e->counts[0]), emu_node_id());
}

static void exclude_destroy(struct address_space *mapping)
{
	emu_free(rmap_private(mapping, struct exclude)->counts);
}

/* Of a flagged file. Only this CPU writes its counts, one task at a time; release, for sum() and what is said there. */
static void count(_Atomic uint64_t *counter, uint64_t n)
{
	emu_preempt_disable();
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_release);
	emu_preempt_enable();
}

static inline struct cpu_counts *counts_here(struct exclude *e)
{
	return &e->counts[emu_cpu_id()];
}

static void exclude_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			   struct vm_area_struct **prevs, uint32_t n)
{
	struct exclude *e = rmap_private(mapping, struct exclude);

	if (e->counts) {
		count(&counts_here(e)->linked, n);
		return;
	}
	down_write(&e->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_insert_after(&e->i_mmap, vmas[i], prevs ? prevs[i] : NULL);
	up_write(&e->i_mmap_rwsem);
}

static void exclude_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct exclude *e = rmap_private(mapping, struct exclude);

	if (e->counts) {
		count(&counts_here(e)->unlinked, n);
		return;
	}
	down_write(&e->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++)
		i_mmap_tree_remove(&e->i_mmap, vmas[i]);
	up_write(&e->i_mmap_rwsem);
}

static void exclude_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct exclude *e = rmap_private(mapping, struct exclude);

	if (e->counts) {
		if (vp->insert)
			count(&counts_here(e)->linked, 1);
		return;
	}
	down_write(&e->i_mmap_rwsem);
	i_mmap_tree_remove(&e->i_mmap, vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(&e->i_mmap, vp->adj_next);
	if (vp->insert)
		i_mmap_tree_insert(&e->i_mmap, vp->insert);
}

static void exclude_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct exclude *e = rmap_private(mapping, struct exclude);

	if (e->counts) {
		if (vp->remove)
			count(&counts_here(e)->unlinked, vp->remove2 ? 2 : 1);
		return;
	}
	if (vp->adj_next)
		i_mmap_tree_insert(&e->i_mmap, vp->adj_next);
	i_mmap_tree_insert(&e->i_mmap, vp->vma);
	if (vp->remove)
		i_mmap_tree_remove(&e->i_mmap, vp->remove);
	if (vp->remove2)
		i_mmap_tree_remove(&e->i_mmap, vp->remove2);
	up_write(&e->i_mmap_rwsem);
}

static int exclude_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
			void *arg)
{
	struct exclude *e = rmap_private(mapping, struct exclude);
	int ret;

	if (e->counts)
		return -EOPNOTSUPP;
	if (!try_lock)
		down_read(&e->i_mmap_rwsem);
	else if (!down_read_trylock(&e->i_mmap_rwsem))
		return -EAGAIN;
	ret = i_mmap_tree_walk(&e->i_mmap, first, last, fn, arg);
	up_read(&e->i_mmap_rwsem);
	return ret;
}

/*
 * Over all CPUs. Acquire: who sees that a VMA was unlinked here sees, from then on, that it was linked on whatever CPU;
 * and what is summed later is not read earlier.
 */
static uint64_t sum(struct exclude *e, bool linked)
{
	uint64_t total = 0;

	for (uint32_t cpu = 0; cpu < emu_nr_cpus(); cpu++)
		total += atomic_load_explicit(linked ? &e->counts[cpu].linked : &e->counts[cpu].unlinked,
					      memory_order_acquire);
	return total;
}

/*
 * Sums take time, and counts never fall. Think of the moment between two sums: the one before it is at most what the
 * count was then, the one after it at least. So with more links before it than unlinks after it the file was mapped at
 * that moment, and with as many unlinks before it as links after it it was not. Neither: counts changed, look again.
 */
static bool excluded_file_mapped(struct exclude *e)
{
	uint64_t linked = sum(e, true);

	for (;;) {
		uint64_t unlinked = sum(e, false);

		if (linked > unlinked)
			return true;
		linked = sum(e, true);
		if (linked == unlinked)
			return false;
	}
}

static bool exclude_mapped(struct address_space *mapping)
{
	struct exclude *e = rmap_private(mapping, struct exclude);

	if (e->counts)
		return excluded_file_mapped(e);
	return !i_mmap_tree_empty(&e->i_mmap) || exclude_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "exclude",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct exclude),
	.params = params,
	.init = exclude_init,
	.destroy = exclude_destroy,
	.insert = exclude_insert,
	.remove = exclude_remove,
	.prepare = exclude_prepare,
	.complete = exclude_complete,
	.walk = exclude_walk,
	.mapped = exclude_mapped,
};
