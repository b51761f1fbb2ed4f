/* SPDX-License-Identifier: MIT */
/*
 * stat.c - lock classes, timed holds and the call-site trie (see emu/stat.h).
 */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

uint32_t lock_class(const char *name, const char *file)
{
	struct emu_arena *arena = emu_arena;
	struct emu_class wanted;
	uint32_t id;

	memset(&wanted, 0, sizeof(wanted));
	snprintf(wanted.name, sizeof(wanted.name), "%s", name);
	snprintf(wanted.file, sizeof(wanted.file), "%s", file ? file : "");
	emu_raw_lock(&arena->class_lock);
	for (id = 1; id < arena->nr_classes; id++)
		if (!memcmp(&arena->classes[id], &wanted, sizeof(wanted)))
			break;
	if (id == arena->nr_classes && id < arena->max_classes) {
		arena->classes[id] = wanted;
		arena->nr_classes++;
	}
	emu_raw_unlock(&arena->class_lock);
	if (id == arena->max_classes)
		emu_fail("more than %u lock classes: a design calls lock_class() with ever new names", id - 1);
	return id;
}

static uint32_t class_of(const struct task_struct *task, const struct lock_stat *stat)
{
	return (uint32_t)((uint64_t)(stat - task->lock_stats) / EMU_SITES_MAX);
}

/* Weak, as its other half: the exploring machine watches locks itself. */
__attribute__((weak)) EMU_NOINLINE void lock_stat_hold_begin(struct task_struct *task, struct lock_stat *stat,
							     const void *lock)
{
	uint32_t class_id = class_of(task, stat);

	emu_machine_lock_seen(lock, class_id);
	for (uint32_t i = 0; i < EMU_HOLDS; i++) {
		if (!task->holds[i].lock) {
			task->holds[i] = (struct emu_hold){ lock, stat, emu_clock_ns() };
			emu_machine_lock_held(class_id, true);
			return;
		}
	}
}

__attribute__((weak)) EMU_NOINLINE void lock_stat_hold_end(struct task_struct *task, const void *lock)
{
	for (uint32_t i = 0; i < EMU_HOLDS; i++) {
		if (task->holds[i].lock == lock) {
			struct lock_stat *stat = task->holds[i].stat;
			uint32_t at = (uint32_t)(stat - task->lock_stats);

			emu_machine_held(lock, at / EMU_SITES_MAX, at % EMU_SITES_MAX, task->holds[i].since_ns);
			stat->hold_ns += emu_clock_ns() - task->holds[i].since_ns;
			stat->hold_samples++;
			emu_machine_lock_held(class_of(task, stat), false);
			/* Close the gap: lock_stat_release() looks at the first slot only. */
			for (; i + 1 < EMU_HOLDS; i++)
				task->holds[i] = task->holds[i + 1];
			task->holds[i].lock = NULL;
			return;
		}
	}
}

uint32_t emu_site_enter(const char *function)
{
	struct emu_site *sites = current->sites;
	uint32_t here = current->site;
	uint32_t id;

	for (id = sites[here].child; id; id = sites[id].sibling)
		if (sites[id].function == function)
			break;
	if (unlikely(!id)) {
		/* sites[0].parent counts the nodes in use: the root has no parent. A full trie stays where it is. */
		if (sites[0].parent + 1 == EMU_SITES_MAX)
			return here;
		id = ++sites[0].parent;
		sites[id] = (struct emu_site){ function, here, 0, sites[here].child };
		sites[here].child = id;
	}
	current->site = id;
	return here;
}

struct lock_stat *emu_cpu_lock_stats(uint32_t cpu)
{
	return emu_arena->lock_stats + (uint64_t)cpu * emu_arena->max_classes * EMU_SITES_MAX;
}

uint32_t emu_nr_lock_classes(void)
{
	return emu_arena->nr_classes;
}

int emu_lock_class_name(uint32_t class_id, const char **name, const char **file)
{
	if (!class_id || class_id >= emu_arena->nr_classes)
		return emu_set_error(-EINVAL, "no lock class %u", class_id);
	*name = emu_arena->classes[class_id].name;
	*file = emu_arena->classes[class_id].file;
	return 0;
}

int emu_cpu_site_path(uint32_t cpu, uint32_t site, char *buf, size_t size)
{
	const struct emu_site *sites = emu_arena->cpus[cpu].sites;
	uint32_t path[EMU_SITES_MAX];
	uint32_t depth = 0;
	size_t used = 0;

	if (site >= EMU_SITES_MAX || !size)
		return emu_set_error(-EINVAL, "no call site %u", site);
	buf[0] = '\0';
	for (; site; site = sites[site].parent) {
		if (site >= EMU_SITES_MAX || depth == EMU_SITES_MAX)
			return emu_set_error(-EINVAL, "the call sites of CPU %u are damaged", cpu);
		path[depth++] = site;
	}
	while (depth--) {
		int n = snprintf(buf + used, size - used, "%s%s", sites[path[depth]].function, depth ? ">" : "");

		if (n < 0 || used + (size_t)n >= size)
			return emu_set_error(-ENAMETOOLONG, "the path of call site %u is too long", site);
		used += (size_t)n;
	}
	return (int)used;
}
