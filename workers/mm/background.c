/* SPDX-License-Identifier: MIT */
/*
 * background.c - the rest of the kernel, as far as CPUs meet in it: see background.h.
 *
 * Which entries there are, how often a call uses each and how long it holds them is data of the workload. Nothing
 * here knows what they stand for.
 */
#include "background.h"

struct background *background_create(const struct emu_background *entry, const char *file, uint32_t lines,
				     uint32_t node)
{
	struct background *b = emu_zalloc(sizeof(*b) + lines * sizeof(b->lines[0]), node);

	b->kind = entry->kind;
	b->nr_lines = lines;
	b->hold_ns = entry->hold_ns;
	b->name = entry->name;
	b->file = file;
	if (entry->kind == EMU_BACKGROUND_RWSEM)
		init_rwsem(&b->sem, lock_class(entry->name, file));
	else if (entry->kind == EMU_BACKGROUND_SPINLOCK)
		spin_lock_init(&b->spin, lock_class(entry->name, file));
	return b;
}

static void change_lines(struct background *b)
{
	for (uint32_t i = 0; i < b->nr_lines; i++)
		b->lines[i].guarded++;
}

static EMU_NOINLINE void add_to_lines(struct background *b)
{
	for (uint32_t i = 0; i < b->nr_lines; i++)
		atomic_fetch_add_explicit(&b->lines[i].shared, 1, memory_order_relaxed);
	emu_compute(b->hold_ns);
}

EMU_NOINLINE void background_use(struct background *b, struct background *inner)
{
	EMU_CALL_SITE();

	if (b->kind == EMU_BACKGROUND_ATOMIC) {
		add_to_lines(b);
		return;
	}
	if (b->kind == EMU_BACKGROUND_RWSEM)
		down_write(&b->sem);
	else
		spin_lock(&b->spin);
	change_lines(b);
	emu_compute(b->hold_ns);
	if (inner)
		background_use(inner, NULL);
	if (b->kind == EMU_BACKGROUND_RWSEM)
		up_write(&b->sem);
	else
		spin_unlock(&b->spin);
}

bool background_has_lines(const struct background *b)
{
	return b->nr_lines > 0;
}

uint64_t background_uses(const struct background *b)
{
	for (uint32_t i = 1; i < b->nr_lines; i++)
		if (b->lines[i].guarded != b->lines[0].guarded)
			return UINT64_MAX;
	return b->nr_lines ? b->lines[0].guarded : 0;
}
