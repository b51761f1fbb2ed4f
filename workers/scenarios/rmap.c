/* SPDX-License-Identifier: MIT */
/*
 * rmap.c - scenarios of rmap designs: what processes do to a file's VMAs while others walk them.
 *
 * What a walk must see is judged by the machine (machine/explore/oracle.c); here walks read what they are shown, so that
 * a VMA that changes or goes away under a walk is a data race.
 */
#include "world.h"

extern EMU_EXPORT const struct rmap_ops *emu_rmap;

static int look(struct vm_area_struct *vma, void *arg)
{
	uint64_t *sum = arg;

	*sum += vma->vm_start ^ vma->vm_end ^ vma->vm_pgoff;
	return 0;
}

static int stop(struct vm_area_struct *vma, void *arg)
{
	(void)vma;
	(void)arg;
	return 1;
}

/* Does anybody map these pages? Ends at the first that does. */
static bool anybody(struct address_space *file, uint64_t first, uint64_t last)
{
	int ret = emu_rmap->walk(file, first, last, false, stop, NULL);

	EMU_ASSERT(ret == 0 || ret == 1 || ret == -EOPNOTSUPP, "walk: %d", ret);
	return ret == 1;
}

static void walk(struct address_space *file, uint64_t first, uint64_t last, bool try_lock)
{
	uint64_t sum = 0;
	int ret = emu_rmap->walk(file, first, last, try_lock, look, &sum);

	EMU_ASSERT(!ret || (ret == -EAGAIN && try_lock) || ret == -EOPNOTSUPP, "walk: %d", ret);
}

static void fork_and_exit(void)
{
	mmput(dup_mmap(current->mm));
}

/* Each of two processes maps the file's first pages; the same pages, so that they are neighbours in a tree. */
static void two_processes(void)
{
	world_setup();
	for (uint32_t cpu = 0; cpu < 2; cpu++) {
		process(cpu);
		map(0, 2, EMU_PROT_READ, libc(), 0);
		map(2, 2, EMU_PROT_READ | EMU_PROT_EXEC, libc(), 2);
	}
	current->mm = NULL;
}

static void fork_truncate(uint32_t cpu)
{
	if (cpu < 2) {
		current->mm = world->mm[cpu];
		fork_and_exit();
	} else {
		walk(libc(), 0, UINT64_MAX, false);
	}
}

static void split_walk(uint32_t cpu)
{
	if (cpu == 0) {
		current->mm = world->mm[0];
		protect(0, 1, EMU_PROT_READ | EMU_PROT_EXEC);
		protect(0, 1, EMU_PROT_READ);
	} else if (cpu == 1) {
		current->mm = world->mm[1];
		/* The border between two moves down, and up again. */
		protect(1, 1, EMU_PROT_READ | EMU_PROT_EXEC);
		protect(1, 1, EMU_PROT_READ);
	} else {
		walk(libc(), 0, 3, false);
	}
}

static void exit_reclaim(uint32_t cpu)
{
	if (cpu == 0) {
		mmput(world->mm[0]);
		world->mm[0] = NULL;
	} else if (cpu == 1) {
		current->mm = world->mm[1];
		fork_and_exit();
	} else {
		walk(libc(), 0, UINT64_MAX, true);
		(void)anybody(libc(), 2, 2);
		walk(libc(), 2, 2, true);
	}
}

static void convert_setup(void)
{
	two_processes();
	process(2);
	map(0, 1, EMU_PROT_READ, libc(), 0);
	current->mm = NULL;
}

static void convert(uint32_t cpu)
{
	if (cpu < 3) {
		current->mm = world->mm[cpu];
		map(8, 1, EMU_PROT_READ, libc(), 8);
		unmap(8, 1);
	} else {
		walk(libc(), 0, UINT64_MAX, false);
		walk(libc(), 0, UINT64_MAX, true);
	}
}

