/* SPDX-License-Identifier: MIT */
/*
 * stat.c - lock classes, timed holds and the call-site trie (see emu/stat.h).
 */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of a CPU's statistics: a place for each mode and call site, and entries for about a quarter of them. */
#define BYTES_A_CLASS 5120u

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

uint64_t emu_lock_stats_bytes(uint32_t max_classes)
{
	return (uint64_t)max_classes * BYTES_A_CLASS;
}

static uint32_t nr_places(uint32_t max_classes)
{
	return max_classes * LOCK_MODES * EMU_SITES_MAX;
}

static uint64_t bytes_of_places(uint32_t max_classes)
{
	return emu_whole_lines(offsetof(struct lock_stat_table, at) +
			       (uint64_t)nr_places(max_classes) * sizeof(uint16_t));
}

/* How many entries a table has, but for that of no place. */
static uint32_t nr_entries(uint32_t max_classes)
{
	uint64_t room = emu_lock_stats_bytes(max_classes) - bytes_of_places(max_classes);
	uint64_t nr = room / sizeof(struct lock_stat) - 1;

	return nr < UINT16_MAX ? (uint32_t)nr : UINT16_MAX;
}

/* All CPUs' places come first, since nearly all of the entries' memory is never touched. */
struct lock_stat_table *emu_lock_stats_of(char *tables, uint32_t cpu, uint32_t nr_cpus, uint32_t max_classes)
{
	uint64_t of_places = bytes_of_places(max_classes);
	uint64_t of_entries = emu_lock_stats_bytes(max_classes) - of_places;
	struct lock_stat_table *table = (void *)(tables + cpu * of_places);

	table->used = (void *)(tables + nr_cpus * of_places + cpu * of_entries);
	return table;
}

struct lock_stat *lock_stat_first_use(struct task_struct *task, uint32_t place)
{
	struct lock_stat_table *table = task->lock_stats;
	uint32_t at = atomic_load_explicit(&table->nr_used, memory_order_relaxed) + 1;

	if (at > nr_entries(emu_arena->max_classes))
		emu_fail("locks were taken at more than %u pairs of lock class and call site", at - 1);
	table->used[at].place = place;
	table->at[place] = (uint16_t)at;
	/* Release: emu_lock_waits() looks while we run. */
	atomic_store_explicit(&table->nr_used, at, memory_order_release);
	return &table->used[at];
}

/* The number of used entries of a table, all of which have a place; -1: it is damaged. */
static int64_t nr_used(const struct lock_stat_table *table)
{
	uint32_t nr = atomic_load_explicit(&table->nr_used, memory_order_acquire);

	if (nr > nr_entries(emu_arena->max_classes))
		return -1;
	for (uint32_t at = 1; at <= nr; at++)
		if (table->used[at].place >= nr_places(emu_arena->max_classes))
			return -1;
	return nr;
}

void emu_lock_stats_clear(struct task_struct *task)
{
	struct lock_stat_table *table = task->lock_stats;
	int64_t nr = nr_used(table);

	if (nr < 0) {
		memset(table->at, 0, (uint64_t)nr_places(emu_arena->max_classes) * sizeof(*table->at));
		nr = nr_entries(emu_arena->max_classes);
	} else {
		for (int64_t at = 1; at <= nr; at++)
			table->at[table->used[at].place] = 0;
	}
	memset(table->used, 0, (uint64_t)(nr + 1) * sizeof(*table->used));
	atomic_store_explicit(&table->nr_used, 0, memory_order_relaxed);
}

