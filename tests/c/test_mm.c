/* SPDX-License-Identifier: MIT */
/*
 * test_mm.c - the small mm under every design in EMU_DESIGNS, with many CPUs at once.
 *
 * Each CPU keeps one mapping of all pages of the file "anchor" and changes the protection of random parts of it, so that
 * it is split and merged all the time; beside that it maps, unmaps, forks and exits on the file "churn". Every few calls
 * a CPU walks the anchor and must find each page of each CPU's mapping exactly once: a walker that sees a half-done
 * split, a hole, an overlap or a VMA twice fails. Of a file that a design keeps out of its index a walk must say so. At
 * the end nothing may be left. What else a design must keep: test_conformance.c.
 *
 * Faults fill page tables all the time, which fork copies and munmap and exit free; truncate, reclaim and migration walk,
 * and no page that they should have changed may be left in any process. In one more run all CPUs share one
 * process and fault on the same pages at once, where no page table is yet.
 */
#define _GNU_SOURCE
#include "native_cpus.h"

#include "../../workers/mm/walk.h"

#include <emu/control.h>
#include <emu/pgtable.h>

#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define PAGES 64u
#define ARENA_BYTES (UINT64_C(64) << 20)
#define ANCHOR_ADDR UINT64_C(0x10000000)
#define CHURN_ADDR UINT64_C(0x20000000)

enum { FILE_ANCHOR, FILE_CHURN, NR_FILES };
enum { LIST_FORK, LIST_EXIT, LIST_IMAGE, LIST_EXEC, NR_LISTS };

#ifdef EMU_TEST_THREADS
static uint32_t calls_per_cpu = 1500; /* under the thread sanitizer each takes some ten times as long */
#else
static uint32_t calls_per_cpu = 3000;
#endif
static const char *mm_design = "mmap-sem-rbtree";
static void *arena_base;
static bool refuses_walks; /* the design under test, for the anchor */

/* Beside the arena: whose mappings of the anchor a walker must find. */
static struct shared {
	struct mm_struct *_Atomic owner[CPUS];
	_Atomic uint32_t ready;
	_Atomic uint32_t finished;
	_Atomic uint64_t walks, refused, unmapped;
} *shared;

struct seen {
	struct mm_struct *owner[CPUS];
	uint64_t pages[CPUS]; /* a bit a page of the anchor */
};

static int look(struct vm_area_struct *vma, void *arg)
{
	struct seen *seen = arg;

	ASSERT(vma->vm_pgoff + vma_pages(vma) <= PAGES && vma->vm_start < vma->vm_end, "VMA of pages %llu + %llu",
	       (unsigned long long)vma->vm_pgoff, (unsigned long long)vma_pages(vma));
	for (uint32_t cpu = 0; cpu < CPUS; cpu++) {
		if (vma->vm_mm != seen->owner[cpu])
			continue;
		for (uint64_t i = 0; i < vma_pages(vma); i++) {
			uint64_t bit = UINT64_C(1) << (vma->vm_pgoff + i);

			ASSERT(!(seen->pages[cpu] & bit), "page %llu of CPU %u twice",
			       (unsigned long long)(vma->vm_pgoff + i), cpu);
			seen->pages[cpu] |= bit;
		}
	}
	return 0;
}

extern EMU_EXPORT const struct rmap_ops *emu_rmap;
extern EMU_EXPORT const struct mm_ops *emu_mm;

static void walk_anchor(void)
{
	struct seen seen = { 0 };
	int ret;

	ASSERT(emu_rmap->mapped(emu_file(FILE_ANCHOR)), "the anchor is mapped");
	for (uint32_t cpu = 0; cpu < CPUS; cpu++)
		seen.owner[cpu] = atomic_load(&shared->owner[cpu]);
	ret = emu_rmap->walk(emu_file(FILE_ANCHOR), 0, PAGES - 1, emu_random() % 4 == 0, look, &seen);
	ASSERT((ret == -EOPNOTSUPP) == refuses_walks, "a walk of the anchor: %d", ret);
	if (ret) {
		ASSERT(ret == -EAGAIN || refuses_walks, "%d", ret);
		for (uint32_t cpu = 0; cpu < CPUS; cpu++)
			ASSERT(!seen.pages[cpu], "a refused walk called back");
		atomic_fetch_add(&shared->refused, 1);
		return;
	}
	for (uint32_t cpu = 0; cpu < CPUS; cpu++)
		ASSERT(seen.pages[cpu] == UINT64_MAX, "CPU %u: pages %#llx of the anchor are there", cpu,
		       (unsigned long long)seen.pages[cpu]);
	atomic_fetch_add(&shared->walks, 1);
}

