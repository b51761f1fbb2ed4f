/* SPDX-License-Identifier: MIT */
/*
 * walk.c - truncate, reclaim and migration of a file's pages (see walk.h).
 *
 * As in the kernel a walker holds the rmap design's lock over the whole walk, and each page table's for its part.
 * Truncate makes one walk where the kernel makes two: its second catches faults that raced with the first, and here
 * taken pages keep those out. What the kernel does to the pages themselves is not emulated.
 */
#include "walk.h"
#include "internal.h"

#include <errno.h>

/*
 * A fault that already looked, with ptl held, has mapped its page when the walk gets ptl; one that looks later finds the
 * pages taken (see upper_entry_get()). taken_end last: alone it makes the range non-empty.
 */
static void lock_pages(struct address_space *mapping, uint64_t first, uint64_t last)
{
	atomic_store_explicit(&mapping->taken_first, first, memory_order_seq_cst);
	atomic_store_explicit(&mapping->taken_end, last + 1, memory_order_seq_cst);
}

static void unlock_pages(struct address_space *mapping)
{
	atomic_store_explicit(&mapping->taken_end, 0, memory_order_seq_cst);
}

static int unmap_one(struct vm_area_struct *vma, void *arg)
{
	struct emu_walk *walk = arg;

	walk->vmas++;
	walk->pages += unmap_file_pages(vma, walk->first, walk->last, walk->kind == EMU_WALK_TRUNCATE);
	return 0;
}

static int to_migration_one(struct vm_area_struct *vma, void *arg)
{
	struct emu_walk *walk = arg;

	walk->vmas++;
	walk->pages += set_migration_ptes(vma, walk->first, walk->last);
	return 0;
}

static int from_migration_one(struct vm_area_struct *vma, void *arg)
{
	struct emu_walk *walk = arg;
	uint32_t generation = atomic_load_explicit(&walk->mapping->generation, memory_order_relaxed);

	remove_migration_ptes(vma, walk->first, walk->last, generation);
	return 0;
}

static EMU_NOINLINE int unmap_mapping_range(struct emu_walk *walk)
{
	EMU_CALL_SITE();

	return emu_rmap->walk(walk->mapping, walk->first, walk->last, false, unmap_one, walk);
}

static EMU_NOINLINE int try_to_unmap(struct emu_walk *walk)
{
	EMU_CALL_SITE();

	return emu_rmap->walk(walk->mapping, walk->first, walk->last, true, unmap_one, walk);
}

static EMU_NOINLINE int migrate_pages(struct emu_walk *walk)
{
	EMU_CALL_SITE();
	int err = emu_rmap->walk(walk->mapping, walk->first, walk->last, false, to_migration_one, walk);

	if (err)
		return err;
	atomic_fetch_add_explicit(&walk->mapping->generation, 1, memory_order_seq_cst);
	return emu_rmap->walk(walk->mapping, walk->first, walk->last, false, from_migration_one, walk);
}

int emu_walk(struct emu_walk *walk)
{
	struct address_space *mapping = walk->mapping;
	uint64_t start_ns = emu_clock_ns();
	int err;

	walk->vmas = walk->pages = 0;
	if (walk->kind != EMU_WALK_RECLAIM)
		down_write(&mapping->invalidate_lock);
	else if (!down_write_trylock(&mapping->invalidate_lock))
		return -EAGAIN;
	lock_pages(mapping, walk->first, walk->last);
	switch (walk->kind) {
	case EMU_WALK_RECLAIM:
		err = try_to_unmap(walk);
		break;
	case EMU_WALK_MIGRATE:
		err = migrate_pages(walk);
		break;
	default:
		err = unmap_mapping_range(walk);
	}
	walk->ns = emu_clock_ns() - start_ns;
	if (!err)
		err = walk->taken(walk);
	unlock_pages(mapping);
	up_write(&mapping->invalidate_lock);
	return err;
}
