/* SPDX-License-Identifier: MIT */
/*
 * machine.c - the virtual machine's services (emu/machine.h), its set-up, statistics and names (emu/virtual.h).
 */
#define _GNU_SOURCE
#include "virtual.h"
#include "../../mm/micro.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct frame main_shadow[SHADOW_DEPTH];

struct vm vm = { .shadow = main_shadow };
struct task_struct *emu_current;
bool emu_numa_penalty;
_Thread_local void *emu_fail_jmp;

/*
 * Services
 */

uint64_t emu_clock_ns(void)
{
	return vm.clock / 1000;
}

void emu_compute(uint64_t ns)
{
	if (!vm.span)
		return;
	vm.clock += ns * 1000;
	vm.fiber->spent.compute_ps += ns * 1000;
}

/* As many tasks as CPUs: nobody waits for this one. */
bool emu_need_resched(void)
{
	return false;
}

/* The directory charges what a line's way costs; nothing is added to it. */
void emu_line_moved_slow(uint32_t *last)
{
	(void)last;
}

void emu_machine_init(void)
{
}

void emu_machine_bind(void *base, uint64_t bytes, int32_t host_node)
{
	(void)base;
	(void)bytes;
	(void)host_node;
}

void emu_machine_exit(void)
{
	if (vm.span)
		sched_fail(-ENOMEM);
	_exit(1);
}

/*
 * Set-up
 */

static void *reserve(uint64_t bytes)
{
	void *ptr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return ptr == MAP_FAILED ? NULL : ptr;
}

static uint32_t log2_below(uint32_t n)
{
	return 31u - (uint32_t)__builtin_clz(n | 1);
}

/* What a run keeps, by size; freed in one go. */
static struct {
	void *ptr;
	uint64_t bytes;
} kept[20];
static uint32_t nr_kept;

void *keep(uint64_t count, uint64_t size)
{
	uint64_t bytes = count * size + 1;
	void *ptr = reserve(bytes);

	if (ptr) {
		kept[nr_kept].ptr = ptr;
		kept[nr_kept++].bytes = bytes;
	}
	return ptr;
}

static const uint32_t *keep_copy(const uint32_t *from, uint64_t count)
{
	uint32_t *to = keep(count, sizeof(*to));

	return to ? memcpy(to, from, count * sizeof(*to)) : NULL;
}

void emu_virtual_end(void)
{
	fibers_destroy(vm.fibers ? vm.cost.nr_cpus : 0);
	while (nr_kept) {
		nr_kept--;
		munmap(kept[nr_kept].ptr, kept[nr_kept].bytes);
	}
	memset(&vm, 0, sizeof(vm));
	vm.shadow = main_shadow;
}

/* Which node a page's memory is on: a pool's on its own, a CPU's on the CPU's, the files' on node 0. */
static void set_homes(void)
{
	const struct emu_arena *arena = emu_arena;
	uint64_t page = 0;

	for (uint32_t n = 0; n < arena->config.nr_nodes; n++) {
		uint64_t end = arena->pools[n].end_chunk + (uintptr_t)arena - vm.base;

		for (; page << EMU_PAGE_SHIFT < end; page++)
			vm.home[page] = (uint16_t)n;
	}
	for (uint32_t i = 0; i < arena->config.nr_cpus; i++) {
		uint64_t first = (uintptr_t)&arena->cpus[i] - vm.base;
		uint64_t end = first + sizeof(struct emu_cpu);

		for (page = first >> EMU_PAGE_SHIFT; page << EMU_PAGE_SHIFT < end; page++)
			vm.home[page] = (uint16_t)arena->node_of_cpu[i];
	}
}

/* Of a line between any two CPUs: siblings if there are any, else neighbours in an L3. */
static uint64_t shortest_way(void)
{
	const struct emu_cost_model *m = &vm.cost;
	uint64_t ps = m->c2c_base_ps;

	for (uint32_t i = 0; i < m->nr_cpus; i++) {
		for (uint32_t j = i + 1; j < m->nr_cpus && ps > m->smt_ps; j++) {
			if (m->core_of_cpu[i] == m->core_of_cpu[j])
				ps = m->smt_ps;
			else if (m->l3_of_cpu[i] == m->l3_of_cpu[j] && ps > m->c2c_l3_ps)
				ps = m->c2c_l3_ps;
		}
	}
	return ps;
}

