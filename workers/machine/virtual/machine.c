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

#define HOST_LINE 64u
#define HOST_HUGE (2u << 20)

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
	if (vm.clock != vm.asked) {
		vm.asked = vm.clock;
		vm.times_asked = 0;
	} else if (unlikely(++vm.times_asked == CLOCK_LOOKS) && vm.span) {
		clock_stands_still();
	}
	return vm.clock / 1000;
}

void emu_compute(uint64_t ns)
{
	const struct fiber *f = vm.fiber;
	uint64_t left = ns * 1000;

	if (!vm.span)
		return;
	/* In steps, where others may slow this CPU down or take it away in between. */
	for (;;) {
		uint32_t busy = vm.busy[f->core];
		uint64_t step = vm.threads > 1 && left > SMT_STEP_PS ? SMT_STEP_PS : left;
		uint64_t took = on_busy_core(step, busy);

		if (unlikely(vm.clock + took > vm.slice_end)) {
			uint64_t all = took;

			took = vm.clock < vm.slice_end ? vm.slice_end - vm.clock : 0;
			step = busy < 2 ? took : step * took / all;
		}
		vm.clock += took;
		vm.fiber->spent.compute_ps += took;
		left -= step;
		if (!left)
			break;
		computed();
	}
}

/* All are in one process, so what they count of their own would only be more memory for the host to go through. */
uint32_t emu_machine_first_cpu(uint32_t cpu)
{
	(void)cpu;
	return 0;
}

