/* SPDX-License-Identifier: MIT */
/*
 * control.c - what the conductor drives: the arena's layout, a cell's life, phases (see emu/control.h).
 */
#include "internal.h"
#include "../mm/background.h"
#include "../mm/internal.h"
#include "../mm/micro.h"
#include "program.h"

#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

/* Where the parts of an arena begin; the same arithmetic tells how large it must be. */
struct layout {
	uint64_t node_of_cpu, penalty_ns, rcu, lock_stats, cpus, pools, files, lists, calls, walkers, classes, end;
	uint64_t backgrounds, background_at, uses, occasions;
	uint32_t max_classes, background_places;
};

/* The conductor's own: emu_arena->cpus as it was before any CPU under test could write over it. */
static struct emu_cpu *all_cpus;

static uint64_t place(uint64_t *at, uint64_t bytes)
{
	uint64_t offset = emu_whole_lines(*at);

	*at = offset + bytes;
	return offset;
}

static struct layout layout_of(const struct emu_config *c)
{
	uint64_t at = sizeof(struct emu_arena);
	uint64_t cpus = c->nr_cpus, nodes = c->nr_nodes;
	struct layout l = { 0 };

	/* A design may have several classes a file; the machine and the mm have a few. */
	l.max_classes = 16 + 4 * (c->nr_files - c->nr_private_files * (c->nr_cpus - 1)) + c->nr_background_classes;
	l.background_places = c->nr_nodes > c->nr_files ? c->nr_nodes : c->nr_files;
	l.node_of_cpu = place(&at, cpus * sizeof(uint32_t));
	l.penalty_ns = place(&at, nodes * nodes * sizeof(uint32_t));
	/* Before the CPUs, on whose page the virtual machine's memory begins: counting, and RCU's, costs nothing there. */
	l.rcu = place(&at, emu_rcu_bytes(c->nr_cpus));
	l.lock_stats = place(&at, cpus * emu_lock_stats_bytes(l.max_classes));
	at = (at + EMU_PAGE_SIZE - 1) & ~(EMU_PAGE_SIZE - 1);
	l.cpus = place(&at, cpus * sizeof(struct emu_cpu));
	l.pools = place(&at, nodes * sizeof(struct emu_pool));
	l.files = place(&at, c->nr_files * sizeof(struct address_space));
	l.lists = place(&at, c->nr_lists * sizeof(struct emu_list));
	l.calls = place(&at, c->nr_calls * sizeof(struct emu_call));
	l.walkers = place(&at, c->nr_walkers * sizeof(struct emu_walker));
	l.classes = place(&at, l.max_classes * sizeof(struct emu_class));
	l.backgrounds = place(&at, c->nr_backgrounds * sizeof(struct emu_background));
	l.background_at = place(&at, (uint64_t)c->nr_backgrounds * l.background_places * sizeof(void *));
	l.uses = place(&at, c->nr_uses * sizeof(struct emu_use));
	l.occasions = place(&at, cpus * c->nr_uses * sizeof(uint64_t));
	l.end = at;
	return l;
}

static int config_check(const struct emu_config *c)
{
	if (c->bytes != sizeof(*c))
		return emu_set_error(-EINVAL, "struct emu_config has %u bytes here, %zu in the core", c->bytes,
				     sizeof(*c));
	if (!c->nr_cpus || !c->nr_nodes || !c->node_of_cpu)
		return emu_set_error(-EINVAL, "a machine has at least one CPU and one node");
	for (uint32_t i = 0; i < c->nr_cpus; i++)
		if (c->node_of_cpu[i] >= c->nr_nodes)
			return emu_set_error(-EINVAL, "CPU %u is on node %u of %u", i, c->node_of_cpu[i], c->nr_nodes);
	if (c->numa_penalty && !c->penalty_ns)
		return emu_set_error(-EINVAL, "numa_penalty without penalty_ns");
	if (c->nr_private_files > c->nr_files / c->nr_cpus)
		return emu_set_error(-EINVAL, "%u files cannot be %u for each of %u CPUs", c->nr_files,
				     c->nr_private_files, c->nr_cpus);
	if (c->nr_hw_cpus > c->nr_cpus)
		return emu_set_error(-EINVAL, "%u CPUs for %u tasks: at most as many", c->nr_hw_cpus, c->nr_cpus);
	for (uint32_t i = c->nr_hw_cpus; c->nr_hw_cpus && i < c->nr_cpus; i++)
		if (c->node_of_cpu[i] != c->node_of_cpu[i % c->nr_hw_cpus])
			return emu_set_error(-EINVAL, "task %u is on node %u, its CPU %u is not", i, c->node_of_cpu[i],
					     i % c->nr_hw_cpus);
	if (c->nr_files >= PTE_NO_FILE)
		return emu_set_error(-EINVAL, "%u files, at most %u", c->nr_files, (uint32_t)PTE_NO_FILE - 1);
	if (c->work_jitter_permille > 1000)
		return emu_set_error(-EINVAL, "work_jitter_permille is %u, at most 1000", c->work_jitter_permille);
	return 0;
}

