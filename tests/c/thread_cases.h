/* SPDX-License-Identifier: MIT */
/*
 * thread_cases.h - the rules that an mm design must keep (emu/mm_ops.h), for test_threads.c (native) and
 * test_threads_virtual.c: all CPUs are threads of one process and call and fault at random, and check what they see.
 *
 *   protection   Each CPU has regions that it maps, protects, maps over and unmaps, and says in a word what they are,
 *                or that they change now. If the word stays the same while somebody faults there, the fault must have
 *                gone by it, and the page table must not allow more than it.
 *   mixture      What a fault finds is the file, the page and the protection of one of the mappings that there are.
 *   addresses    Nobody is given an address that somebody has.
 *   fork         A child has all of a mapping that lies in two page tables, or nothing of it.
 *   memory       Freed memory is filled with a pattern (EMU_CHECKED), which no design survives.
 *
 * The file that includes this defines run_threads(design), which boots a machine of CPUS with that mm design and runs
 * thread_main() on each.
 */
#ifndef THREAD_CASES_H
#define THREAD_CASES_H

#include "test.h"

#include <emu/control.h>

#include <errno.h>
#include <string.h>

#define CPUS 4u
#define REGIONS 2u  /* of each CPU */
#define PAGES 8u    /* of a region */
#define SLOTS 4096u /* pages below mmap_base whose owners are known */
#define MMAP_BASE (UINT64_C(1) << 40)
/* Regions of all CPUs touch each other and lie around the border of two page tables. */
#define REGION_ADDR ((UINT64_C(1) << 30) - CPUS * PAGES * EMU_PAGE_SIZE)
#define PAIR_ADDR(cpu) ((UINT64_C(8) << 30) + ((uint64_t)(cpu) << 24) - 2 * EMU_PAGE_SIZE)

enum { FILE_A, FILE_B, NR_FILES };
enum { LIST_FORK, LIST_EXIT, LIST_EXEC, LIST_IMAGE, NR_LISTS };
/* What a region is. File and first page: A from page 16 on, or B from page 64 on. */
enum { CHANGING, UNMAPPED, A_READ, A_WRITE, B_READ, B_WRITE, NR_STATES };

static struct thread_shared {
	struct mm_struct *_Atomic mm;
	_Atomic uint32_t arrived, left;
	_Atomic uint32_t state[CPUS][REGIONS]; /* what it is + NR_STATES * how often it has changed */
	_Atomic uint8_t owner[SLOTS];
	_Atomic uint64_t faults, refused, undecided;
} *shared;

static uint32_t calls_per_cpu = 1500;
static void run_threads(const char *design);

static uint64_t region_addr(uint32_t cpu, uint32_t region)
{
	return REGION_ADDR + (uint64_t)(region * CPUS + cpu) * PAGES * EMU_PAGE_SIZE;
}

static uint32_t some(uint32_t n)
{
	return (uint32_t)(emu_random() % n);
}

static void meet(_Atomic uint32_t *word)
{
	emu_rcu_idle();
	atomic_fetch_add(word, 1);
	smp_cond_load_acquire(word, VAL >= CPUS);
	emu_rcu_online();
}

static void run_list(uint32_t list)
{
	uint32_t failed;
	int ret = emu_list_run(list, &failed);

	ASSERT(!ret, "list %u: %s", list, emu_error());
}

