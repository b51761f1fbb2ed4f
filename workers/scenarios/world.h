/* SPDX-License-Identifier: MIT */
/*
 * world.h - what scenarios of designs are made of: processes that map two small files. For the files of this folder.
 */
#ifndef EMU_SCENARIOS_WORLD_H
#define EMU_SCENARIOS_WORLD_H

#include <emu/scenario.h>

#include <errno.h>

#define PAGE EMU_PAGE_SIZE
#define BASE UINT64_C(0x10000000)
#define MMAP_BASE UINT64_C(0x40000000)

struct world {
	struct mm_struct *mm[EMU_EXPLORE_CPUS];
	int64_t address[EMU_EXPLORE_CPUS];
	_Atomic int64_t borrowed[EMU_EXPLORE_CPUS]; /* what a thread uses of what it was given; 0: nothing */
};

static struct world *world;

static inline struct address_space *libc(void)
{
	return emu_file(0);
}

static inline struct address_space *data(void)
{
	return emu_file(1);
}

static inline void map(uint64_t page, uint64_t pages, uint32_t prot, struct address_space *file, uint64_t offset)
{
	int64_t ret = emu_sys_mmap(BASE + page * PAGE, pages * PAGE, prot, EMU_MAP_PRIVATE | EMU_MAP_FIXED, file,
				   offset * PAGE);

	EMU_ASSERT(ret == (int64_t)(BASE + page * PAGE), "mmap: %lld", (long long)ret);
}

static inline void unmap(uint64_t page, uint64_t pages)
{
	int64_t ret = emu_sys_munmap(BASE + page * PAGE, pages * PAGE);

	EMU_ASSERT(!ret, "munmap: %lld", (long long)ret);
}

static inline void protect(uint64_t page, uint64_t pages, uint32_t prot)
{
	int64_t ret = emu_sys_mprotect(BASE + page * PAGE, pages * PAGE, prot);

	EMU_ASSERT(!ret, "mprotect: %lld", (long long)ret);
}

/* A new process of its own for `cpu`, empty. */
static inline void process(uint32_t cpu)
{
	current->mm = NULL;
	exec_mmap(MMAP_BASE);
	world->mm[cpu] = current->mm;
}

static inline void world_setup(void)
{
	world = emu_zalloc(sizeof(*world), 0);
}

/* Every process goes: then nothing may be left. */
static inline void world_end(void)
{
	for (uint32_t i = 0; i < EMU_EXPLORE_CPUS; i++) {
		if (world->mm[i])
			mmput(world->mm[i]);
		world->mm[i] = NULL;
	}
	current->mm = NULL;
}

#endif