uint64_t emu_arena_overhead(const struct emu_config *config)
{
	return layout_of(config).end + EMU_CHUNK_BYTES;
}

/* Histograms have 16 KiB each, most of them never used: all of it would be most of what a short phase costs the host. */
static void counts_clear(struct emu_cpu *cpu)
{
	if (!emu_is_counter(cpu))
		return;
	emu_lock_stats_clear(&cpu->task);
	for (uint32_t i = 0; i < EMU_LAT_NR; i++)
		if (cpu->hists[i].total || cpu->hists[i].overflow)
			memset(&cpu->hists[i], 0, sizeof(cpu->hists[i]));
}

int emu_arena_format(void *base, uint64_t bytes, const struct emu_config *config)
{
	struct layout l = layout_of(config);
	struct emu_arena *arena = base;
	char *start = base;
	int err = config_check(config);

	if (err)
		return err;
	if (bytes < l.end + (config->nr_nodes + 1) * EMU_CHUNK_BYTES)
		return emu_set_error(-ENOMEM, "an arena of %llu MiB is too small: %llu MiB at least; --arena-size gives more",
				     (unsigned long long)(bytes >> 20),
				     (unsigned long long)((l.end + (config->nr_nodes + 1) * EMU_CHUNK_BYTES) >> 20) + 1);
	emu_machine_init();
	memset(arena, 0, sizeof(*arena));
	arena->magic = EMU_ARENA_MAGIC;
	arena->bytes = bytes;
	arena->config = *config;
	if (!config->nr_hw_cpus)
		arena->config.nr_hw_cpus = config->nr_cpus;
	arena->node_of_cpu = (uint32_t *)(start + l.node_of_cpu);
	arena->penalty_ns = (uint32_t *)(start + l.penalty_ns);
	arena->cpus = all_cpus = (struct emu_cpu *)(start + l.cpus);
	arena->pools = (struct emu_pool *)(start + l.pools);
	arena->files = (struct address_space *)(start + l.files);
	arena->lists = (struct emu_list *)(start + l.lists);
	arena->calls = (struct emu_call *)(start + l.calls);
	arena->walkers = (struct emu_walker *)(start + l.walkers);
	arena->classes = (struct emu_class *)(start + l.classes);
	arena->max_classes = l.max_classes;
	arena->nr_classes = 1;
	arena->backgrounds = (struct emu_background *)(start + l.backgrounds);
	arena->background_places = l.background_places;
	arena->background_at = (struct background **)(start + l.background_at);
	arena->uses = (struct emu_use *)(start + l.uses);
	arena->occasions = (uint64_t *)(start + l.occasions);
	memset(arena->background_at, 0,
	       (uint64_t)config->nr_backgrounds * l.background_places * sizeof(*arena->background_at));
	memset(arena->occasions, 0, (uint64_t)config->nr_cpus * config->nr_uses * sizeof(*arena->occasions));
	memcpy(arena->node_of_cpu, config->node_of_cpu, config->nr_cpus * sizeof(uint32_t));
	if (config->penalty_ns)
		memcpy(arena->penalty_ns, config->penalty_ns,
		       (uint64_t)config->nr_nodes * config->nr_nodes * sizeof(uint32_t));
	emu_arena = arena;
	emu_numa_penalty = config->numa_penalty;
	emu_rcu_init((struct emu_rcu *)(start + l.rcu), config->nr_cpus);

	for (uint32_t i = 0; i < config->nr_cpus; i++) {
		struct emu_cpu *cpu = &arena->cpus[i];
		uint32_t counter = emu_machine_first_cpu(i);

		memset(cpu, 0, offsetof(struct emu_cpu, hists));
		cpu->counter = &arena->cpus[counter];
		cpu->task.nr = i;
		cpu->task.cpu = i % arena->config.nr_hw_cpus;
		cpu->task.node = arena->node_of_cpu[i];
		cpu->task.waiter.task = &cpu->task;
		cpu->task.vma_change_ns = config->vma_change_ns;
		cpu->task.lock_stats =
			emu_lock_stats_of(start + l.lock_stats, counter, config->nr_cpus, l.max_classes);
		cpu->task.sites = cpu->counter->sites;
		atomic_init(&cpu->task.on_cpu, 1);
		cpu->walk_due_ns = UINT64_MAX;
		cpu->random = config->seed * UINT64_C(0xd1342543de82ef95) + i;
		emu_sync_init_cpu(&cpu->sync, i);
		atomic_init(&cpu->state.op, EMU_CALL_NR);
		counts_clear(cpu); /* what an earlier run left */
	}
	emu_pools_init(l.end);
	EMU_ASSERT(lock_class("mmap_lock", NULL) == EMU_CLASS_MMAP_LOCK, "the first class is taken");
	EMU_ASSERT(lock_class("ptl", NULL) == EMU_CLASS_PTL, "the second class is taken");
	EMU_ASSERT(lock_class("pt_extents", NULL) == EMU_CLASS_EXTENTS, "the third class is taken");
	EMU_ASSERT(lock_class("free_addresses", NULL) == EMU_CLASS_FREE_AREA, "the fourth class is taken");
	/* The caller's arrays are its own again. */
	arena->config.node_of_cpu = arena->node_of_cpu;
	arena->config.penalty_ns = arena->penalty_ns;
	arena->config.host_node_of_node = NULL;
	return 0;
}

