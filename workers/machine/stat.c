/* SPDX-License-Identifier: MIT */
/*
 * stat.c - lock classes, timed holds and the call-site trie (see emu/stat.h).
 */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
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

void lock_stat_first_use(struct task_struct *task, struct lock_stat *stat)
{
	stat->next_used = task->lock_stats->next_used;
	task->lock_stats->next_used = (uint32_t)(stat - task->lock_stats);
}

/*
 * The entry at `at`; NULL at the end. *left, the size of the table at first, is 0 where the table is damaged: an entry
 * that is not in it, or a list without an end.
 */
static struct lock_stat *used_entry(const struct task_struct *task, uint32_t at, uint64_t *left)
{
	if (!at)
		return NULL;
	if (at >= emu_arena->max_classes * EMU_SITES_MAX || !--*left) {
		*left = 0;
		return NULL;
	}
	return &task->lock_stats[at];
}

static uint64_t table_size(void)
{
	return (uint64_t)emu_arena->max_classes * EMU_SITES_MAX;
}

void emu_lock_stats_clear(struct task_struct *task)
{
	uint64_t left = table_size();
	struct lock_stat *stat;

	while ((stat = used_entry(task, task->lock_stats->next_used, &left))) {
		task->lock_stats->next_used = stat->next_used;
		memset(stat, 0, sizeof(*stat));
	}
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

/* The site of a function that is entered at another one, which is new perhaps. */
static inline uint32_t site_below(struct emu_site *sites, uint32_t here, const char *function)
{
	uint32_t id;

	for (id = sites[here].child; id; id = sites[id].sibling)
		if (sites[id].function == function)
			return id;
	/* sites[0].parent counts the nodes in use: the root has no parent. A full trie stays where it is. */
	if (sites[0].parent + 1 == EMU_SITES_MAX)
		return here;
	id = ++sites[0].parent;
	sites[id] = (struct emu_site){ function, here, 0, sites[here].child };
	sites[here].child = id;
	return id;
}

uint32_t emu_site_enter(const char *function)
{
	uint32_t here = current->site;

	current->site = site_below(current->sites, here, function);
	return here;
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

static int damaged_sites(uint32_t cpu)
{
	return emu_set_error(-EINVAL, "the call sites of CPU %u are damaged", cpu);
}

static int site_path(const struct emu_site *sites, uint32_t cpu, uint32_t site, char *buf, size_t size)
{
	uint32_t path[EMU_SITES_MAX];
	uint32_t depth = 0;
	size_t used = 0;

	if (site >= EMU_SITES_MAX || !size)
		return emu_set_error(-EINVAL, "no call site %u", site);
	buf[0] = '\0';
	for (; site; site = sites[site].parent) {
		if (site >= EMU_SITES_MAX || depth == EMU_SITES_MAX)
			return damaged_sites(cpu);
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

int emu_cpu_site_path(uint32_t cpu, uint32_t site, char *buf, size_t size)
{
	return site_path(emu_arena->cpus[cpu].sites, cpu, site, buf, size);
}

/* Of all CPUs together: what emu_lock_stats() found last. */
static struct lock_stat *all_stats; /* [max_classes][EMU_SITES_MAX] */
static struct emu_site all_sites[EMU_SITES_MAX];

/* Adds a CPU's. A site is entered after the one that it is below, so one pass finds where each belongs. */
static int add_lock_stats(uint32_t nr)
{
	const struct emu_cpu *cpu = &emu_arena->cpus[nr];
	uint64_t left = table_size();
	uint32_t site_of[EMU_SITES_MAX] = { 0 };
	const struct lock_stat *stat;

	if (cpu->sites[0].parent >= EMU_SITES_MAX)
		return damaged_sites(nr);
	for (uint32_t id = 1; id <= cpu->sites[0].parent; id++) {
		if (cpu->sites[id].parent >= id)
			return damaged_sites(nr);
		site_of[id] = site_below(all_sites, site_of[cpu->sites[id].parent], cpu->sites[id].function);
	}
	for (uint32_t at = cpu->task.lock_stats->next_used; (stat = used_entry(&cpu->task, at, &left)); at = stat->next_used) {
		struct lock_stat *sum = &all_stats[at / EMU_SITES_MAX * EMU_SITES_MAX + site_of[at % EMU_SITES_MAX]];

		sum->acquired += stat->acquired;
		sum->contended += stat->contended;
		sum->wait_ns += stat->wait_ns;
		sum->hold_ns += stat->hold_ns;
		sum->hold_samples += stat->hold_samples;
	}
	if (!left)
		return emu_set_error(-EINVAL, "the lock statistics of CPU %u are damaged", nr);
	return 0;
}

struct lock_stat *emu_lock_stats(void)
{
	free(all_stats);
	all_stats = calloc(table_size(), sizeof(*all_stats));
	memset(all_sites, 0, sizeof(all_sites));
	if (!all_stats) {
		emu_set_error(-ENOMEM, "no memory for the statistics of %u lock classes", emu_arena->max_classes);
		return NULL;
	}
	for (uint32_t nr = 0; nr < emu_arena->config.nr_cpus; nr++)
		if (add_lock_stats(nr))
			return NULL;
	return all_stats;
}

int emu_site_path(uint32_t site, char *buf, size_t size)
{
	return site_path(all_sites, 0, site, buf, size);
}

void emu_lock_waits(uint64_t *wait_ns, uint32_t nr_classes)
{
	for (uint32_t nr = 0; nr < emu_arena->config.nr_cpus; nr++) {
		const struct task_struct *task = &emu_arena->cpus[nr].task;
		uint64_t left = table_size();
		const struct lock_stat *stat;

		for (uint32_t at = task->lock_stats->next_used; (stat = used_entry(task, at, &left)); at = stat->next_used)
			if (at / EMU_SITES_MAX < nr_classes)
				wait_ns[at / EMU_SITES_MAX] += stat->wait_ns;
	}
}