/* All CPUs get here before any goes on. Who waits is in no call: grace periods do not wait for it. */
static void meet(_Atomic uint32_t *arrived)
{
	emu_rcu_idle();
	atomic_fetch_add(arrived, 1);
	while (atomic_load(arrived) < CPUS)
		emu_spin_wait(arrived);
	emu_rcu_online();
}

static void run_list(uint32_t list)
{
	uint32_t failed;
	int ret = emu_list_run(list, &failed);

	ASSERT(!ret, "list %u: %s", list, emu_error());
}

static uint32_t some_prot(void)
{
	return emu_random() % 2 ? EMU_PROT_READ : EMU_PROT_READ | EMU_PROT_WRITE;
}

/* Reading the anchor is always allowed; all other faults may or may not be. */
static void fault_somewhere(uint64_t page)
{
	bool anchor = emu_random() % 2, write = emu_random() % 2;
	uint64_t addr = (anchor ? ANCHOR_ADDR : CHURN_ADDR) + page * EMU_PAGE_SIZE;
	int64_t ret = emu_sys_fault(addr, write);
	struct page_table *table;
	_Atomic uint64_t *pte;

	ASSERT(!ret || (ret == -EFAULT && !(anchor && !write)), "fault at %#llx: %lld", (unsigned long long)addr,
	       (long long)ret);
	if (ret)
		return;
	pte = pte_offset_map_lock(current->mm, addr, &table);
	ASSERT(pte, "no page table after a fault");
	/* A walker may have been there in between. */
	if (*pte) {
		ASSERT(*pte & PTE_MIGRATION || pte_allows(*pte, write), "PTE %#llx after a fault",
		       (unsigned long long)*pte);
		ASSERT(pte_file(*pte) == (anchor ? FILE_ANCHOR : FILE_CHURN), "PTE %#llx", (unsigned long long)*pte);
		ASSERT(!anchor || pte_page(*pte) == page, "PTE %#llx is not for page %llu", (unsigned long long)*pte,
		       (unsigned long long)page);
	}
	pte_unmap_unlock(table);
}

/* Truncate, reclaim or migration; emu_walk_check() looks for pages that it missed. */
static void walk_somewhere(uint64_t page, uint64_t pages)
{
	bool anchor = emu_random() % 2;
	struct emu_walk walk = {
		.kind = emu_random() % EMU_WALK_NR,
		.mapping = emu_file(anchor ? FILE_ANCHOR : FILE_CHURN),
		.first = page,
		.last = page + pages - 1,
		.taken = emu_walk_check,
	};
	int ret = emu_walk(&walk);

	ASSERT(!ret || ret == -EOPNOTSUPP || (ret == -EAGAIN && walk.kind == EMU_WALK_RECLAIM), "walk: %d, %s", ret,
	       emu_error());
	if (!ret)
		atomic_fetch_add(&shared->unmapped, walk.pages);
}