uint32_t emu_nr_file_names(void)
{
	const struct emu_config *c = &emu_arena->config;

	return emu_arena->nr_files - c->nr_private_files * (c->nr_cpus - 1);
}

struct address_space *emu_file_named(uint32_t n)
{
	const struct emu_config *c = &emu_arena->config;
	uint32_t first_private = emu_nr_file_names() - c->nr_private_files;

	if (n >= first_private)
		n = first_private + (n - first_private) * c->nr_cpus + emu_task_number();
	return &emu_arena->files[n];
}

int emu_file_add(const char *name, uint64_t nr_pages)
{
	struct address_space *file = &emu_arena->files[emu_arena->nr_files];

	if (emu_arena->nr_files == emu_arena->config.nr_files)
		return emu_set_error(-ENOSPC, "more than %u files", emu_arena->config.nr_files);
	memset(file, 0, sizeof(*file));
	file->id = emu_arena->nr_files;
	file->nr_pages = nr_pages;
	snprintf(file->name, sizeof(file->name), "%s", name);
	emu_arena->nr_files++;
	return (int)file->id;
}

int emu_file_cold(uint32_t file, uint32_t permille, uint64_t read_ns)
{
	if (file >= emu_arena->nr_files || permille > 1000)
		return emu_set_error(-EINVAL, "file %u of %u, %u permille cold", file, emu_arena->nr_files, permille);
	emu_arena->files[file].cold_permille = permille;
	emu_arena->files[file].read_ns = read_ns;
	return 0;
}

struct address_space *emu_file(uint32_t n)
{
	return &emu_arena->files[n];
}