static void convert_split(uint32_t cpu)
{
	if (cpu == 0) {
		current->mm = world->mm[0];
		protect(1, 1, EMU_PROT_READ | EMU_PROT_WRITE);
	} else if (cpu == 1) {
		current->mm = world->mm[1];
		fork_and_exit();
	} else if (cpu == 2) {
		mmput(world->mm[2]);
		world->mm[2] = NULL;
	} else {
		walk(libc(), 0, UINT64_MAX, true);
	}
}

static void loader(uint32_t cpu)
{
	if (cpu < 2) {
		/* As the dynamic loader: a library whole, then a segment over it. */
		current->mm = world->mm[cpu];
		map(16, 4, EMU_PROT_READ, libc(), 0);
		map(17, 2, EMU_PROT_READ | EMU_PROT_EXEC, libc(), 1);
	} else {
		walk(libc(), 1, 2, false);
	}
}

/* Two threads of one process. */
static void one_process(void)
{
	world_setup();
	process(0);
	map(0, 1, EMU_PROT_READ, libc(), 0);
	map(2, 1, EMU_PROT_READ, libc(), 2);
	current->mm = NULL;
}

static void adjacent(uint32_t cpu)
{
	current->mm = world->mm[0];
	if (cpu == 0) {
		/* Fills the gap: three become one. */
		map(1, 1, EMU_PROT_READ, libc(), 1);
	} else if (cpu == 1) {
		map(3, 1, EMU_PROT_READ, libc(), 3);
		unmap(2, 1);
	} else {
		walk(libc(), 0, 3, false);
	}
	current->mm = NULL;
}

/* What another CPU has mapped is copied by a fork here. */
static void threads_fork(uint32_t cpu)
{
	if (cpu == 0) {
		current->mm = world->mm[0];
		fork_and_exit();
	} else if (cpu == 1) {
		current->mm = world->mm[0];
		map(4, 1, EMU_PROT_READ, libc(), 4);
		map(5, 1, EMU_PROT_READ, libc(), 8);
	} else {
		walk(libc(), 0, UINT64_MAX, false);
	}
	current->mm = NULL;
}

/* VMAs that were mapped on two CPUs become one, and two again. */
static void merge_nodes(uint32_t cpu)
{
	current->mm = world->mm[0];
	if (cpu == 0) {
		protect(0, 1, EMU_PROT_READ | EMU_PROT_WRITE);
	} else if (cpu == 1) {
		map(3, 1, EMU_PROT_READ | EMU_PROT_EXEC, libc(), 3);
		protect(3, 1, EMU_PROT_READ);
		protect(2, 1, EMU_PROT_READ | EMU_PROT_WRITE);
	} else {
		walk(libc(), 0, 3, false);
	}
	current->mm = NULL;
}

/* The same, the lower one being of the higher CPU. */
static void merge_nodes_back(uint32_t cpu)
{
	current->mm = world->mm[0];
	if (cpu == 1) {
		map(1, 1, EMU_PROT_READ | EMU_PROT_EXEC, libc(), 1);
		protect(2, 1, EMU_PROT_READ | EMU_PROT_EXEC);
	} else {
		walk(libc(), 0, 3, cpu == 2);
	}
	current->mm = NULL;
}

static void free_address(uint32_t cpu)
{
	current->mm = world->mm[0];
	world->address[cpu] = emu_sys_mmap(0, 2 * PAGE, EMU_PROT_READ, EMU_MAP_PRIVATE, libc(), (cpu + 4) * PAGE);
	EMU_ASSERT(world->address[cpu] > 0, "mmap: %lld", (long long)world->address[cpu]);
	current->mm = NULL;
}

static void no_overlap(void)
{
	for (uint32_t a = 0; a < 3; a++)
		for (uint32_t b = 0; b < a; b++)
			EMU_ASSERT(world->address[a] >= world->address[b] + (int64_t)(2 * PAGE) ||
					   world->address[b] >= world->address[a] + (int64_t)(2 * PAGE),
				   "CPU%u and CPU%u were given %#llx and %#llx", a, b,
				   (unsigned long long)world->address[a], (unsigned long long)world->address[b]);
	world_end();
}

