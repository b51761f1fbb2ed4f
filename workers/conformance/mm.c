/* SPDX-License-Identifier: MIT */
/*
 * mm.c - the rules that every mm design keeps (emu/mm_ops.h), each with its test: all CPUs are threads of one process.
 *
 * Some CPUs own regions, which they map, protect, map over and unmap; a word says what a region is, or that it changes.
 * Everybody faults in all of them. If the word is the same before and after a fault, the fault must have gone by it, and the
 * page table must not allow more. Other rules have tests of their own kind: free addresses, forks, an index that many
 * changes rebuild under the faults, and what memory is left.
 *
 * Here the small mm calls the design, as in a run. Several tasks may share a CPU: a CPU of these rules is a task.
 */
#include "internal.h"

#include <emu/pgtable.h>
#include <emu/rcu.h>

#define OWNERS 4u
#define REGIONS 2u /* of each owner */
#define REGION_PAGES 8u
#define SLOTS 4096u /* pages below mmap_base whose owners are known */
#define MMAP_BASE (UINT64_C(1) << 40)
/* What is mapped at addresses of its own lies above: below, a design may give to others what was unmapped there. */
#define FIXED_ADDR (2 * MMAP_BASE)
/* All regions touch each other and lie around the border of two page tables. */
#define REGION_ADDR (FIXED_ADDR + (UINT64_C(1) << 30) - OWNERS * REGION_PAGES * EMU_PAGE_SIZE)
/* Around borders too, each in tables of its own. */
#define PAIR_ADDR(owner) (FIXED_ADDR + (UINT64_C(8) << 30) + ((uint64_t)(owner) << 24) - 2 * EMU_PAGE_SIZE)
/* Mappings that stay, with others between them that come and go. */
#define STEADY 24u
#define STEADY_ADDR(n) (FIXED_ADDR + (UINT64_C(4) << 30) + (uint64_t)(n) * 4 * EMU_PAGE_SIZE)
#define CALLS_A_STEP 8u
#define MEASURED 64u

/* What a region is. Of file 0 it maps pages from 16 on, of file 1 from 40 on. */
enum { CHANGING, UNMAPPED, A_READ, A_WRITE, B_READ, B_WRITE, NR_STATES };
static const uint32_t page_of_file[FILES] = { 16, 40 };

struct threads {
	struct mm_struct *_Atomic mm;
	_Atomic uint32_t state[OWNERS][REGIONS]; /* what it is + NR_STATES * how often it has changed */
	_Atomic uint8_t owner[SLOTS];		 /* of an address: CPU modulo 255, plus 1 */
};

/* What is asked of a fault in a region. */
#define ASK_CHANGE 1u	  /* it saw one mapping, as it was before a change or after it */
#define ASK_UNMAPPED 2u	  /* none succeeds where munmap has returned, and no page is left */
#define ASK_PROTECTION 4u /* none goes by a protection that mprotect has taken away, and no page allows more */

enum op { OP_FAULT, OP_CHANGE, OP_PROTECT, OP_BORROW, OP_PAIR, OP_FORK, OP_AMIDST, OP_STEADY, OP_NR };

struct threads_mixture {
	uint8_t share[OP_NR];
	uint32_t ask;
};

void mm_begin(void)
{
	check->threads = emu_zalloc(sizeof(*check->threads), 0);
}

static uint64_t region_addr(uint32_t owner, uint32_t region)
{
	return REGION_ADDR + (uint64_t)(region * OWNERS + owner) * REGION_PAGES * EMU_PAGE_SIZE;
}

static uint32_t owners(void)
{
	return check->nr_cpus < OWNERS ? check->nr_cpus : OWNERS;
}

static bool is_owner(void)
{
	return current->nr < owners();
}

static bool maps_b(uint32_t state)
{
	return state >= B_READ;
}

static bool may_write(uint32_t state)
{
	return state == A_WRITE || state == B_WRITE;
}

static struct conformance_totals *totals(void)
{
	return &check_here()->totals;
}