int emu_background_add(const struct emu_background *entry)
{
	struct emu_arena *arena = emu_arena;
	uint32_t n = arena->nr_backgrounds;

	if (n == arena->config.nr_backgrounds)
		return emu_set_error(-ENOSPC, "more than %u background entries", n);
	if (entry->kind > EMU_BACKGROUND_ATOMIC || entry->per > EMU_PER_FILE ||
	    !memchr(entry->name, 0, sizeof(entry->name)) || entry->inner >= (int32_t)arena->config.nr_backgrounds ||
	    (entry->inner >= 0 && entry->inner <= (int32_t)n))
		return emu_set_error(-EINVAL, "background entry %u: kind %u, per %u, inner %d", n, entry->kind,
				     entry->per, entry->inner);
	arena->backgrounds[n] = *entry;
	return (int)arena->nr_backgrounds++;
}

int emu_use_add(const struct emu_use *use)
{
	struct emu_arena *arena = emu_arena;
	const struct emu_background *entry = &arena->backgrounds[use->entry], *inner;

	if (arena->nr_uses == arena->config.nr_uses)
		return emu_set_error(-ENOSPC, "more than %u uses of background entries", arena->nr_uses);
	inner = use->entry < arena->nr_backgrounds && entry->inner >= 0 ? &arena->backgrounds[entry->inner] : NULL;
	if (use->entry >= arena->nr_backgrounds ||
	    (entry->per == EMU_PER_FILE && (use->file < 0 || use->file >= (int32_t)emu_nr_file_names())) ||
	    (inner && (inner->per == EMU_PER_FILE || entry->inner >= (int32_t)arena->nr_backgrounds)))
		return emu_set_error(-EINVAL, "use %u: entry %u of file %d", arena->nr_uses, use->entry, use->file);
	arena->uses[arena->nr_uses] = *use;
	return (int)arena->nr_uses++;
}

int emu_list_add(const struct emu_call *calls, uint32_t n)
{
	struct emu_arena *arena = emu_arena;

	if (arena->nr_lists == arena->config.nr_lists || n > arena->config.nr_calls - arena->nr_calls)
		return emu_set_error(-ENOSPC, "more than %u lists or %u calls", arena->config.nr_lists,
				     arena->config.nr_calls);
	for (uint32_t i = 0; i < n; i++)
		if (calls[i].op >= EMU_CALL_NR ||
		    (calls[i].op == EMU_CALL_MMAP && calls[i].arg >= (int32_t)emu_nr_file_names()) ||
		    (calls[i].op == EMU_CALL_PACE && !calls[i].len) ||
		    calls[i].first_use > arena->nr_uses || calls[i].nr_uses > arena->nr_uses - calls[i].first_use ||
		    /* An image comes before what it is used in: no list runs itself. */
		    (calls[i].op == EMU_CALL_EXEC &&
		     (calls[i].arg < 0 || calls[i].arg >= (int32_t)arena->nr_lists)))
			return emu_set_error(-EINVAL, "call %u: operation %u with argument %d", i, calls[i].op,
					     calls[i].arg);
	for (uint32_t i = 0; i < n; i++)
		arena->has_meetings |= calls[i].op == EMU_CALL_PASS || calls[i].op == EMU_CALL_BARRIER;
	for (uint32_t i = 0; i < n; i++)
		arena->has_micro |= calls[i].op > EMU_CALL_BARRIER;
	if (n) {
		memcpy(arena->calls + arena->nr_calls, calls, n * sizeof(*calls));
		emu_program_find_groups(arena->calls + arena->nr_calls, n);
	}
	arena->lists[arena->nr_lists] = (struct emu_list){ arena->calls + arena->nr_calls, n };
	arena->nr_calls += n;
	return (int)arena->nr_lists++;
}

/* Runs body with emu_fail() coming back here as -ENOMEM. */
#define WITH_FAIL(err, body)                     \
	do {                                     \
		jmp_buf env__;                   \
		if (setjmp(env__)) {             \
			emu_fail_jmp = NULL;     \
			return -ENOMEM;          \
		}                                \
		emu_fail_jmp = &env__;           \
		body;                            \
		emu_fail_jmp = NULL;             \
	} while (0)

/* As a new one to the rmap design. The caller is attached to a CPU. */
static void init_file(struct address_space *file)
{
	memset(file->i_mmap, 0, sizeof(file->i_mmap));
	init_rwsem(&file->invalidate_lock, lock_class("invalidate_lock", file->name));
	emu_rmap->init(file);
}