static void cpu_main(uint32_t cpu)
{
	uint32_t depth = 0;
	int64_t ret;

	emu_cpu_attach(cpu);
	run_list(LIST_EXEC);
	ret = emu_sys_mmap(ANCHOR_ADDR, PAGES * EMU_PAGE_SIZE, EMU_PROT_READ, EMU_MAP_PRIVATE | EMU_MAP_FIXED,
			   emu_file(FILE_ANCHOR), 0);
	ASSERT(ret == (int64_t)ANCHOR_ADDR, "%lld", (long long)ret);
	atomic_store(&shared->owner[cpu], current->mm);
	meet(&shared->ready);

	for (uint32_t i = 0; i < calls_per_cpu; i++) {
		uint64_t page = emu_random() % PAGES, pages = 1 + emu_random() % (PAGES - page);

		switch (emu_random() % 11) {
		case 0:
			ret = emu_sys_mprotect(CHURN_ADDR + page * EMU_PAGE_SIZE, pages * EMU_PAGE_SIZE, some_prot());
			ASSERT(!ret || ret == -ENOMEM, "mprotect: %lld", (long long)ret);
			break;
		case 1:
		case 2:
			/* In a child too: its copy of the anchor is nobody's to check, but it is in the same trees. */
			ret = emu_sys_mprotect(ANCHOR_ADDR + page * EMU_PAGE_SIZE, pages * EMU_PAGE_SIZE,
					       some_prot());
			ASSERT(!ret, "mprotect: %lld", (long long)ret);
			break;
		case 3:
		case 4:
			/* Mostly as if all were one mapping: neighbours that came to several trees merge. */
			ret = emu_sys_mmap(CHURN_ADDR + page * EMU_PAGE_SIZE, pages * EMU_PAGE_SIZE, some_prot(),
					   EMU_MAP_PRIVATE | EMU_MAP_FIXED, emu_file(FILE_CHURN),
					   (emu_random() % 4 ? page : emu_random() % 4) * EMU_PAGE_SIZE);
			ASSERT(ret > 0, "mmap: %lld", (long long)ret);
			break;
		case 5:
			ret = emu_sys_munmap(CHURN_ADDR + page * EMU_PAGE_SIZE, pages * EMU_PAGE_SIZE);
			ASSERT(!ret, "munmap: %lld", (long long)ret);
			break;
		case 6:
			if (depth < 3 && emu_random() % 2) {
				run_list(LIST_FORK);
				depth++;
			} else if (depth) {
				run_list(LIST_EXIT);
				depth--;
			}
			break;
		case 7:
		case 8:
			fault_somewhere(page);
			break;
		case 9:
			/* Seldom: a check looks through all page tables. */
			if (emu_random() % 16 == 0)
				walk_somewhere(page, pages);
			break;
		default:
			walk_anchor();
		}
	}
	while (depth--)
		run_list(LIST_EXIT);
	/* The anchors stay until the last walk is done. */
	meet(&shared->finished);
	run_list(LIST_EXIT);
}

#define APART (UINT64_C(1) << 30) /* a mapping in each of several tables of every level but the top */
#define NR_APART 6u

/* One process for all: CPU 0's. Each faults on all pages in an order of its own. */
static void shared_main(uint32_t cpu)
{
	uint64_t ptes = 0;

	emu_cpu_attach(cpu);
	if (cpu == 0) {
		run_list(LIST_EXEC);
		for (uint32_t i = 0; i < NR_APART; i++)
			ASSERT(emu_sys_mmap(ANCHOR_ADDR + i * APART, PAGES * EMU_PAGE_SIZE,
					    EMU_PROT_READ | EMU_PROT_WRITE, EMU_MAP_PRIVATE | EMU_MAP_FIXED,
					    emu_file(FILE_ANCHOR), 0) > 0,
			       "mmap");
		atomic_store(&shared->owner[0], current->mm);
	}
	meet(&shared->ready);
	current->mm = atomic_load(&shared->owner[0]);
	for (uint32_t i = 0; i < NR_APART * PAGES; i++) {
		uint64_t n = (i * (2 * cpu + 1) + 17 * cpu) % (NR_APART * PAGES);
		uint64_t addr = ANCHOR_ADDR + n / PAGES * APART + n % PAGES * EMU_PAGE_SIZE;

		ASSERT(!emu_sys_fault(addr, cpu % 2), "fault at %#llx", (unsigned long long)addr);
	}
	meet(&shared->finished);
	if (cpu) {
		current->mm = NULL;
		return;
	}
	for (uint32_t i = 0; i < NR_APART; i++)
		ptes += unmap_page_range(current->mm, ANCHOR_ADDR + i * APART, ANCHOR_ADDR + i * APART + APART);
	ASSERT(ptes == NR_APART * PAGES, "%llu PTEs", (unsigned long long)ptes);
	ASSERT(pte_find(current->mm, ANCHOR_ADDR, NULL), "tables stay until their VMA goes");
	ASSERT(!emu_sys_munmap(ANCHOR_ADDR, PAGES * EMU_PAGE_SIZE), "munmap");
	ASSERT(emu_mm->vmas_in_tables || !pte_find(current->mm, ANCHOR_ADDR, NULL),
	       "the table goes with its last VMA");
	run_list(LIST_EXIT);
}

