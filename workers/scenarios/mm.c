/* SPDX-License-Identifier: MIT */
/*
 * mm.c - scenarios of mm designs: threads of one process change its mappings while others fault there.
 *
 * What a fault may come to is judged by the machine (machine/explore/oracle_mm.c). A CPU is in no call between two, so
 * that grace periods end, and memory that is freed too early is found.
 *
 * For designs whose faults have a fast way, setup() makes it open: there is a page table, and pages of the process's own.
 */
#include "../mm/walk.h"
#include "world.h"

#include <emu/pgtable.h>
#include <emu/rcu.h>

/* How mappings lie: a page table of their own, a second one, and the border of two. */
#define TABLE EMU_PMD_SIZE / EMU_PAGE_SIZE
#define ALONE (8 * TABLE)
#define BORDER (4 * TABLE - 1)

#define READ EMU_PROT_READ
#define WRITE (EMU_PROT_READ | EMU_PROT_WRITE)
#define EXEC (EMU_PROT_READ | EMU_PROT_EXEC)

static int64_t fault(uint64_t page, bool write)
{
	int64_t err = emu_sys_fault(BASE + page * PAGE, write);

	emu_rcu_quiescent();
	return err;
}

static void must_fault(uint64_t page, bool write)
{
	int64_t err = fault(page, write);

	EMU_ASSERT(!err, "a fault for %s at page %llu, which is mapped: %lld", write ? "writing" : "reading",
		   (unsigned long long)page, (long long)err);
}

/* The CPU becomes a thread of the process. */
static void enter(void)
{
	current->mm = world->mm[0];
}

static void leave(void)
{
	current->mm = NULL;
}

/* One process for three threads; the caller maps. */
static void begin(void)
{
	world_setup();
	process(0);
	mmget(current->mm);
	mmget(current->mm);
}

static void end_setup(void)
{
	current->mm = NULL;
}

static void end(void)
{
	mmput(world->mm[0]);
	mmput(world->mm[0]);
	world_end();
}

/* Pages 0 to 3 of the file, writable, and a neighbour that keeps the page table. */
static void four_pages(void)
{
	begin();
	map(0, 4, WRITE, libc(), 0);
	map(6, 1, READ, data(), 0);
	must_fault(0, true);
	must_fault(3, false);
	end_setup();
}

static void fault_munmap(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		unmap(0, 2);
	} else if (cpu == 1) {
		(void)fault(0, true);
		(void)fault(1, false);
	} else {
		(void)fault(1, true);
		must_fault(2, false);
	}
	leave();
}

static void fault_mprotect(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		protect(0, 4, READ);
		protect(1, 1, WRITE);
	} else {
		(void)fault(cpu == 1 ? 0 : 3, true);
		must_fault(1, false);
	}
	leave();
}

/* Its last page goes, then its first: the VMA is cut at both ends, and what is left must be there all the time. */
static void fault_cut(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		unmap(3, 1);
		unmap(0, 1);
	} else {
		must_fault(1, cpu == 1);
		must_fault(2, cpu == 2);
	}
	leave();
}

/* One VMA becomes three, and one again. */
static void fault_split(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		protect(1, 1, EXEC);
		protect(1, 1, WRITE);
	} else {
		must_fault(cpu == 1 ? 0 : 1, cpu == 1);
		must_fault(cpu == 1 ? 1 : 3, false);
	}
	leave();
}

/* Another file over the first: never the one's page by the other's protection. */
static void fault_remap(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		map(0, 4, READ, data(), 8);
		map(1, 1, WRITE, libc(), 16);
	} else {
		must_fault(cpu == 1 ? 0 : 1, false);
		(void)fault(1, true);
	}
	leave();
}

/* A mapping with its page tables to itself: they go with it, and come with the next. */
static void alone(void)
{
	begin();
	map(0, 1, READ, data(), 0);
	map(ALONE, 2, WRITE, libc(), 0);
	must_fault(ALONE, true);
	end_setup();
}

static void fault_table(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		unmap(ALONE, 2);
		map(ALONE, 1, WRITE, data(), 4);
		unmap(ALONE, 1);
	} else {
		(void)fault(ALONE, cpu == 1);
		(void)fault(ALONE + 1, true);
	}
	leave();
}