static int init_files(void)
{
	WITH_FAIL(err, {
		for (uint32_t i = 0; i < emu_arena->nr_files; i++)
			init_file(&emu_arena->files[i]);
	});
	return 0;
}

static struct background **background_place(uint32_t entry, uint32_t place)
{
	return &emu_arena->background_at[(uint64_t)entry * emu_arena->background_places + place];
}

struct background *emu_background_of(uint32_t entry, int32_t file)
{
	switch (emu_arena->backgrounds[entry].per) {
	case EMU_PER_NODE:
		return *background_place(entry, current->node);
	case EMU_PER_FILE:
		return *background_place(entry, (uint32_t)file);
	}
	return *background_place(entry, 0);
}

static void create_instances(uint32_t e)
{
	struct emu_arena *arena = emu_arena;
	const struct emu_background *entry = &arena->backgrounds[e];
	uint32_t nr = entry->per == EMU_PER_NODE ? arena->config.nr_nodes : 1;

	if (entry->per != EMU_PER_FILE) {
		for (uint32_t n = 0; n < nr; n++)
			*background_place(e, n) = background_create(entry, NULL, entry->lines, n);
		return;
	}
	/* On node 0, where files are. */
	for (uint32_t u = 0; u < arena->nr_uses; u++) {
		const struct address_space *file;
		uint32_t lines = entry->lines;

		if (arena->uses[u].entry != e || *background_place(e, (uint32_t)arena->uses[u].file))
			continue;
		file = &arena->files[arena->uses[u].file];
		if (lines > file->nr_pages)
			lines = (uint32_t)file->nr_pages;
		*background_place(e, file->id) = background_create(entry, file->name, lines, 0);
	}
}

/* The caller is attached to a CPU. */
static int init_backgrounds(void)
{
	WITH_FAIL(err, {
		for (uint32_t e = 0; e < emu_arena->nr_backgrounds; e++)
			create_instances(e);
	});
	return 0;
}

/* Here, and not with the instances: asking for a name is no access that the virtual machine may see. */
bool emu_background_symbol(const void *at, char *buf, size_t size)
{
	uint64_t places = (uint64_t)emu_arena->nr_backgrounds * emu_arena->background_places;

	for (uint64_t i = 0; i < places; i++) {
		const struct background *b = emu_arena->background_at[i];
		uintptr_t offset = (uintptr_t)at - (uintptr_t)b;
		bool guarded;

		if (!b || offset >= sizeof(*b) + b->nr_lines * sizeof(b->lines[0]))
			continue;
		guarded = b->kind != EMU_BACKGROUND_ATOMIC && offset >= offsetof(struct background, lines);
		snprintf(buf, size, "%s%s%s%s", b->name, guarded ? " data" : "", b->file ? " " : "",
			 b->file ? b->file : "");
		return true;
	}
	return false;
}

/* How often a CPU has used what a call's use names. */
static uint64_t uses_done(uint32_t cpu, uint32_t use)
{
	return emu_uses_until(use, cpu, emu_arena->occasions[(uint64_t)cpu * emu_arena->nr_uses + use]);
}

/* What the CPUs did with an instance is in its lines: no addition was lost. */
static int check_background(uint32_t entry, uint32_t place)
{
	struct emu_arena *arena = emu_arena;
	const struct background *b = *background_place(entry, place);
	uint64_t expected = 0, found;

	if (!b || !background_has_lines(b))
		return 0;
	for (uint32_t u = 0; u < arena->nr_uses; u++) {
		const struct emu_use *use = &arena->uses[u];
		uint32_t per = arena->backgrounds[entry].per;

		if (use->entry != entry && arena->backgrounds[use->entry].inner != (int32_t)entry)
			continue;
		if (per == EMU_PER_FILE && use->file != (int32_t)place)
			continue;
		for (uint32_t cpu = 0; cpu < arena->config.nr_cpus; cpu++)
			if (per != EMU_PER_NODE || arena->node_of_cpu[cpu] == place)
				expected += uses_done(cpu, u);
	}
	found = background_uses(b);
	if (found != expected)
		return emu_set_error(-EBUSY, "%s was used %llu times and its lines saw %lld",
				     arena->backgrounds[entry].name, (unsigned long long)expected, (long long)found);
	return 0;
}