static int check(const struct emu_cost_model *m)
{
	if (m->bytes != sizeof(*m))
		return emu_set_error(-EINVAL, "struct emu_cost_model has %u bytes here, %zu in the core", m->bytes,
				     sizeof(*m));
	if (!emu_arena || m->nr_cpus != emu_arena->config.nr_cpus || m->nr_nodes != emu_arena->config.nr_nodes)
		return emu_set_error(-EINVAL, "a cost model for %u CPUs on %u nodes does not fit the arena", m->nr_cpus,
				     m->nr_nodes);
	if (m->nr_cpus > UINT16_MAX - 1 || m->nr_nodes > UINT16_MAX)
		return emu_set_error(-EINVAL, "%u CPUs are more than the %u that a directory entry can name", m->nr_cpus,
				     UINT16_MAX - 1);
	if (!m->outstanding_stores || m->outstanding_stores > EMU_STORES_MAX)
		return emu_set_error(-EINVAL, "outstanding_stores is %u, 1 to %u", m->outstanding_stores,
				     EMU_STORES_MAX);
	if (m->private_lines < WAYS || !m->l3_lines || !m->access_ps)
		return emu_set_error(-EINVAL, "caches of %u and %u lines, accesses of %u ps: too little",
				     m->private_lines, m->l3_lines, m->access_ps);
	for (uint32_t i = 0; i < m->nr_cpus; i++)
		if (m->node_of_cpu[i] >= m->nr_nodes || m->l3_of_cpu[i] >= m->nr_cpus || m->core_of_cpu[i] >= m->nr_cpus)
			return emu_set_error(-EINVAL, "CPU %u is on node %u, L3 %u, core %u: no such", i,
					     m->node_of_cpu[i], m->l3_of_cpu[i], m->core_of_cpu[i]);
	return 0;
}

int emu_virtual_config(const struct emu_cost_model *model)
{
	uint64_t nodes2, nr_lines, sets;
	uint64_t *tags, *older, *l3_tags;
	struct frame *shadows;
	int err = check(model);

	if (err)
		return err;
	emu_virtual_end();
	vm.cost = *model;
	nodes2 = (uint64_t)model->nr_nodes * model->nr_nodes;
	for (uint32_t i = 0; i < model->nr_cpus; i++)
		if (model->l3_of_cpu[i] >= vm.nr_l3)
			vm.nr_l3 = model->l3_of_cpu[i] + 1;
	vm.base = (uintptr_t)emu_arena->cpus;
	vm.full_span = (uintptr_t)emu_arena + emu_arena->bytes - vm.base;
	nr_lines = (vm.full_span >> 6) + 1;
	vm.set_shift = log2_below(model->private_lines / WAYS);
	sets = UINT64_C(1) << vm.set_shift;
	vm.set_mask = (uint32_t)sets - 1;
	vm.l3_mask = (1u << log2_below(model->l3_lines)) - 1;
	vm.access_ps = model->access_ps;

	vm.cost.node_of_cpu = keep_copy(model->node_of_cpu, model->nr_cpus);
	vm.cost.l3_of_cpu = keep_copy(model->l3_of_cpu, model->nr_cpus);
	vm.cost.core_of_cpu = keep_copy(model->core_of_cpu, model->nr_cpus);
	vm.cost.leg_ps = keep_copy(model->leg_ps, nodes2);
	vm.cost.dram_ps = keep_copy(model->dram_ps, nodes2);
	vm.lines = keep(nr_lines, sizeof(*vm.lines));
	vm.transits = keep(nr_lines, sizeof(*vm.transits));
	vm.home = keep((vm.full_span >> EMU_PAGE_SHIFT) + 1, sizeof(*vm.home));
	vm.fibers = keep(model->nr_cpus, sizeof(*vm.fibers));
	vm.heap = keep(model->nr_cpus, sizeof(*vm.heap));
	shadows = keep((uint64_t)model->nr_cpus * SHADOW_DEPTH, sizeof(*shadows));
	tags = keep(model->nr_cpus * sets, sizeof(*tags));
	older = keep(model->nr_cpus * sets * (WAYS - 1), sizeof(*older));
	l3_tags = keep(vm.nr_l3 * ((uint64_t)vm.l3_mask + 1), sizeof(*l3_tags));
	vm.node_transfers = keep(nodes2, sizeof(*vm.node_transfers));
	if (!sites_create() || nr_kept < 16 || fibers_create(model->nr_cpus)) {
		emu_virtual_end();
		return emu_set_error(-ENOMEM, "no memory for a machine of %u CPUs", model->nr_cpus);
	}
	/* Only for speed: these are looked up all over the place. */
	madvise(vm.lines, nr_lines * sizeof(*vm.lines), MADV_HUGEPAGE);
	madvise(tags, model->nr_cpus * sets * sizeof(*tags), MADV_HUGEPAGE);
	/* Zeroed tags name version 0 of line 0; no line but this starts with another. */
	vm.lines[0].version = 1;
	vm.top_key = UINT64_MAX;
	vm.main.cpu = UINT32_MAX;
	vm.trace_hash = UINT64_C(0xcbf29ce484222325);
	for (uint32_t i = 0; i < model->nr_cpus; i++) {
		struct fiber *f = &vm.fibers[i];

		f->cpu = i;
		f->node = model->node_of_cpu[i];
		f->core = model->core_of_cpu[i];
		f->l3 = model->l3_of_cpu[i];
		f->task = &emu_arena->cpus[i].task;
		f->tags = tags + i * sets;
		f->older = older + i * sets * (WAYS - 1);
		f->l3_tags = l3_tags + f->l3 * ((uint64_t)vm.l3_mask + 1);
		f->shadow = shadows + (uint64_t)i * SHADOW_DEPTH;
	}
	set_homes();
	vm.lookahead = shortest_way();
	return 0;
}