/* No page tables at all: the first are made while a mapping beside them goes. */
static void untouched(void)
{
	begin();
	map(0, 2, WRITE, libc(), 0);
	map(6, 1, READ, data(), 0);
	end_setup();
}

static void fault_first(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		unmap(6, 1);
		must_fault(0, false);
	} else {
		must_fault(cpu - 1, cpu == 1);
	}
	leave();
}

/* More than a node of a tree holds: it splits, and joins, while faults look. */
static void many(void)
{
	begin();
	for (uint64_t i = 0; i < 8; i++)
		map(2 * i, 1, i % 2 ? READ : WRITE, libc(), 8 + i);
	must_fault(4, true);
	must_fault(12, true);
	end_setup();
}

static void fault_many(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		map(5, 1, READ, data(), 0);
		unmap(0, 3);
		unmap(14, 1);
	} else {
		must_fault(cpu == 1 ? 4 : 12, true);
		must_fault(cpu == 1 ? 10 : 6, false);
	}
	leave();
}

/* Two writers side by side, which merge and split each other's neighbours. */
static void neighbours(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		protect(0, 2, READ);
	} else if (cpu == 1) {
		unmap(2, 2);
		map(2, 1, WRITE, libc(), 2);
	} else {
		must_fault(0, false);
		(void)fault(2, true);
	}
	leave();
}

/* Each asks for addresses, uses and frees them. */
static void one_page(void)
{
	begin();
	map(0, 1, READ, libc(), 0);
	end_setup();
}

static uint64_t borrow(uint32_t cpu, uint64_t pages)
{
	int64_t addr = emu_sys_mmap(0, pages * PAGE, WRITE, EMU_MAP_PRIVATE | EMU_MAP_ANONYMOUS, NULL, 0);

	EMU_ASSERT(addr > 0, "mmap: %lld", (long long)addr);
	for (uint32_t i = 0; i < EMU_EXPLORE_CPUS; i++) {
		int64_t other = atomic_load_explicit(&world->borrowed[i], memory_order_acquire);

		EMU_ASSERT(!other || other + (int64_t)(2 * PAGE) <= addr || addr + (int64_t)(pages * PAGE) <= other,
			   "CPU%u and CPU%u are given %#llx and %#llx", cpu, i, (unsigned long long)addr,
			   (unsigned long long)other);
	}
	atomic_store_explicit(&world->borrowed[cpu], addr, memory_order_release);
	EMU_ASSERT(!emu_sys_fault((uint64_t)addr + (pages - 1) * PAGE, true), "own memory");
	return (uint64_t)addr;
}

static void give_back(uint32_t cpu, uint64_t addr, uint64_t pages)
{
	atomic_store_explicit(&world->borrowed[cpu], 0, memory_order_release);
	EMU_ASSERT(!emu_sys_munmap(addr, pages * PAGE), "munmap");
}

static void free_addresses(uint32_t cpu)
{
	enter();
	if (cpu == 2) {
		borrow(cpu, 2);
	} else {
		give_back(cpu, borrow(cpu, 2), 2);
		borrow(cpu, 2);
	}
	leave();
}

/* Mapped at a fixed place, where the others are about to be given addresses. */
static void fixed_addresses(uint32_t cpu)
{
	enter();
	if (cpu == 2)
		map((MMAP_BASE - BASE) / PAGE - 3, 1, WRITE, libc(), 1);
	else
		borrow(cpu, 2);
	leave();
}

static void border(void)
{
	begin();
	/* Both tables are there, and pages of the process's own in them. */
	map(BORDER - 1, 1, WRITE, data(), 0);
	map(BORDER + 2, 1, WRITE, data(), 8);
	must_fault(BORDER - 1, true);
	end_setup();
}