static int check_backgrounds(void)
{
	int err = 0;

	for (uint32_t e = 0; e < emu_arena->nr_backgrounds && !err; e++)
		for (uint32_t place = 0; place < emu_arena->background_places && !err; place++)
			err = check_background(e, place);
	return err;
}

int emu_boot(void)
{
	struct emu_arena *arena = emu_arena;
	int err;

	if (!emu_rmap || !emu_mm)
		return emu_set_error(-EINVAL, "no rmap or no mm design is loaded");
	emu_cpu_attach(0);
	if (arena->has_micro)
		WITH_FAIL(err, arena->micro = emu_micro_create());
	if (arena->has_meetings)
		WITH_FAIL(err, arena->meeting = emu_meeting_create());
	err = init_backgrounds();
	arena->boot_objects = emu_live_objects();
	if (!err)
		err = init_files();
	emu_rcu_idle();
	current = NULL;
	return err;
}

int emu_cpu_attach(uint32_t cpu)
{
	if (cpu >= emu_arena->config.nr_cpus)
		return emu_set_error(-EINVAL, "no CPU %u of %u", cpu, emu_arena->config.nr_cpus);
	current = &emu_arena->cpus[cpu].task;
	emu_rcu_online();
	return 0;
}

int emu_phase_prepare(uint32_t list, uint32_t once, uint32_t record, uint64_t duration_ns)
{
	struct emu_arena *arena = emu_arena;

	if (list >= arena->nr_lists)
		return emu_set_error(-EINVAL, "no call list %u of %u", list, arena->nr_lists);
	arena->phase_first = arena->phase_list = list;
	arena->phase_once = once;
	arena->phase_record = record;
	arena->phase_duration_ns = duration_ns;
	atomic_store(&arena->phase.open, 0);
	atomic_store(&arena->phase.armed, 0);
	atomic_store(&arena->phase.done, 0);
	atomic_store(&arena->phase.failed, 0);
	return 0;
}

int emu_phase_first(uint32_t list)
{
	if (list >= emu_arena->nr_lists)
		return emu_set_error(-EINVAL, "no call list %u of %u", list, emu_arena->nr_lists);
	emu_arena->phase_first = list;
	return 0;
}

int emu_phase_open(void)
{
	struct emu_phase_status *phase = &emu_arena->phase;

	phase->start_ns = emu_clock_ns();
	phase->deadline_ns = phase->start_ns + emu_arena->phase_duration_ns;
	/* Release: who sees the start line open sees the times. */
	atomic_store_explicit(&phase->open, 1, memory_order_release);
	emu_futex_wake(&phase->open, INT_MAX);
	return 0;
}

struct emu_phase_status *emu_phase_status(void)
{
	return &emu_arena->phase;
}

void emu_phase_reset(uint32_t number)
{
	struct emu_cpu *cpu = &emu_arena->cpus[number];

	memset(&cpu->result, 0, sizeof(cpu->result));
	cpu->faults = 0;
	counts_clear(cpu);
	/* One does it for all: nobody goes on before all have said that they are here. */
	if (!number && emu_arena->micro)
		emu_micro_reset(emu_arena->micro);
	if (!number && emu_arena->meeting)
		emu_meeting_reset(emu_arena->meeting);
	cpu->task.wait_ns = 0;
	cpu->in_ping_pong = false;
	cpu->ping_pong_turn = number & 1;
	emu_walkers_reset(cpu);
}