/* Who waits is in no call: grace periods do not wait for it. */
static void meet(void)
{
	emu_rcu_idle();
	barrier();
	emu_rcu_online();
}

static void must_be(int64_t ret, int64_t wanted, const char *call)
{
	if (ret != wanted)
		broken("%s came to %lld instead of %lld", call, (long long)ret, (long long)wanted);
}

static void map(uint64_t addr, uint64_t pages, uint32_t prot, uint32_t file, uint64_t page)
{
	doing("mmap", file);
	must_be(emu_sys_mmap(addr, pages * EMU_PAGE_SIZE, prot, EMU_MAP_PRIVATE | EMU_MAP_FIXED, emu_file(file),
			     page * EMU_PAGE_SIZE),
		(int64_t)addr, "mmap");
	doing(NULL, 0);
	totals()->changes++;
}

static void unmap(uint64_t addr, uint64_t pages)
{
	doing("munmap", 0);
	must_be(emu_sys_munmap(addr, pages * EMU_PAGE_SIZE), 0, "munmap");
	doing(NULL, 0);
	totals()->changes++;
}

static int64_t fault(uint64_t addr, bool write)
{
	int64_t err;

	doing("a fault", 0);
	err = emu_sys_fault(addr, write);
	doing(NULL, 0);
	return err;
}