static void two_files_setup(void)
{
	world_setup();
	for (uint32_t cpu = 0; cpu < 2; cpu++) {
		process(cpu);
		map(cpu, 1, EMU_PROT_READ, libc(), 0);
		map(1 - cpu, 1, EMU_PROT_READ, data(), 0);
	}
	current->mm = NULL;
}

static void two_files(uint32_t cpu)
{
	if (cpu < 2) {
		current->mm = world->mm[cpu];
		fork_and_exit();
	} else {
		walk(libc(), 0, UINT64_MAX, false);
		walk(data(), 0, UINT64_MAX, false);
	}
}

static void last_mapping_setup(void)
{
	world_setup();
	process(0);
	map(0, 1, EMU_PROT_READ, libc(), 0);
	process(1);
	current->mm = NULL;
}

static void last_mapping(uint32_t cpu)
{
	if (cpu < 2) {
		current->mm = world->mm[cpu];
		if (cpu == 1) {
			/* The second joins the first: for a moment nothing is linked. */
			map(0, 1, EMU_PROT_READ, libc(), 0);
			map(1, 1, EMU_PROT_READ, libc(), 1);
		}
		unmap(0, 1);
	} else {
		(void)emu_rmap->mapped(libc());
		walk(libc(), 0, 1, false);
		(void)emu_rmap->mapped(libc());
	}
}

/* More VMAs of a file than one batch takes, far apart and near. */
static void batch_setup(void)
{
	world_setup();
	for (uint32_t cpu = 0; cpu < 2; cpu++) {
		process(cpu);
		for (uint64_t i = 0; i < 5; i++)
			map(2 * i + (i > 2 ? 1024 : 0), 1, EMU_PROT_READ, i == 2 ? data() : libc(), i);
	}
	current->mm = NULL;
}

static void batch(uint32_t cpu)
{
	if (cpu < 2) {
		mmput(world->mm[cpu]);
		world->mm[cpu] = NULL;
	} else {
		walk(libc(), 0, 4, false);
	}
}

#define RMAP(NAME, CPUS, SETUP, CPU, CHECK, HELP)                                                                   \
	{                                                                                                           \
		.name = NAME, .help = HELP, .nr_cpus = CPUS, .kind = EMU_SCENARIO_RMAP, .setup = SETUP, .cpu = CPU, \
		.check = CHECK                                                                                      \
	}

const struct emu_scenario emu_rmap_scenarios[] = {
	RMAP("fork-truncate", 3, two_processes, fork_truncate, world_end, "two forks against a truncate"),
	RMAP("split-walk", 3, two_processes, split_walk, world_end, "splits and a merge by mprotect against a walk"),
	RMAP("exit-reclaim", 3, two_processes, exit_reclaim, world_end, "an exit and a fork against reclaim's trylock"),
	RMAP("convert", 4, convert_setup, convert, world_end, "three modifiers at once, and a walk"),
	RMAP("convert-split", 4, convert_setup, convert_split, world_end,
	     "split, fork, exit and a trylock walk at once"),
	RMAP("loader", 3, two_processes, loader, world_end, "two loaders map segments over a library, and a walk"),
	RMAP("adjacent", 3, one_process, adjacent, world_end, "two threads map and unmap side by side, and a walk"),
	RMAP("threads-fork", 3, one_process, threads_fork, world_end,
	     "a fork copies what another CPU maps, and a walk"),
	RMAP("merge-nodes", 3, one_process, merge_nodes, world_end, "VMAs of two CPUs become one, and a walk"),
	RMAP("merge-nodes-back", 3, one_process, merge_nodes_back, world_end, "the other way round, and two walks"),
	RMAP("free-address", 3, one_process, free_address, no_overlap, "three threads ask for free addresses"),
	RMAP("two-files", 3, two_files_setup, two_files, world_end,
	     "forks of two files in two orders, and walks of both"),
	RMAP("last-mapping", 3, last_mapping_setup, last_mapping, world_end,
	     "the last mapping goes while another comes"),
	RMAP("batch", 3, batch_setup, batch, world_end, "two exits of many VMAs, and a walk"),
	{ 0 },
};