int emu_phase_body(void)
{
	struct emu_arena *arena = emu_arena;
	struct emu_phase_status *phase = &arena->phase;
	struct emu_cpu *cpu = emu_this_cpu();
	uint32_t failed = 0;
	int err = 0;

	emu_rcu_online();
	cpu->in_phase = true;
	if (!arena->phase_once || arena->phase_record)
		emu_walkers_start(cpu);
	cpu->result.start_ns = emu_clock_ns();
	do {
		uint64_t start_ns = emu_clock_ns();

		err = emu_program_run(cpu->task.nr ? arena->phase_list : arena->phase_first, arena->phase_record,
				      &failed);
		if (err)
			break;
		cpu->result.iterations++;
		atomic_store_explicit(&cpu->state.iterations, cpu->result.iterations, memory_order_relaxed);
		if (arena->phase_record)
			emu_hist_record(&cpu->counter->hists[EMU_LAT_ITERATION], emu_clock_ns() - start_ns);
	} while (!arena->phase_once && emu_clock_ns() < phase->deadline_ns);
	cpu->result.end_ns = emu_clock_ns();
	cpu->in_phase = false;
	if (cpu->in_ping_pong)
		emu_line_ping_pong_end(arena->micro);
	if (arena->has_meetings)
		emu_leave(arena->meeting);
	cpu->result.wait_ns = cpu->task.wait_ns;
	if (err > 0)
		err = 0;
	if (err) {
		snprintf(cpu->state.failure, sizeof(cpu->state.failure), "%s", emu_error());
		atomic_fetch_add(&phase->failed, 1);
	}
	emu_rcu_idle();
	atomic_fetch_add(&phase->done, 1);
	return err;
}

int emu_phase_run(void)
{
	struct emu_phase_status *phase = &emu_arena->phase;

	emu_phase_reset(current->nr);
	atomic_fetch_add(&phase->armed, 1);
	while (!atomic_load_explicit(&phase->open, memory_order_acquire))
		emu_futex_wait(&phase->open, 0);
	return emu_phase_body();
}

int emu_list_run(uint32_t list, uint32_t *failed)
{
	int err;

	*failed = 0;
	if (list >= emu_arena->nr_lists)
		return emu_set_error(-EINVAL, "no call list %u of %u", list, emu_arena->nr_lists);
	WITH_FAIL(err, err = emu_program_run(list, false, failed));
	return err;
}

struct emu_cpu_state *emu_cpu_state(uint32_t cpu)
{
	return &all_cpus[cpu].state;
}

struct emu_cpu_result *emu_cpu_result(uint32_t cpu)
{
	return &all_cpus[cpu].result;
}

uint64_t emu_cpu_faults(uint32_t cpu)
{
	return all_cpus[cpu].faults;
}

struct emu_hist *emu_cpu_hists(uint32_t cpu)
{
	return emu_arena->cpus[cpu].counter->hists;
}

static int count_vma(struct vm_area_struct *vma, void *arg)
{
	(void)vma;
	++*(uint64_t *)arg;
	return 0;
}

uint64_t emu_file_vmas(uint32_t file)
{
	uint64_t n = 0;
	/* Never waits: the conductor calls it, and a lock may have been left held by a CPU that is gone. */
	int ret = emu_rmap->walk(&emu_arena->files[file], 0, UINT64_MAX, true, count_vma, &n);

	return ret < 0 && ret != -EOPNOTSUPP ? UINT64_MAX : n;
}

/* What the CPUs did to the counters of the micro workloads is in them: no addition was lost. */
static int check_micro(void)
{
	struct emu_arena *arena = emu_arena;
	uint64_t added, written;

	if (!arena->micro)
		return 0;
	emu_micro_totals(arena->micro, &added, &written);
	for (uint32_t i = 0; i < arena->config.nr_cpus; i++) {
		added -= arena->cpus[i].added;
		written -= arena->cpus[i].written;
	}
	if (added || written)
		return emu_set_error(-EBUSY, "counters are wrong: %lld fetch_add and %lld additions under the rwsem too many",
				     (long long)added, (long long)written);
	return 0;
}

/* Returns the bytes that the rmap design had for it. */
static uint64_t destroy_file(struct address_space *file)
{
	int64_t before = emu_live_bytes();

	if (emu_rmap->destroy)
		emu_rmap->destroy(file);
	return emu_rmap->size + (uint64_t)(before - emu_live_bytes());
}

