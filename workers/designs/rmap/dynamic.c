/* SPDX-License-Identifier: MIT */
/*
 * dynamic - `single` until a file proves contended, then `outer-inner` for the rest of its life (Guzik: files that are
 * rarely used must cost nothing).
 *
 * Modifiers try the lock first and count the times they had to wait. Whoever makes the count pass `threshold` has the
 * lock for writing and converts: the VMAs move to shards in order, an equal run to each, so that a walk meets them in
 * the same order as before. Then it and all who waited behind it go on as modifiers of a sharded file.
 *
 * The lock stays the same, its meaning turns round:
 *                 before                after
 *   modifier      for write             for read, and the lock of the shard
 *   walker        for read              for write
 * Nobody may rely on what `shards` said before he had the lock, so everybody looks again; while the lock is held, for
 * read or for write, it does not change but by its holder for writing.
 */
#include <emu/rmap_shards.h>

struct dynamic {
	struct rw_semaphore rwsem;

	/* Under rwsem: the tree until there are shards, empty from then on. */
	__cacheline_aligned struct interval_tree_root tree;
	_Atomic uint32_t contended;
	/* NULL, once converted constant. Changed under rwsem, looked at without. */
	struct rmap_shards *_Atomic shards;
};

static uint32_t threshold = 4, nr_shards = 64;

static const struct emu_param params[] = {
	{ .name = "threshold", .value = &threshold, .max = 1000000000,
	  .help = "contended modifications of a file before one more converts it" },
	{ .name = "shards", .value = &nr_shards, .min = 1, .max = 4096,
	  .help = "trees with a lock each, once converted" },
	{ 0 },
};

static void dynamic_init(struct address_space *mapping)
{
	struct dynamic *d = rmap_private(mapping, struct dynamic);

	init_rwsem(&d->rwsem, lock_class("i_mmap_rwsem", mapping->name));
	d->tree = (struct interval_tree_root){ 0 };
	atomic_init(&d->contended, 0);
	atomic_init(&d->shards, NULL);
}

/* Acquire, for those who have no lock yet: pairs with the release in convert(). */
static inline struct rmap_shards *shards_of(struct dynamic *d)
{
	return atomic_load_explicit(&d->shards, memory_order_acquire);
}

static void dynamic_destroy(struct address_space *mapping)
{
	struct rmap_shards *shards = shards_of(rmap_private(mapping, struct dynamic));

	if (shards)
		rmap_shards_free(shards);
}

static int count_one(struct vm_area_struct *vma, void *arg)
{
	(void)vma;
	++*(uint64_t *)arg;
	return 0;
}

/* rwsem is held for writing. Other processes' VMAs are changed too: nobody reads i_mmap_index without rwsem. */
static void convert(struct address_space *mapping, struct dynamic *d)
{
	struct rmap_shards *shards = rmap_shards_alloc(nr_shards, lock_class("i_mmap_shard", mapping->name));
	struct interval_tree_node *node, *next;
	uint64_t n = 0, i = 0;

	i_mmap_tree_walk(&d->tree, 0, UINT64_MAX, count_one, &n);
	for (node = interval_tree_iter_first(&d->tree, 0, UINT64_MAX); node; node = next) {
		struct vm_area_struct *vma = vma_of(node);

		next = interval_tree_iter_next(node, 0, UINT64_MAX);
		i_mmap_tree_remove(&d->tree, vma);
		vma->i_mmap_index = (uint32_t)(i++ * shards->nr / n);
		i_mmap_tree_insert(rmap_shard_tree(shards, vma), vma);
	}
	atomic_store_explicit(&d->shards, shards, memory_order_release);
}

/*
 * Takes rwsem as a modifier needs it. Returns the shards with rwsem held for reading, or NULL with rwsem held for
 * writing and all VMAs in the tree.
 */
static struct rmap_shards *lock_to_modify(struct address_space *mapping, struct dynamic *d)
{
	if (likely(shards_of(d))) {
		down_read(&d->rwsem);
		return shards_of(d);
	}
	if (!down_write_trylock(&d->rwsem)) {
		/* Relaxed: only a number. */
		atomic_fetch_add_explicit(&d->contended, 1, memory_order_relaxed);
		down_write(&d->rwsem);
	}
	if (!shards_of(d)) {
		if (atomic_load_explicit(&d->contended, memory_order_relaxed) <= threshold)
			return NULL;
		convert(mapping, d);
	}
	downgrade_write(&d->rwsem);
	return shards_of(d);
}