/* A mapping over the border of two tables comes, or goes, while the process is forked: the child has both or neither. */
static void fork_border(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		struct mm_struct *child = dup_mmap(current->mm);
		int64_t low, high;

		current->mm = child;
		low = emu_sys_fault(BASE + BORDER * PAGE, false);
		high = emu_sys_fault(BASE + (BORDER + 1) * PAGE, false);
		EMU_ASSERT(low == high, "of a mapping the child has one half: %lld, %lld", (long long)low,
			   (long long)high);
		enter();
		mmput(child);
	} else if (cpu == 1) {
		map(BORDER, 2, READ, libc(), 0);
		unmap(BORDER, 2);
	} else {
		must_fault(BORDER - 1, true);
		(void)fault(BORDER + 1, false);
	}
	leave();
}

/* Only the upper table is there. */
static void upper_table(void)
{
	begin();
	map(BORDER + 2, 1, READ, data(), 8);
	end_setup();
}

static void have_both_or_neither(struct mm_struct *mm)
{
	int64_t low, high;

	current->mm = mm;
	low = emu_sys_fault(BASE + BORDER * PAGE, false);
	high = emu_sys_fault(BASE + (BORDER + 1) * PAGE, false);
	EMU_ASSERT(low == high, "of a mapping one half is there: %lld, %lld", (long long)low, (long long)high);
	leave();
}

/* A mapping brings a table that lies before one which others have locked, or wait for. */
static void new_table(uint32_t cpu)
{
	enter();
	if (cpu == 0)
		map(BORDER, 2, READ, libc(), 0);
	else if (cpu == 1)
		unmap(BORDER, 2);
	else
		world->mm[1] = dup_mmap(current->mm);
	leave();
}

static void end_new_table(void)
{
	have_both_or_neither(world->mm[0]);
	have_both_or_neither(world->mm[1]);
	end();
}

/* The process is copied while its threads write to it. */
static void fork_fault(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		struct mm_struct *child = dup_mmap(current->mm);

		current->mm = child;
		must_fault(0, true);
		enter();
		mmput(child);
	} else if (cpu == 1) {
		must_fault(0, true);
		must_fault(1, true);
	} else {
		protect(3, 1, READ);
	}
	leave();
}

/* Of the file that is mapped there no page is in the page cache: each fault drops its lock and sleeps. */
static void four_cold_pages(void)
{
	begin();
	map(0, 4, WRITE, libc(), 0);
	map(6, 1, READ, data(), 0);
	must_fault(0, true);
	must_fault(6, false);
	libc()->cold_permille = 1000;
	end_setup();
}

static void fault_read(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		map(1, 1, READ, data(), 8);
		unmap(2, 1);
	} else if (cpu == 1) {
		(void)fault(1, true);
		must_fault(3, false);
	} else {
		(void)fault(2, false);
	}
	leave();
}

static void end_cold(void)
{
	libc()->cold_permille = 0;
	EMU_ASSERT(!atomic_load(&libc()->users), "a fault that is over has left its reference");
	end();
}

/*
 * Truncate, while its pages are still taken: none of them is mapped any more, whoever maps and faults meanwhile. A child
 * that is to be looked at is in borrowed[0].
 */
static void gone_from(const struct emu_walk *walk, struct mm_struct *mm)
{
	for (uint64_t i = 0; i < 4; i++) {
		struct page_table *table = pte_find(mm, BASE + i * PAGE, NULL);
		uint64_t pte = table ? pte_get(table, pte_index(BASE + i * PAGE)) : 0;

		EMU_ASSERT(!pte || pte_file(pte) != walk->mapping->id || pte_page(pte) < walk->first ||
				   pte_page(pte) > walk->last,
			   "truncate has left page %llu of the file mapped, at page %llu of the %s",
			   (unsigned long long)pte_page(pte), (unsigned long long)i,
			   mm == world->mm[0] ? "process" : "child");
	}
}

static int gone(const struct emu_walk *walk)
{
	int64_t child = atomic_load_explicit(&world->borrowed[0], memory_order_acquire);

	/* Page tables go by RCU. */
	rcu_read_lock();
	gone_from(walk, world->mm[0]);
	if (child)
		gone_from(walk, (struct mm_struct *)(uintptr_t)child);
	rcu_read_unlock();
	return 0;
}

static void truncate_pages(struct address_space *file, uint64_t first, uint64_t last)
{
	struct emu_walk walk = { .kind = EMU_WALK_TRUNCATE, .mapping = file, .first = first, .last = last,
				 .taken = gone };
	int err = emu_walk(&walk);

	EMU_ASSERT(!err, "truncate: %d", err);
	emu_rcu_quiescent();
}