int emu_check_drained(void)
{
	struct emu_arena *arena = emu_arena;
	struct task_struct *caller = current;
	int err = check_micro();

	if (!err)
		err = check_backgrounds();
	emu_cpu_attach(0);
	emu_rcu_drain();
	arena->shared_mm = NULL;
	atomic_store(&arena->shared_ready, 0);
	for (uint32_t i = 0; i < arena->nr_files && !err; i++) {
		uint64_t vmas = emu_file_vmas(i);
		uint32_t users = atomic_load(&arena->files[i].users);

		if (users)
			err = emu_set_error(-EBUSY, "%s has %u references of faults that are over", arena->files[i].name,
					    users);
		else if (vmas == UINT64_MAX)
			err = emu_set_error(-EBUSY, "a lock of %s's i_mmap is still held", arena->files[i].name);
		else if (vmas || emu_rmap->mapped(&arena->files[i]))
			err = emu_set_error(-EBUSY, "%s still has %llu VMAs%s", arena->files[i].name,
					    (unsigned long long)vmas, vmas ? "" : ", yet counts as mapped");
	}
	if (!err) {
		/* A design may have allocated more for a file since boot; that goes with the file. Then all start anew. */
		for (uint32_t i = 0; i < arena->nr_files; i++) {
			uint64_t bytes = destroy_file(&arena->files[i]);

			arena->used_file_bytes = bytes > arena->used_file_bytes ? bytes : arena->used_file_bytes;
		}
		if (emu_live_objects() != arena->boot_objects)
			err = emu_set_error(-EBUSY, "the arena leaks %lld objects",
					    (long long)(emu_live_objects() - arena->boot_objects));
		if (init_files() && !err)
			err = -ENOMEM;
	}
	if (caller != current)
		emu_rcu_idle();
	current = caller;
	return err;
}

/* VMAs that a file is given to see what an index takes for each: enough to fill nodes that hold several. */
#define MEASURED_VMAS 512u

static uint64_t live_bytes_since(int64_t before)
{
	return (uint64_t)(emu_live_bytes() - before);
}

static void grow(uint64_t *most, uint64_t bytes)
{
	*most = bytes > *most ? bytes : *most;
}

static void measure_file(struct address_space *file, struct emu_memory *m)
{
	struct vm_area_struct *vmas[MEASURED_VMAS];
	uint64_t cold, first, vma;
	int64_t before;

	cold = destroy_file(file);
	init_file(file);
	grow(&m->cold_file, cold);

	before = emu_live_bytes();
	for (uint32_t i = 0; i < MEASURED_VMAS; i++)
		vmas[i] = vm_area_alloc(NULL, 0, file->nr_pages << EMU_PAGE_SHIFT, VM_READ, file, 0);
	vma = live_bytes_since(before) / MEASURED_VMAS;
	before = emu_live_bytes();
	emu_rmap->insert(file, vmas, NULL, 1);
	first = live_bytes_since(before);
	grow(&m->mapped_file, cold + first);
	for (uint32_t i = 1; i < MEASURED_VMAS; i++)
		emu_rmap->insert(file, &vmas[i], NULL, 1);
	grow(&m->vma, vma + (live_bytes_since(before) - first) / (MEASURED_VMAS - 1));
	for (uint32_t i = 0; i < MEASURED_VMAS; i++) {
		emu_rmap->remove(file, &vmas[i], 1);
		vm_area_free(vmas[i]);
	}
	/* For the next file: what all take together may be more than is left. */
	emu_rcu_drain();
}

/* The caller is attached to a CPU. */
static int measure_files(struct emu_memory *memory)
{
	WITH_FAIL(err, {
		for (uint32_t i = 0; i < emu_arena->nr_files; i++)
			measure_file(&emu_arena->files[i], memory);
	});
	return 0;
}

int emu_measure_memory(struct emu_memory *memory)
{
	struct emu_pool *last = &emu_arena->pools[emu_arena->config.nr_nodes - 1];
	struct task_struct *caller = current;
	int err;

	*memory = (struct emu_memory){ .used_file = emu_arena->used_file_bytes };
	/* The CPUs may have used up all else, and have ended. */
	last->end_chunk += emu_arena->spare_bytes;
	emu_arena->spare_bytes = 0;
	emu_cpu_attach(0);
	err = measure_files(memory);
	current = caller;
	return err;
}