static void unlock_modified(struct dynamic *d, struct rmap_shards *shards)
{
	if (shards)
		up_read(&d->rwsem);
	else
		up_write(&d->rwsem);
}

static void dynamic_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			   struct vm_area_struct **prevs, uint32_t n)
{
	struct dynamic *d = rmap_private(mapping, struct dynamic);
	struct rmap_shards *shards = lock_to_modify(mapping, d);

	if (shards)
		rmap_shards_insert(shards, vmas, prevs, n,
				   prevs ? 0 : rmap_shards_choose(shards, RMAP_SHARDS_BY_CPU, mapping, vmas[0]));
	else
		for (uint32_t i = 0; i < n; i++)
			i_mmap_tree_insert_after(&d->tree, vmas[i], prevs ? prevs[i] : NULL);
	unlock_modified(d, shards);
}

static void dynamic_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct dynamic *d = rmap_private(mapping, struct dynamic);
	struct rmap_shards *shards = lock_to_modify(mapping, d);

	if (shards)
		rmap_shards_remove(shards, vmas, n);
	for (uint32_t i = 0; i < n && !shards; i++)
		i_mmap_tree_remove(&d->tree, vmas[i]);
	unlock_modified(d, shards);
}

static void dynamic_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct dynamic *d = rmap_private(mapping, struct dynamic);
	struct rmap_shards *shards = lock_to_modify(mapping, d);

	if (shards) {
		rmap_shards_prepare(shards, vp);
		return;
	}
	i_mmap_tree_remove(&d->tree, vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(&d->tree, vp->adj_next);
	if (vp->insert)
		i_mmap_tree_insert(&d->tree, vp->insert);
}

static void dynamic_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	struct dynamic *d = rmap_private(mapping, struct dynamic);
	/* Held since prepare: what was so then is so now. */
	struct rmap_shards *shards = shards_of(d);

	if (shards) {
		rmap_shards_complete(shards, vp);
	} else {
		if (vp->adj_next)
			i_mmap_tree_insert(&d->tree, vp->adj_next);
		i_mmap_tree_insert(&d->tree, vp->vma);
		if (vp->remove)
			i_mmap_tree_remove(&d->tree, vp->remove);
		if (vp->remove2)
			i_mmap_tree_remove(&d->tree, vp->remove2);
	}
	unlock_modified(d, shards);
}

static bool lock_to_walk(struct dynamic *d, bool for_write, bool try_lock)
{
	if (try_lock)
		return for_write ? down_write_trylock(&d->rwsem) : down_read_trylock(&d->rwsem);
	if (for_write)
		down_write(&d->rwsem);
	else
		down_read(&d->rwsem);
	return true;
}

static int dynamic_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
			void *arg)
{
	struct dynamic *d = rmap_private(mapping, struct dynamic);
	struct rmap_shards *shards;
	int ret;

	for (;;) {
		shards = shards_of(d);
		if (!lock_to_walk(d, shards != NULL, try_lock))
			return -EAGAIN;
		if (shards == shards_of(d))
			break;
		/* Converted while we waited. That happens once. */
		up_read(&d->rwsem);
	}
	if (shards) {
		ret = rmap_shards_walk(shards, first, last, fn, arg);
		up_write(&d->rwsem);
	} else {
		ret = i_mmap_tree_walk(&d->tree, first, last, fn, arg);
		up_read(&d->rwsem);
	}
	return ret;
}

static bool dynamic_mapped(struct address_space *mapping)
{
	struct dynamic *d = rmap_private(mapping, struct dynamic);
	struct rmap_shards *shards = shards_of(d);

	return (shards ? rmap_shards_in_use(shards) : !i_mmap_tree_empty(&d->tree)) ||
	       dynamic_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}

EMU_EXPORT const struct rmap_ops emu_rmap_ops = {
	.name = "dynamic",
	.version = EMU_RMAP_VERSION,
	.machine = EMU_MACHINE_ID,
	.size = sizeof(struct dynamic),
	.params = params,
	.init = dynamic_init,
	.destroy = dynamic_destroy,
	.insert = dynamic_insert,
	.remove = dynamic_remove,
	.prepare = dynamic_prepare,
	.complete = dynamic_complete,
	.walk = dynamic_walk,
	.mapped = dynamic_mapped,
};