/* The file comes over another one. */
static void truncate_map(uint32_t cpu)
{
	enter();
	if (cpu == 0)
		map(0, 4, READ, data(), 8);
	else if (cpu == 1)
		(void)fault(0, false);
	else
		truncate_pages(data(), 8, 11);
	leave();
}

static void truncate_munmap(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		unmap(1, 1);
		map(1, 1, READ, libc(), 2);
	} else if (cpu == 1) {
		(void)fault(1, true);
		(void)fault(2, false);
	} else {
		truncate_pages(libc(), 0, 3);
	}
	leave();
}

static void truncate_split(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		protect(1, 1, EXEC);
		protect(1, 1, WRITE);
	} else if (cpu == 1) {
		must_fault(1, false);
		must_fault(2, true);
	} else {
		truncate_pages(libc(), 0, 3);
	}
	leave();
}

/* The child is there until the end. */
static void truncate_fork(uint32_t cpu)
{
	enter();
	if (cpu == 0) {
		world->mm[1] = dup_mmap(current->mm);
		atomic_store_explicit(&world->borrowed[0], (int64_t)(uintptr_t)world->mm[1], memory_order_release);
		current->mm = world->mm[1];
		must_fault(1, true);
		must_fault(0, true);
	} else if (cpu == 1) {
		must_fault(1, true);
		must_fault(2, false);
	} else {
		truncate_pages(libc(), 0, 3);
	}
	leave();
}

#define MM(NAME, SETUP, CPU, HELP)                                                                              \
	{                                                                                                       \
		.name = NAME, .help = HELP, .nr_cpus = 3, .kind = EMU_SCENARIO_MM, .setup = SETUP, .cpu = CPU,  \
		.check = end                                                                                    \
	}

const struct emu_scenario emu_mm_scenarios[] = {
	MM("fault-munmap", four_pages, fault_munmap, "two threads fault where a third unmaps"),
	MM("fault-mprotect", four_pages, fault_mprotect, "two threads write where a third takes writing away"),
	MM("fault-cut", four_pages, fault_cut, "faults in the middle of a mapping that loses both ends"),
	MM("fault-split", four_pages, fault_split, "faults where a mapping becomes three, and one again"),
	MM("fault-remap", four_pages, fault_remap, "faults where another file is mapped over the first"),
	MM("fault-table", alone, fault_table, "faults where a mapping goes with its page tables, and comes back"),
	MM("fault-first", untouched, fault_first, "the first faults of a process that unmaps something else"),
	MM("fault-many", many, fault_many, "faults while the index of many mappings is rebuilt"),
	MM("neighbours", four_pages, neighbours, "two threads change mappings side by side, a third faults"),
	MM("free-addresses", one_page, free_addresses, "three threads ask for free addresses and give them back"),
	MM("fixed-addresses", one_page, fixed_addresses, "free addresses, where a third maps at a fixed one"),
	MM("fork-border", border, fork_border, "a fork copies what a second thread maps and a third uses"),
	{ .name = "new-table", .help = "a mapping in a new table and an old one, which others unmap and copy",
	  .nr_cpus = 3, .kind = EMU_SCENARIO_MM, .setup = upper_table, .cpu = new_table, .check = end_new_table },
	MM("fork-fault", four_pages, fork_fault, "a fork of a process whose threads write"),
	MM("truncate-map", four_pages, truncate_map, "truncate of a file that one thread maps and another uses"),
	MM("truncate-munmap", four_pages, truncate_munmap, "truncate of what one thread unmaps and another uses"),
	MM("truncate-split", four_pages, truncate_split, "truncate of a mapping that becomes three, and one again"),
	MM("truncate-fork", four_pages, truncate_fork, "truncate of a file that parent and child of a fork use"),
	{ .name = "fault-read", .help = "two threads sleep for pages where a third maps over one and unmaps another",
	  .nr_cpus = 3, .kind = EMU_SCENARIO_MM, .setup = four_cold_pages, .cpu = fault_read, .check = end_cold },
	{ 0 },
};