static void run_machine(const char *design, const char *params, bool penalty, uint64_t seed, void (*fn)(uint32_t cpu))
{
	const uint32_t node_of_cpu[CPUS] = { 0, 0, 1, 1 };
	const uint32_t penalty_ns[4] = { 0, 100, 100, 0 };
	const struct emu_config config = {
		.bytes = sizeof(config),	.nr_cpus = CPUS,	  .nr_nodes = 2,	     .nr_files = NR_FILES,
		.nr_lists = NR_LISTS,		.nr_calls = 4,		  .oversubscribed = true,    .numa_penalty = penalty,
		.seed = seed,			.node_of_cpu = node_of_cpu, .penalty_ns = penalty_ns,
		.nr_walkers = 1, /* of none, but then there is a list of all processes */
	};
	const struct emu_call fork_call = { .op = EMU_CALL_FORK }, exit_call = { .op = EMU_CALL_EXIT },
			      exec_call = { .op = EMU_CALL_EXEC, .arg = LIST_IMAGE, .addr = UINT64_C(1) << 40 };
	char path[512];

	arena_base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(arena_base != MAP_FAILED, "mmap: %s", strerror(errno));
	memset(shared, 0, sizeof(*shared));
	snprintf(path, sizeof(path), "%s/rmap/%s.so", EMU_DESIGNS, design);
	ASSERT(!emu_design_load(0, path, params), "%s", emu_error());
	snprintf(path, sizeof(path), "%s/mm/%s.so", EMU_DESIGNS, mm_design);
	ASSERT(!emu_design_load(1, path, NULL), "%s", emu_error());
	ASSERT(!emu_arena_format(arena_base, ARENA_BYTES, &config), "%s", emu_error());
	ASSERT(emu_file_add("anchor", PAGES) == FILE_ANCHOR, "anchor");
	/* A library, for designs that treat those apart. */
	ASSERT(emu_file_add("libchurn.so.1", 2 * PAGES) == FILE_CHURN, "churn");
	ASSERT(emu_list_add(&fork_call, 1) == LIST_FORK && emu_list_add(&exit_call, 1) == LIST_EXIT &&
		       emu_list_add(NULL, 0) == LIST_IMAGE && emu_list_add(&exec_call, 1) == LIST_EXEC,
	       "lists");
	ASSERT(emu_walker_add(0, 0, FILE_ANCHOR, 0, 0, 1, 1) == 0, "%s", emu_error());
	ASSERT(!emu_boot(), "%s", emu_error());
	emu_cpu_attach(0);
	refuses_walks = emu_rmap->walk(emu_file(FILE_ANCHOR), 0, 0, true, look, NULL) == -EOPNOTSUPP;
	run_cpus(fn);
	ASSERT(!emu_check_drained(), "%s", emu_error());
}

static void stress(const char *design, const char *params, bool penalty, uint64_t seed)
{
	const struct lock_stat *stats;
	uint64_t acquired = 0;

	run_machine(design, params, penalty, seed, cpu_main);
	ASSERT(refuses_walks == !atomic_load(&shared->walks), "%llu walks",
	       (unsigned long long)atomic_load(&shared->walks));
	ASSERT(refuses_walks || calls_per_cpu < 1000 || atomic_load(&shared->unmapped), "walks have unmapped nothing");
	stats = emu_lock_stats();
	ASSERT(stats, "%s", emu_error());
	for (uint32_t i = 0; i < emu_nr_lock_classes() * LOCK_MODES * EMU_SITES_MAX; i++)
		acquired += stats[i].acquired;
	ASSERT(acquired > (uint64_t)CPUS * calls_per_cpu / 2, "only %llu acquisitions", (unsigned long long)acquired);
	munmap(arena_base, ARENA_BYTES);
}

static void faults_of_one_process(void)
{
	for (uint64_t seed = 1; seed <= 20; seed++) {
		run_machine("single", NULL, false, seed, shared_main);
		munmap(arena_base, ARENA_BYTES);
	}
}

/* Three single pages of one process with a hole before the last: how many of them have a PTE. */
static uint32_t ptes_of_three(bool fault_first)
{
	uint32_t found = 0;

	for (uint32_t i = 0; i < 4; i++) {
		uint64_t addr = ANCHOR_ADDR + i * EMU_PAGE_SIZE;

		if (i == 2)
			continue;
		ASSERT(!fault_first || !emu_sys_fault(addr, true), "fault");
		found += pte_get(pte_find(current->mm, addr, NULL), pte_index(addr)) != 0;
	}
	return found;
}