/* Weak, as its other half: the exploring machine watches locks itself. */
__attribute__((weak)) EMU_NOINLINE void lock_stat_hold_begin(struct task_struct *task, struct lock_stat *stat,
							     const void *lock)
{
	uint32_t class_id = lock_stat_class(stat);

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
			uint32_t class_id = lock_stat_class(stat);

			emu_machine_held(lock, class_id, stat->place % EMU_SITES_MAX, task->holds[i].since_ns);
			lock_stat_time(emu_clock_ns() - task->holds[i].since_ns, ++stat->hold_samples, &stat->hold_ns,
				       &stat->hold_min_ns, &stat->hold_max_ns);
			emu_machine_lock_held(class_id, false);
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
	return site_path(emu_arena->cpus[cpu].counter->sites, cpu, site, buf, size);
}

/* Of all CPUs together: what emu_lock_stats() found last. */
static struct lock_stat *all_stats; /* [max_classes][LOCK_MODES][EMU_SITES_MAX] */
static struct emu_site all_sites[EMU_SITES_MAX];

static void add_lock_stat(const struct lock_stat *stat, uint32_t site)
{
	struct lock_stat *sum = &all_stats[stat->place / EMU_SITES_MAX * EMU_SITES_MAX + site];

	if (stat->contended && (!sum->contended || stat->wait_min_ns < sum->wait_min_ns))
		sum->wait_min_ns = stat->wait_min_ns;
	if (stat->wait_max_ns > sum->wait_max_ns)
		sum->wait_max_ns = stat->wait_max_ns;
	if (stat->hold_samples && (!sum->hold_samples || stat->hold_min_ns < sum->hold_min_ns))
		sum->hold_min_ns = stat->hold_min_ns;
	if (stat->hold_max_ns > sum->hold_max_ns)
		sum->hold_max_ns = stat->hold_max_ns;
	sum->acquired += stat->acquired;
	sum->contended += stat->contended;
	sum->wait_ns += stat->wait_ns;
	sum->hold_ns += stat->hold_ns;
	sum->hold_samples += stat->hold_samples;
}

/* Adds a CPU's. A site is entered after the one that it is below, so one pass finds where each belongs. */
static int add_lock_stats(uint32_t nr)
{
	const struct emu_cpu *cpu = &emu_arena->cpus[nr];
	const struct lock_stat_table *table = cpu->task.lock_stats;
	int64_t nr_stats = nr_used(table);
	uint32_t site_of[EMU_SITES_MAX] = { 0 };

	if (nr_stats < 0)
		return emu_set_error(-EINVAL, "the lock statistics of CPU %u are damaged", nr);
	if (cpu->sites[0].parent >= EMU_SITES_MAX)
		return damaged_sites(nr);
	for (uint32_t id = 1; id <= cpu->sites[0].parent; id++) {
		if (cpu->sites[id].parent >= id)
			return damaged_sites(nr);
		site_of[id] = site_below(all_sites, site_of[cpu->sites[id].parent], cpu->sites[id].function);
	}
	for (int64_t at = 1; at <= nr_stats; at++)
		add_lock_stat(&table->used[at], site_of[table->used[at].place % EMU_SITES_MAX]);
	return 0;
}

struct lock_stat *emu_lock_stats(void)
{
	free(all_stats);
	all_stats = calloc(nr_places(emu_arena->max_classes), sizeof(*all_stats));
	memset(all_sites, 0, sizeof(all_sites));
	if (!all_stats) {
		emu_set_error(-ENOMEM, "no memory for the statistics of %u lock classes", emu_arena->max_classes);
		return NULL;
	}
	for (uint32_t nr = 0; nr < emu_arena->config.nr_cpus; nr++)
		if (emu_is_counter(&emu_arena->cpus[nr]) && add_lock_stats(nr))
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
		const struct emu_cpu *cpu = &emu_arena->cpus[nr];
		const struct lock_stat_table *table = cpu->task.lock_stats;
		int64_t nr_stats = emu_is_counter(cpu) ? nr_used(table) : 0;

		for (int64_t at = 1; at <= nr_stats; at++)
			if (lock_stat_class(&table->used[at]) < nr_classes)
				wait_ns[lock_stat_class(&table->used[at])] += table->used[at].wait_ns;
	}
}