/* An owner's region becomes something else. All of it at once, or in pieces. */
static void change_region(bool protect)
{
	uint32_t region = below(REGIONS), me = current->nr, to = UNMAPPED + below(NR_STATES - UNMAPPED);
	_Atomic uint32_t *state = &check->threads->state[me][region];
	uint32_t old = atomic_load(state), was = old % NR_STATES, step = below(2) ? REGION_PAGES : 1 + below(3);
	uint64_t addr = region_addr(me, region);

	/* What is there stays, and is allowed less or more. */
	if (protect && was != UNMAPPED)
		to = maps_b(was) ? B_READ + below(2) : A_READ + below(2);
	else
		protect = false;
	atomic_store(state, old - was + CHANGING);
	for (uint32_t page = 0; page < REGION_PAGES; page += step) {
		uint32_t pages = page + step > REGION_PAGES ? REGION_PAGES - page : step;
		uint32_t prot = EMU_PROT_READ | (may_write(to) ? EMU_PROT_WRITE : 0u);
		uint64_t at = addr + page * EMU_PAGE_SIZE;

		if (to == UNMAPPED) {
			unmap(at, pages);
		} else if (protect) {
			doing("mprotect", 0);
			must_be(emu_sys_mprotect(at, pages * EMU_PAGE_SIZE, prot), 0, "mprotect");
			doing(NULL, 0);
			totals()->changes++;
		} else {
			map(at, pages, prot, maps_b(to), page_of_file[maps_b(to)] + page);
		}
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

/* Nothing has changed while the fault went on. */
static void ask_settled(uint32_t state, int64_t err, uint64_t pte, bool write, uint32_t ask)
{
	bool mapped = state != UNMAPPED, allowed = mapped && (!write || may_write(state));
	const char *what = write ? "writing" : "reading";

	if (ask & ASK_UNMAPPED && !mapped && !err)
		broken("a fault for %s succeeds after munmap has returned", what);
	if (ask & ASK_UNMAPPED && !mapped && pte)
		broken("after munmap has returned the page table still has page %llu of file %llu",
		       (unsigned long long)pte_page(pte), (unsigned long long)pte_file(pte));
	if (ask & ASK_PROTECTION && mapped && !allowed && !err)
		broken("a fault for writing succeeds after mprotect has forbidden it");
	if (ask & ASK_PROTECTION && mapped && !may_write(state) && pte & PTE_WRITE)
		broken("after mprotect has forbidden writing the page table still allows it");
	if (ask & ASK_CHANGE && allowed && err)
		broken("a fault for %s is refused (%lld) where it is allowed all the time", what, (long long)err);
	/* Writing a fork may have taken away again. */
	if (ask & ASK_CHANGE && allowed && (!pte_allows(pte, false) || pte_file(pte) != maps_b(state)))
		broken("after a fault for %s the page table has page %llu of file %llu, but file %u is mapped", what,
		       (unsigned long long)pte_page(pte), (unsigned long long)pte_file(pte), maps_b(state));
}

static void fault_in_region(uint32_t ask)
{
	uint32_t owner = below(owners()), region = below(REGIONS), page = below(REGION_PAGES);
	_Atomic uint32_t *state = &check->threads->state[owner][region];
	uint64_t addr = region_addr(owner, region) + page * EMU_PAGE_SIZE, pte;
	uint32_t before = atomic_load(state);
	bool write = below(2);
	int64_t err = fault(addr, write);

	pte = look_up(addr);
	if (err && err != -EFAULT)
		broken("a fault in a region comes to %lld", (long long)err);
	/* A mapping of another time, maybe, but one of those that there are. */
	if (ask & ASK_CHANGE && pte &&
	    (pte_file(pte) >= FILES || pte_page(pte) != page_of_file[pte_file(pte)] + page))
		broken("a mixture of two mappings: page %u of a region is page %llu of file %llu", page,
		       (unsigned long long)pte_page(pte), (unsigned long long)pte_file(pte));
	if (before % NR_STATES == CHANGING || before != atomic_load(state)) {
		totals()->undecided++;
		return;
	}
	ask_settled(before % NR_STATES, err, pte, write, ask);
	if (err)
		totals()->refused++;
	else
		totals()->faults++;
}

/*
 * Free addresses
 */

/* Anywhere, or where it knows that others are given some; used; given back. */
static void borrow_addresses(void)
{
	struct threads *t = check->threads;
	uint32_t pages = 1 + below(20), me = current->nr % 255 + 1;
	uint64_t hint = below(4) ? 0 : MMAP_BASE - (uint64_t)(21 + below(200)) * EMU_PAGE_SIZE, first;
	int64_t addr;

	doing("mmap", 0);
	addr = emu_sys_mmap(hint, pages * EMU_PAGE_SIZE, EMU_PROT_READ | EMU_PROT_WRITE,
			    EMU_MAP_PRIVATE | EMU_MAP_ANONYMOUS, NULL, 0);
	doing(NULL, 0);
	if (addr <= 0)
		broken("mmap finds no free addresses: %lld", (long long)addr);
	first = (MMAP_BASE - (uint64_t)addr) / EMU_PAGE_SIZE;
	for (uint64_t i = 0; i < pages && first < SLOTS; i++) {
		uint32_t other = atomic_exchange(&t->owner[first - 1 - i], (uint8_t)me);

		if (other)
			broken("mmap gives %#llx, which CPU %u was given and has not given back",
			       (unsigned long long)addr + i * EMU_PAGE_SIZE, other - 1);
	}
	must_be(fault((uint64_t)addr + below(pages) * EMU_PAGE_SIZE, true), 0, "a fault in memory of the CPU's own");
	for (uint64_t i = 0; i < pages && first < SLOTS; i++)
		atomic_store(&t->owner[first - 1 - i], 0);
	unmap((uint64_t)addr, pages);
	totals()->addresses++;
}

/*
 * Fork
 */

/* A mapping in two page tables comes or goes. */
static void map_pair(void)
{
	uint64_t addr = PAIR_ADDR(current->nr % OWNERS);

	if (below(2))
		map(addr, 4, EMU_PROT_READ, 0, 0);
	else
		unmap(addr, 4);
}

static void fork_and_look(void)
{
	struct mm_struct *mm = current->mm, *child;

	doing("fork", 0);
	child = dup_mmap(mm);
	doing(NULL, 0);
	switch_mm(child);
	for (uint32_t owner = 0; owner < owners(); owner++) {
		int64_t low = fault(PAIR_ADDR(owner), false);
		int64_t high = fault(PAIR_ADDR(owner) + 3 * EMU_PAGE_SIZE, false);

		if (low != high)
			broken("of a mapping of CPU %u the child has one half: faults there come to %lld and %lld", owner,
			       (long long)low, (long long)high);
	}
	/* The child's memory is its own. */
	must_be(fault(STEADY_ADDR(0), true), 0, "a fault of the child");
	switch_mm(mm);
	doing("exit", 0);
	mmput(child);
	doing(NULL, 0);
	totals()->forks++;
}

/*
 * What stays while the index around it is rebuilt
 */

static void map_steady(void)
{
	for (uint32_t n = 0; n < STEADY; n++)
		map(STEADY_ADDR(n), 1, EMU_PROT_READ | EMU_PROT_WRITE, n % FILES, n);
}

static void change_amidst(void)
{
	/* Each CPU has places of its own, so that one that it has mapped is there. */
	uint32_t places = STEADY / check->nr_cpus, n = current->nr + check->nr_cpus * below(places ? places : 1);
	uint64_t addr = STEADY_ADDR(n % STEADY) + 2 * EMU_PAGE_SIZE;

	map(addr, 1, EMU_PROT_READ, n % FILES, STEADY + n % STEADY);
	jitter();
	unmap(addr, 1);
}

static void fault_steady(void)
{
	uint32_t n = below(STEADY);
	bool stays = below(2);
	uint64_t addr = STEADY_ADDR(n) + (stays ? 0 : 2 * EMU_PAGE_SIZE), page = stays ? n : STEADY + n, pte;
	int64_t err = fault(addr, stays && below(2));

	pte = look_up(addr);
	if ((stays || pte) && (pte_file(pte) != n % FILES || pte_page(pte) != page))
		broken("a fault in a mapping of page %llu of file %u finds page %llu of file %llu", (unsigned long long)page,
		       n % FILES, (unsigned long long)pte_page(pte), (unsigned long long)pte_file(pte));
	if (stays ? err != 0 : err && err != -EFAULT)
		broken("a fault in a mapping that nobody changes comes to %lld", (long long)err);
	totals()->faults += !err;
	totals()->refused += err != 0;
}

/*
 * Rules
 */

static void one_call(const struct threads_mixture *m)
{
	uint32_t sum = 0, draw;
	enum op op = OP_FAULT;

	for (uint32_t i = 0; i < OP_NR; i++)
		sum += m->share[i];
	for (draw = below(sum); draw >= m->share[op]; op++)
		draw -= m->share[op];
	/* Regions and pairs have owners; others look. */
	if (!is_owner() && (op == OP_CHANGE || op == OP_PROTECT || op == OP_PAIR))
		op = m->share[OP_FAULT] ? OP_FAULT : OP_FORK;
	switch (op) {
	case OP_FAULT:
		fault_in_region(m->ask);
		break;
	case OP_CHANGE:
	case OP_PROTECT:
		change_region(op == OP_PROTECT);
		break;
	case OP_BORROW:
		borrow_addresses();
		break;
	case OP_PAIR:
		map_pair();
		break;
	case OP_FORK:
		fork_and_look();
		break;
	case OP_AMIDST:
		change_amidst();
		break;
	default:
		fault_steady();
	}
	emu_rcu_quiescent();
}

static void enter(void)
{
	struct threads *t = check->threads;

	emu_rcu_online();
	if (current->nr == 0) {
		exec_mmap(MMAP_BASE);
		for (uint32_t owner = 0; owner < OWNERS; owner++)
			for (uint32_t region = 0; region < REGIONS; region++)
				atomic_store(&t->state[owner][region], UNMAPPED);
		map_steady();
		atomic_store(&t->mm, current->mm);
	}
	meet();
	if (current->nr) {
		mmget(atomic_load(&t->mm));
		switch_mm(atomic_load(&t->mm));
	}
}

static void leave(void)
{
	struct mm_struct *mm = current->mm;

	switch_mm(NULL);
	doing("exit", 0);
	mmput(mm);
	doing(NULL, 0);
	emu_rcu_quiescent();
	emu_rcu_idle();
}

static void run_threads(const struct threads_mixture *m)
{
	enter();
	for (uint32_t i = 0; i < CALLS_A_STEP * check->steps; i++) {
		one_call(m);
		if (below(4) == 0)
			jitter();
	}
	meet();
	leave();
}

static void rule_change(void)
{
	static const struct threads_mixture m = { .share = { [OP_FAULT] = 12, [OP_CHANGE] = 3, [OP_PROTECT] = 1 },
						  .ask = ASK_CHANGE };

	run_threads(&m);
}

static void rule_munmap(void)
{
	static const struct threads_mixture m = { .share = { [OP_FAULT] = 12, [OP_CHANGE] = 4 }, .ask = ASK_UNMAPPED };

	run_threads(&m);
}

static void rule_mprotect(void)
{
	static const struct threads_mixture m = { .share = { [OP_FAULT] = 12, [OP_CHANGE] = 1, [OP_PROTECT] = 4 },
						  .ask = ASK_PROTECTION };

	run_threads(&m);
}

static void rule_addresses(void)
{
	static const struct threads_mixture m = { .share = { [OP_BORROW] = 4, [OP_STEADY] = 1 } };

	run_threads(&m);
}

static void rule_fork(void)
{
	static const struct threads_mixture m = { .share = { [OP_FAULT] = 6, [OP_PAIR] = 6, [OP_FORK] = 1, [OP_STEADY] = 3 } };

	run_threads(&m);
}

static void rule_rcu(void)
{
	static const struct threads_mixture m = { .share = { [OP_AMIDST] = 4, [OP_STEADY] = 8 } };

	run_threads(&m);
}

static int64_t bytes_of_vma(void)
{
	int64_t before = emu_live_bytes(), after;
	void *vma = emu_alloc(sizeof(struct vm_area_struct), emu_node_id());

	after = emu_live_bytes();
	emu_free(vma);
	return after - before;
}

/* What a process and its VMAs take, beside the VMAs themselves. Nobody else runs. */
static void measure(void)
{
	int64_t before, empty, full;

	emu_rcu_online();
	before = emu_live_bytes();
	exec_mmap(MMAP_BASE);
	empty = emu_live_bytes();
	for (uint32_t n = 0; n < MEASURED; n++)
		map(STEADY_ADDR(n), 1, EMU_PROT_READ, 0, 0);
	/* What its index has let go of comes back. */
	for (uint32_t i = 0; i < 4; i++)
		emu_rcu_quiescent();
	full = emu_live_bytes();
	check->mm_bytes = empty - before;
	check->vma_millibytes = (full - empty) * 1000 / MEASURED - bytes_of_vma() * 1000;
	leave();
}

static void rule_memory(void)
{
	static const struct threads_mixture m = {
		.share = { [OP_FAULT] = 8, [OP_CHANGE] = 2, [OP_PROTECT] = 1, [OP_BORROW] = 2, [OP_FORK] = 1, [OP_AMIDST] = 2 }
	};

	emu_rcu_idle();
	barrier();
	if (current->nr == 0)
		measure();
	barrier();
	run_threads(&m);
}

const struct conformance_rule mm_rules[] = {
	{ "change", "a fault sees a mapping as it was before a change or after it, never a mixture, never a hole",
	  rule_change, NULL },
	{ "munmap", "after munmap has returned no fault in its range succeeds, and no page is left", rule_munmap, NULL },
	{ "mprotect", "after mprotect has returned no fault goes by the old protection, and no page allows it",
	  rule_mprotect, NULL },
	{ "addresses", "two mmaps never get addresses that overlap", rule_addresses, NULL },
	{ "fork", "a fork copies a consistent set: all of a mapping or nothing of it", rule_fork, NULL },
	{ "rcu", "what is mapped all the time is found all the time, however the index around it is rebuilt and freed",
	  rule_rcu, NULL },
	{ "memory", "all memory comes back; bytes per process and per VMA are reported", rule_memory, NULL },
	{ NULL, NULL, NULL, NULL },
};