/*
 * Statistics
 */

void emu_virtual_stats(struct emu_virtual_stats *stats)
{
	*stats = (struct emu_virtual_stats){
		.accesses = vm.accesses,
		.syncs = vm.syncs,
		.switches = vm.switches,
		.misses = vm.misses,
		.transfers = vm.transfers,
		.remote_transfers = vm.remote_transfers,
		.dram = vm.dram,
		.now_ps = vm.now,
		.trace_hash = vm.trace_hash,
	};
}

void emu_virtual_cpu(uint32_t cpu, struct emu_virtual_cpu *out)
{
	const struct fiber *f = &vm.fibers[cpu];

	*out = f->spent;
	out->clock_ps = f->clock - f->since;
	out->access_ps = out->clock_ps - out->compute_ps - out->stall_ps - out->spin_ps - out->sleep_ps;
}

void emu_virtual_trace(struct emu_virtual_event *events, uint64_t n)
{
	vm.events = events;
	vm.max_events = events ? n : 0;
	vm.nr_events = 0;
}

uint64_t emu_virtual_traced(void)
{
	return vm.nr_events;
}

/*
 * Names
 */

int emu_virtual_symbol(uint64_t offset, char *buf, size_t size)
{
	const struct emu_arena *arena = emu_arena;
	const char *at = (const char *)arena + offset, *cpus = (const char *)arena->cpus;
	const char *files = (const char *)arena->files, *micro;
	uint64_t line = ((uintptr_t)at - vm.base) >> 6;
	char name[128];
	uint32_t bytes, class_id = at >= cpus && line < vm.full_span >> 6 ? vm.transits[line].lock_class : 0;

	if (class_id) {
		const struct emu_class *class = &arena->classes[class_id];

		return snprintf(buf, size, "%s%s%s", class->name, class->file[0] ? " " : "", class->file);
	}
	if (at >= cpus && at < cpus + arena->config.nr_cpus * sizeof(struct emu_cpu)) {
		uint64_t in = (uint64_t)(at - cpus) % sizeof(struct emu_cpu);
		const char *what = in < offsetof(struct emu_cpu, sync) ? "task" :
				   in < offsetof(struct emu_cpu, sync.qspin) ? "osq_node" :
				   in < offsetof(struct emu_cpu, state) ? "qspin_node" : "cpu";

		return snprintf(buf, size, "%s of CPU %llu", what,
				(unsigned long long)((uint64_t)(at - cpus) / sizeof(struct emu_cpu)));
	}
	if (at >= files && at < files + arena->config.nr_files * sizeof(struct address_space)) {
		const struct address_space *file = &arena->files[(uint64_t)(at - files) / sizeof(*file)];
		uint64_t in = (uint64_t)(at - (const char *)file);

		if (in < offsetof(struct address_space, i_mmap))
			return snprintf(buf, size, "address_space %s+%llu", file->name, (unsigned long long)in);
		return snprintf(buf, size, "i_mmap %s+%llu", file->name,
				(unsigned long long)(in - offsetof(struct address_space, i_mmap)));
	}
	micro = emu_micro_name(arena->micro, at);
	if (micro)
		return snprintf(buf, size, "%s", micro);
	if (emu_background_symbol(at, name, sizeof(name)))
		return snprintf(buf, size, "%s", name);
	bytes = emu_object_bytes(at);
	if (bytes)
		return snprintf(buf, size, "object of %u bytes", bytes);
	return snprintf(buf, size, "arena+%#llx", (unsigned long long)offset);
}

int emu_virtual_stack(uint32_t cpu, char *buf, size_t size)
{
	const struct fiber *f = &vm.fibers[cpu];
	uint32_t depth = f->depth < SHADOW_DEPTH ? f->depth : SHADOW_DEPTH;
	size_t used = 0;

	if (size)
		buf[0] = '\0';
	for (uint32_t i = f->depth - depth; i < f->depth; i++) {
		char name[64];

		function_name(f->shadow[i % SHADOW_DEPTH].pc, name, sizeof(name));
		used += (size_t)snprintf(used < size ? buf + used : NULL, used < size ? size - used : 0, "%s%s",
					 used ? ">" : "", name);
	}
	return (int)used;
}