void emu_wait_unwatched(void)
{
	emu_compute(1000);
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

/*
 * Time stacks
 */

/* Locks of files are the rmap design's; others are the rest of the kernel's. */
static bool is_rmap_class(uint32_t class_id)
{
	return emu_arena->classes[class_id].file[0] != '\0';
}

/* The running task's time since the last call in which it did not wait. */
static void stack_work(void)
{
	struct fiber *f = vm.fiber;
	struct emu_virtual_cpu *spent = &f->spent;
	uint64_t waits = spent->stall_ps + spent->spin_ps + spent->sleep_ps + spent->runqueue_ps;
	uint64_t work = (vm.clock - f->stacked_clock) - (waits - f->stacked_waits);

	spent->stack_ps[f->rmap_locks ? EMU_STACK_TREE_WORK : f->other_locks ? EMU_STACK_OTHER_LOCKS :
			EMU_STACK_OWN_WORK] += work;
	f->stacked_clock = vm.clock;
	f->stacked_waits = waits;
}

static void stack_waits(struct fiber *f, bool rmap)
{
	struct emu_virtual_cpu *spent = &f->spent;

	spent->stack_ps[rmap ? EMU_STACK_SPINNING : EMU_STACK_OTHER_LOCKS] += spent->spin_ps - f->stacked_spin;
	spent->stack_ps[rmap ? EMU_STACK_ASLEEP : EMU_STACK_OTHER_LOCKS] += spent->sleep_ps - f->stacked_sleep;
	f->stacked_spin = spent->spin_ps;
	f->stacked_sleep = spent->sleep_ps;
}

void emu_machine_lock_held(uint32_t class_id, bool held)
{
	struct fiber *f = vm.fiber;

	if (!vm.in_phase)
		return;
	stack_work();
	*(is_rmap_class(class_id) ? &f->rmap_locks : &f->other_locks) += held ? 1 : UINT32_MAX;
}

void emu_waited_for(uint32_t class_id)
{
	if (vm.span)
		stack_waits(vm.fiber, is_rmap_class(class_id));
}

void stack_begin(struct fiber *f)
{
	memset(&f->spent, 0, sizeof(f->spent));
	f->rmap_locks = f->other_locks = 0;
	f->stacked_clock = f->clock;
	f->stacked_waits = f->stacked_spin = f->stacked_sleep = 0;
}

void stack_slept(void)
{
	stack_waits(vm.fiber, true);
}

void stack_done(void)
{
	struct fiber *f = vm.fiber;

	stack_work();
	/* What was no lock's, such as a ping-pong's waiting for the other side. */
	stack_waits(f, true);
	f->spent.stack_ps[EMU_STACK_LINE_STALLS] = f->spent.stall_ps;
	f->spent.stack_ps[EMU_STACK_RUNQUEUE] = f->spent.runqueue_ps;
}

/* Who was done before the last had nothing to do. Every picosecond is in one share, and in one only. */
void stack_end(void)
{
	for (uint32_t i = 0; i < vm.nr_tasks; i++) {
		struct fiber *f = &vm.fibers[i];
		uint64_t sum = 0;

		f->spent.stack_ps[EMU_STACK_ASLEEP] += vm.now - f->clock;
		for (uint32_t share = 0; share < EMU_STACK_NR; share++)
			sum += f->spent.stack_ps[share];
		EMU_ASSERT(sum == vm.now - f->since, "task %u: a time stack of %llu ps for %llu", i,
			   (unsigned long long)sum, (unsigned long long)(vm.now - f->since));
	}
}

void emu_machine_exit(void)
{
	if (vm.in_phase)
		sched_fail(-ENOMEM);
	_exit(1);
}

/*
 * Set-up
 */

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

static uint32_t log2_below(uint32_t n)
{
	return 31u - (uint32_t)__builtin_clz(n | 1);
}

/* What a run keeps; freed in one go. */
static struct {
	struct {
		void *ptr;
		uint64_t bytes;
	} maps[20];
	uint32_t nr_maps;
	bool failed;
	char *free, *end; /* of the last that tables share */
} kept;

static void *keep_map(uint64_t bytes)
{
	void *ptr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (ptr == MAP_FAILED) {
		kept.failed = true;
		return NULL;
	}
	EMU_ASSERT(kept.nr_maps < sizeof(kept.maps) / sizeof(*kept.maps), "more tables than there is room for");
	kept.maps[kept.nr_maps].ptr = ptr;
	kept.maps[kept.nr_maps++].bytes = bytes;
	return ptr;
}

/* Tables are used all over, and densely: one after the other on huge pages, each from a line of the host's on. */
void *keep(uint64_t count, uint64_t size)
{
	uint64_t bytes = round_up(count * size, HOST_LINE);
	char *table;

	if (bytes > (uint64_t)(kept.end - kept.free)) {
		uint64_t room = round_up(bytes, HOST_HUGE);
		char *map = keep_map(room + HOST_HUGE);

		if (!map)
			return NULL;
		kept.free = (char *)round_up((uintptr_t)map, HOST_HUGE);
		kept.end = kept.free + room;
		/* Only for speed. */
		madvise(kept.free, room, MADV_HUGEPAGE);
	}
	table = kept.free;
	kept.free += bytes;
	return table;
}

static const uint32_t *keep_copy(const uint32_t *from, uint64_t count)
{
	uint32_t *to = keep(count, sizeof(*to));

	return to ? memcpy(to, from, count * sizeof(*to)) : NULL;
}

void emu_virtual_end(void)
{
	fibers_destroy(vm.fibers ? vm.nr_tasks : 0);
	for (uint32_t i = 0; i < kept.nr_maps; i++)
		munmap(kept.maps[i].ptr, kept.maps[i].bytes);
	memset(&kept, 0, sizeof(kept));
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
	return ps - ps / TRANSFER_SPREAD;
}

static int check(const struct emu_cost_model *m)
{
	if (m->bytes != sizeof(*m))
		return emu_set_error(-EINVAL, "struct emu_cost_model has %u bytes here, %zu in the core", m->bytes,
				     sizeof(*m));
	if (!emu_arena || m->nr_cpus != emu_arena->config.nr_hw_cpus || m->nr_nodes != emu_arena->config.nr_nodes)
		return emu_set_error(-EINVAL, "a cost model for %u CPUs on %u nodes does not fit the arena", m->nr_cpus,
				     m->nr_nodes);
	if (emu_arena->config.nr_cpus > UINT16_MAX - 1 || m->nr_nodes > UINT16_MAX)
		return emu_set_error(-EINVAL, "%u tasks are more than the %u that can be told apart", emu_arena->config.nr_cpus,
				     UINT16_MAX - 1);
	if (!m->outstanding_stores || m->outstanding_stores > EMU_STORES_MAX)
		return emu_set_error(-EINVAL, "outstanding_stores is %u, 1 to %u", m->outstanding_stores,
				     EMU_STORES_MAX);
	if (m->private_lines < WAYS || !m->l3_lines || !m->access_ps)
		return emu_set_error(-EINVAL, "caches of %u and %u lines, accesses of %u ps: too little",
				     m->private_lines, m->l3_lines, m->access_ps);
	if (m->nr_idle_states > EMU_IDLE_STATES_MAX)
		return emu_set_error(-EINVAL, "%u idle states, at most %u", m->nr_idle_states, EMU_IDLE_STATES_MAX);
	if (!m->smt_speed_permille || m->smt_speed_permille > 1000 || !m->time_slice_ps)
		return emu_set_error(-EINVAL, "two threads of a core at %u permille, slices of %llu ps: cannot be",
				     m->smt_speed_permille, (unsigned long long)m->time_slice_ps);
	for (uint32_t i = 0; i < m->nr_cpus; i++)
		if (m->node_of_cpu[i] >= m->nr_nodes || m->l3_of_cpu[i] >= m->nr_cpus || m->core_of_cpu[i] >= m->nr_cpus)
			return emu_set_error(-EINVAL, "CPU %u is on node %u, L3 %u, core %u: no such", i,
					     m->node_of_cpu[i], m->l3_of_cpu[i], m->core_of_cpu[i]);
	return 0;
}

int emu_virtual_config(const struct emu_cost_model *model)
{
	uint64_t nodes2, nr_lines, sets, tags_apart, older_apart, l3_apart, shadows_apart;
	uint64_t *tags, *older, *l3_tags;
	struct frame *shadows;
	uint32_t nr_tasks;
	int err = check(model);

	if (err)
		return err;
	emu_virtual_end();
	vm.cost = *model;
	vm.nr_tasks = nr_tasks = emu_arena->config.nr_cpus;
	vm.shared = nr_tasks > model->nr_cpus;
	vm.slice_end = UINT64_MAX;
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
	/* A line more than a power of two: else what all CPUs have of one line would be in the same set of the host's cache. */
	tags_apart = sets + HOST_LINE / sizeof(*tags);
	older_apart = sets * (WAYS - 1) + HOST_LINE / sizeof(*older);
	l3_apart = (uint64_t)vm.l3_mask + 1 + HOST_LINE / sizeof(*l3_tags);
	shadows_apart = SHADOW_DEPTH + HOST_LINE / sizeof(*shadows);

	vm.cost.node_of_cpu = keep_copy(model->node_of_cpu, model->nr_cpus);
	vm.cost.l3_of_cpu = keep_copy(model->l3_of_cpu, model->nr_cpus);
	vm.cost.core_of_cpu = keep_copy(model->core_of_cpu, model->nr_cpus);
	vm.cost.leg_ps = keep_copy(model->leg_ps, nodes2);
	vm.cost.dram_ps = keep_copy(model->dram_ps, nodes2);
	vm.lines = keep(nr_lines, sizeof(*vm.lines));
	vm.transits = keep_map(nr_lines * sizeof(*vm.transits)); /* few lines are ever shared */
	vm.home = keep((vm.full_span >> EMU_PAGE_SHIFT) + 1, sizeof(*vm.home));
	vm.fibers = keep(nr_tasks, sizeof(*vm.fibers));
	/* Who sleeps until a time is in it too, and has no CPU. */
	vm.heap = keep(nr_tasks, sizeof(*vm.heap));
	vm.queues = keep(model->nr_cpus, sizeof(*vm.queues));
	vm.busy = keep(model->nr_cpus, sizeof(*vm.busy));
	shadows = keep(nr_tasks * shadows_apart, sizeof(*shadows));
	tags = keep(model->nr_cpus * tags_apart, sizeof(*tags));
	older = keep(model->nr_cpus * older_apart, sizeof(*older));
	l3_tags = keep(vm.nr_l3 * l3_apart, sizeof(*l3_tags));
	vm.node_transfers = keep(nodes2, sizeof(*vm.node_transfers));
	if (!sites_create() || kept.failed || fibers_create(nr_tasks)) {
		emu_virtual_end();
		return emu_set_error(-ENOMEM, "no memory for a machine of %u CPUs", model->nr_cpus);
	}
	/* Only for speed. What is each CPU's own, most of it never used, has its small pages by now. */
	madvise(emu_arena, emu_arena->bytes, MADV_HUGEPAGE);
	/* Zeroed tags name version 0 of line 0; no line but this starts with another. */
	vm.lines[0].version = FIRST_VERSION;
	vm.top_key = UINT64_MAX;
	vm.main.cpu = vm.main.nr = UINT32_MAX;
	vm.trace_hash = UINT64_C(0xcbf29ce484222325);
	for (uint32_t i = 0; i < nr_tasks; i++) {
		struct fiber *f = &vm.fibers[i];
		uint32_t cpu = i % model->nr_cpus;

		f->cpu = cpu;
		f->nr = i;
		f->node = model->node_of_cpu[cpu];
		f->core = model->core_of_cpu[cpu];
		f->l3 = model->l3_of_cpu[cpu];
		f->task = &emu_arena->cpus[i].task;
		f->tags = tags + cpu * tags_apart;
		f->older = older + cpu * older_apart;
		f->l3_tags = l3_tags + f->l3 * l3_apart;
		f->shadow = shadows + i * shadows_apart;
	}
	for (uint32_t i = 0; i < model->nr_cpus; i++)
		if (++vm.busy[vm.fibers[i].core] > vm.threads)
			vm.threads = vm.busy[vm.fibers[i].core];
	if (vm.threads > SMT_MAX) {
		err = emu_set_error(-EINVAL, "%u threads of a core, at most %u", vm.threads, SMT_MAX);
		emu_virtual_end();
		return err;
	}
	for (uint32_t busy = 0; busy <= vm.threads; busy++)
		vm.access_ps_of[busy] = on_busy_core(model->access_ps, busy);
	for (uint32_t i = 0; i < model->nr_cpus; i++)
		vm.queues[i].idles_ps = NEXT_TIMER_PS;
	set_homes();
	vm.lookahead = shortest_way();
	vm.random = (emu_arena->config.seed << 1 | 1) * UINT64_C(0x9e3779b97f4a7c15);
	vm.wake_random = ~vm.random | 1;
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

void emu_virtual_cpu(uint32_t task, struct emu_virtual_cpu *out)
{
	const struct fiber *f = &vm.fibers[task];

	*out = f->spent;
	out->clock_ps = f->clock - f->since;
	out->access_ps = out->clock_ps - out->compute_ps - out->stall_ps - out->spin_ps - out->sleep_ps -
			 out->runqueue_ps;
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