/* The CPU's own region becomes something else. All of it at once, or page by page. */
static void change_region(void)
{
	uint32_t region = some(REGIONS), cpu = current->cpu, to = UNMAPPED + some(NR_STATES - UNMAPPED);
	_Atomic uint32_t *state = &shared->state[cpu][region];
	uint32_t old = atomic_load(state), was = old % NR_STATES;
	uint32_t prot = EMU_PROT_READ | (to == A_WRITE || to == B_WRITE ? EMU_PROT_WRITE : 0u);
	uint64_t addr = region_addr(cpu, region), step = some(2) ? PAGES : 1 + some(3);
	bool protect = was != UNMAPPED && to != UNMAPPED && (was >= B_READ) == (to >= B_READ) && some(4);

	atomic_store(state, old - was + CHANGING);
	for (uint64_t page = 0; page < PAGES; page += step) {
		uint64_t pages = page + step > PAGES ? PAGES - page : step, at = addr + page * EMU_PAGE_SIZE;
		int64_t ret, expected = 0;

		if (to == UNMAPPED) {
			ret = emu_sys_munmap(at, pages * EMU_PAGE_SIZE);
		} else if (protect) {
			ret = emu_sys_mprotect(at, pages * EMU_PAGE_SIZE, prot);
		} else {
			expected = (int64_t)at;
			ret = emu_sys_mmap(at, pages * EMU_PAGE_SIZE, prot, EMU_MAP_PRIVATE | EMU_MAP_FIXED,
					   emu_file(to >= B_READ ? FILE_B : FILE_A),
					   ((to >= B_READ ? 64 : 16) + page) * EMU_PAGE_SIZE);
		}
		ASSERT(ret == expected, "region %u of CPU %u to %u: %lld", region, cpu, to, (long long)ret);
	}
	atomic_store(state, old - was + NR_STATES + to);
}

/* What the page table says of a page; 0: nothing. */
static uint64_t look_up(uint64_t addr)
{
	struct page_table *table;
	uint64_t pte;

	rcu_read_lock();
	table = pte_find(current->mm, addr, NULL);
	pte = table ? pte_get(table, pte_index(addr)) : 0;
	rcu_read_unlock();
	return pte;
}

static void fault_in_region(void)
{
	uint32_t cpu = some(CPUS), region = some(REGIONS), page = some(PAGES), before, state;
	uint64_t addr = region_addr(cpu, region) + page * EMU_PAGE_SIZE, pte;
	bool write = some(2);
	int64_t err;

	before = atomic_load(&shared->state[cpu][region]);
	err = emu_sys_fault(addr, write);
	pte = look_up(addr);
	ASSERT(!err || err == -EFAULT, "%lld", (long long)err);
	/* A mapping of another time, maybe, but one of those that there are. */
	if (pte)
		ASSERT((pte_file(pte) == FILE_A && pte_page(pte) == 16 + page) ||
			       (pte_file(pte) == FILE_B && pte_page(pte) == 64 + page),
		       "a mixture: page %u of region %u of CPU %u is page %llu of file %llu", page, region, cpu,
		       (unsigned long long)pte_page(pte), (unsigned long long)pte_file(pte));
	state = before % NR_STATES;
	if (state == CHANGING || before != atomic_load(&shared->state[cpu][region])) {
		atomic_fetch_add(&shared->undecided, 1);
		return;
	}
	if (err || state == UNMAPPED) {
		ASSERT(err && (state == UNMAPPED || (write && (state == A_READ || state == B_READ))),
		       "a fault for %s in region %u of CPU %u, which is %u: %lld", write ? "writing" : "reading", region,
		       cpu, state, (long long)err);
		ASSERT(state != UNMAPPED || !pte, "a page where nothing is mapped");
		atomic_fetch_add(&shared->refused, 1);
		return;
	}
	ASSERT(!write || state == A_WRITE || state == B_WRITE, "written to what is for reading");
	/* Writing a fork may have taken away again. */
	ASSERT(pte_allows(pte, false), "no page after a fault");
	ASSERT(!(pte & PTE_WRITE) || state == A_WRITE || state == B_WRITE, "a page that can be written is left");
	ASSERT(pte_file(pte) == (state >= B_READ ? FILE_B : FILE_A), "a page of the file that was mapped before");
	atomic_fetch_add(&shared->faults, 1);
}