/* Programs may call it so, and Linux says -ENOMEM when it has done what it can. */
static void dontneed_main(uint32_t cpu)
{
	const struct {
		uint64_t first, pages;
		int64_t err;
		uint32_t left;
	} calls[] = { { 0, 2, 0, 1 },	      { 0, 4, -ENOMEM, 0 }, { 1, 2, -ENOMEM, 2 },
		      { 2, 2, -ENOMEM, 2 }, { 2, 1, -ENOMEM, 3 }, { 3, 5, -ENOMEM, 2 } };

	emu_cpu_attach(cpu);
	if (cpu)
		return;
	run_list(LIST_EXEC);
	for (uint32_t i = 0; i < 4; i++)
		ASSERT(i == 2 || emu_sys_mmap(ANCHOR_ADDR + i * EMU_PAGE_SIZE, EMU_PAGE_SIZE, EMU_PROT_WRITE,
					      EMU_MAP_PRIVATE | EMU_MAP_FIXED | EMU_MAP_ANONYMOUS, NULL, 0) > 0,
		       "mmap");
	for (uint32_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		int64_t err;
		uint32_t left;

		ASSERT(ptes_of_three(true) == 3, "not all are there");
		err = emu_sys_madvise_dontneed(ANCHOR_ADDR + calls[i].first * EMU_PAGE_SIZE,
					       calls[i].pages * EMU_PAGE_SIZE);
		left = ptes_of_three(false);
		ASSERT(err == calls[i].err && left == calls[i].left, "call %u: %lld, and %u pages are left", i,
		       (long long)err, left);
	}
	run_list(LIST_EXIT);
}

static void dontneed_goes_on_behind_a_hole(void)
{
	run_machine("single", NULL, false, 1, dontneed_main);
	munmap(arena_base, ARENA_BYTES);
}

static void run(const struct variant *v)
{
	uint32_t calls = calls_per_cpu;

	printf("%s%s%s%s ... ", v->design, v->params ? ":" : "", v->params ? v->params : "",
	       v->penalty ? " with penalty" : "");
	fflush(stdout);
	if (v->rounds)
		calls_per_cpu = calls / v->rounds + 1;
	for (uint32_t round = 0; round < (v->rounds ? v->rounds : 1); round++)
		stress(v->design, v->params, v->penalty, 1 + round);
	calls_per_cpu = calls;
	printf("ok\n");
	test_passed++;
}

/* Whatever trees the VMAs of a change are in: all of them, ascending, each once. */
static void trees_of_a_change_are_locked_in_order(void)
{
	struct vm_area_struct vmas[VMA_PREPARE_MAX] = { 0 };
	const uint32_t nr_trees = 4;

	for (uint32_t combination = 0; combination < 5 * 5 * 5 * 5 * 5; combination++) {
		struct vm_area_struct *at[VMA_PREPARE_MAX] = { NULL };
		uint32_t trees[VMA_PREPARE_MAX], n, left = combination, wanted = 0, got = 0;

		for (uint32_t i = 0; i < VMA_PREPARE_MAX; i++, left /= nr_trees + 1) {
			if (left % (nr_trees + 1) == nr_trees)
				continue; /* the change has no such VMA */
			vmas[i].i_mmap_index = left % (nr_trees + 1);
			at[i] = &vmas[i];
			wanted |= 1u << vmas[i].i_mmap_index;
		}
		n = vma_prepare_trees(&(struct vma_prepare){ .vma = at[0], .adj_next = at[1], .insert = at[2],
							     .remove = at[3], .remove2 = at[4] }, trees);
		for (uint32_t i = 0; i < n; i++) {
			ASSERT(!i || trees[i] > trees[i - 1], "combination %u", combination);
			got |= 1u << trees[i];
		}
		ASSERT(got == wanted, "combination %u: trees %#x, not %#x", combination, got, wanted);
	}
}

/* All rmap designs under one mm design; then all mm designs. */
static void run_mm(const char *design)
{
	mm_design = design;
	printf("%s: ", design);
	TEST(faults_of_one_process);
	printf("%s: ", design);
	TEST(dontneed_goes_on_behind_a_hole);
	printf("%s: ", design);
	run(&(struct variant){ .design = "numa-locks" });
}

/* test_mm [calls per CPU [design]] */
int main(int argc, char **argv)
{
	const char *only = argc > 2 ? argv[2] : NULL;

	if (argc > 1)
		calls_per_cpu = (uint32_t)strtoul(argv[1], NULL, 10);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(shared != MAP_FAILED, "mmap");
	TEST(trees_of_a_change_are_locked_in_order);
	for_each_variant(run, only);
	for_each_mm_design(run_mm, only);
	return test_report();
}