/* Anywhere; used; given back. */
static void borrow_addresses(void)
{
	uint64_t pages = 1 + some(20);
	int64_t addr = emu_sys_mmap(0, pages * EMU_PAGE_SIZE, EMU_PROT_READ | EMU_PROT_WRITE,
				    EMU_MAP_PRIVATE | EMU_MAP_ANONYMOUS, NULL, 0);
	uint64_t first = (MMAP_BASE - (uint64_t)addr) / EMU_PAGE_SIZE;

	ASSERT(addr > 0, "mmap: %lld", (long long)addr);
	for (uint64_t i = 0; i < pages && first < SLOTS; i++) {
		uint8_t other = atomic_exchange(&shared->owner[first - 1 - i], (uint8_t)(current->cpu + 1));

		ASSERT(!other, "%#llx is CPU %u's", (unsigned long long)addr + i * EMU_PAGE_SIZE, other - 1);
	}
	ASSERT(!emu_sys_fault((uint64_t)addr + some((uint32_t)pages) * EMU_PAGE_SIZE, true), "own memory");
	for (uint64_t i = 0; i < pages && first < SLOTS; i++)
		atomic_store(&shared->owner[first - 1 - i], 0);
	ASSERT(!emu_sys_munmap((uint64_t)addr, pages * EMU_PAGE_SIZE), "munmap");
}

static void map_pair(void)
{
	uint64_t addr = PAIR_ADDR(current->cpu);

	if (some(2))
		ASSERT(emu_sys_mmap(addr, 4 * EMU_PAGE_SIZE, EMU_PROT_READ, EMU_MAP_PRIVATE | EMU_MAP_FIXED,
				    emu_file(FILE_A), 0) == (int64_t)addr,
		       "mmap");
	else
		ASSERT(!emu_sys_munmap(addr, 4 * EMU_PAGE_SIZE), "munmap");
}

static void fork_and_look(void)
{
	run_list(LIST_FORK);
	for (uint32_t cpu = 0; cpu < CPUS; cpu++) {
		uint64_t addr = PAIR_ADDR(cpu);
		int64_t low = emu_sys_fault(addr, false), high = emu_sys_fault(addr + 3 * EMU_PAGE_SIZE, false);

		ASSERT(low == high, "of a mapping of CPU %u the child has one half: %lld, %lld", cpu, (long long)low,
		       (long long)high);
	}
	run_list(LIST_EXIT);
}

static void thread_main(void)
{
	if (current->cpu == 0) {
		run_list(LIST_EXEC);
		for (uint32_t cpu = 0; cpu < CPUS; cpu++)
			for (uint32_t region = 0; region < REGIONS; region++)
				atomic_store(&shared->state[cpu][region], UNMAPPED);
		atomic_store(&shared->mm, current->mm);
	}
	meet(&shared->arrived);
	if (current->cpu) {
		mmget(atomic_load(&shared->mm));
		switch_mm(atomic_load(&shared->mm));
	}
	for (uint32_t i = 0; i < calls_per_cpu; i++) {
		switch (some(32)) {
		case 0:
			fork_and_look();
			break;
		case 1:
		case 2:
			map_pair();
			break;
		case 3:
		case 4:
		case 5:
			borrow_addresses();
			break;
		case 6:
		case 7:
		case 8:
		case 9:
			change_region();
			break;
		default:
			fault_in_region();
		}
		emu_rcu_quiescent();
	}
	meet(&shared->left);
	run_list(LIST_EXIT);
}

/* Files and lists of a machine that has been formatted, and off it goes. */
static void boot_threads(void)
{
	const struct emu_call fork_call = { .op = EMU_CALL_FORK }, exit_call = { .op = EMU_CALL_EXIT },
			      exec_call = { .op = EMU_CALL_EXEC, .arg = LIST_IMAGE, .addr = MMAP_BASE };

	ASSERT(emu_file_add("a", 128) == FILE_A && emu_file_add("b", 128) == FILE_B, "files");
	ASSERT(emu_list_add(&fork_call, 1) == LIST_FORK && emu_list_add(&exit_call, 1) == LIST_EXIT &&
		       emu_list_add(&exec_call, 1) == LIST_EXEC && emu_list_add(NULL, 0) == LIST_IMAGE,
	       "lists");
	ASSERT(!emu_boot(), "%s", emu_error());
}

static void check_threads(void)
{
	ASSERT(!emu_check_drained(), "%s", emu_error());
	ASSERT(atomic_load(&shared->faults) > calls_per_cpu / 8 && atomic_load(&shared->refused) > calls_per_cpu / 8,
	       "%llu faults and %llu refused ones were decided: too few to mean anything",
	       (unsigned long long)atomic_load(&shared->faults), (unsigned long long)atomic_load(&shared->refused));
}

#endif
