/* SPDX-License-Identifier: MIT */
/*
 * test_mm.c - the small mm under every built-in rmap design, with many CPUs at once.
 *
 * Each CPU keeps one mapping of all pages of the file "anchor" and changes the protection of random parts of it, so that
 * it is split and merged all the time; beside that it maps, unmaps, forks and exits on the file "churn". Every few calls
 * a CPU walks the anchor and must find each page of each CPU's mapping exactly once: a walker that sees a half-done
 * split, a hole, an overlap or a VMA twice fails. At the end nothing may be left.
 *
 * A CPU is a process, or with -DEMU_TEST_THREADS a thread, so that the thread sanitizer sees them all.
 */
#define _GNU_SOURCE
#include "test.h"

#include <emu/control.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CPUS 4u
#define PAGES 64u
#define ARENA_BYTES (UINT64_C(64) << 20)
#define ANCHOR_ADDR UINT64_C(0x10000000)
#define CHURN_ADDR UINT64_C(0x20000000)

enum { FILE_ANCHOR, FILE_CHURN, NR_FILES };
enum { LIST_FORK, LIST_EXIT, LIST_EXEC, LIST_IMAGE, NR_LISTS };

static uint32_t calls_per_cpu = 40000;

/* Beside the arena: whose mappings of the anchor a walker must find. */
static struct shared {
	struct mm_struct *_Atomic owner[CPUS];
	_Atomic uint32_t ready;
	_Atomic uint32_t finished;
	_Atomic uint64_t walks, refused;
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

static void walk_anchor(void)
{
	struct seen seen = { 0 };
	int ret;

	for (uint32_t cpu = 0; cpu < CPUS; cpu++)
		seen.owner[cpu] = atomic_load(&shared->owner[cpu]);
	ret = emu_rmap->walk(emu_file(FILE_ANCHOR), 0, PAGES - 1, emu_random() % 4 == 0, look, &seen);
	if (ret == -EAGAIN) {
		for (uint32_t cpu = 0; cpu < CPUS; cpu++)
			ASSERT(!seen.pages[cpu], "a refused walk called back");
		atomic_fetch_add(&shared->refused, 1);
		return;
	}
	for (uint32_t cpu = 0; cpu < CPUS; cpu++)
		ASSERT(seen.pages[cpu] == UINT64_MAX, "CPU %u: pages %#llx of the anchor are there", cpu,
		       (unsigned long long)seen.pages[cpu]);
	ASSERT(emu_rmap->mapped(emu_file(FILE_ANCHOR)), "the anchor is mapped");
	atomic_fetch_add(&shared->walks, 1);
}

static void run_list(uint32_t list)
{
	uint32_t failed;
	int ret = emu_list_run(list, &failed);

	ASSERT(!ret, "list %u: %s", list, emu_error());
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
	atomic_fetch_add(&shared->ready, 1);
	while (atomic_load(&shared->ready) < CPUS)
		emu_spin_wait(&shared->ready);

	for (uint32_t i = 0; i < calls_per_cpu; i++) {
		uint64_t page = emu_random() % PAGES, pages = 1 + emu_random() % (PAGES - page);

		switch (emu_random() % 8) {
		case 0:
		case 1:
		case 2:
			/* In a child too: its copy of the anchor is nobody's to check, but it is in the same trees. */
			ret = emu_sys_mprotect(ANCHOR_ADDR + page * EMU_PAGE_SIZE, pages * EMU_PAGE_SIZE,
					       emu_random() % 2 ? EMU_PROT_READ : EMU_PROT_READ | EMU_PROT_WRITE);
			ASSERT(!ret, "mprotect: %lld", (long long)ret);
			break;
		case 3:
		case 4:
			ret = emu_sys_mmap(CHURN_ADDR + page * EMU_PAGE_SIZE, pages * EMU_PAGE_SIZE, EMU_PROT_READ,
					   EMU_MAP_PRIVATE | EMU_MAP_FIXED, emu_file(FILE_CHURN),
					   emu_random() % 4 * EMU_PAGE_SIZE);
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
		default:
			walk_anchor();
		}
	}
	while (depth--)
		run_list(LIST_EXIT);
	/* The anchors stay until the last walk is done. */
	atomic_fetch_add(&shared->finished, 1);
	while (atomic_load(&shared->finished) < CPUS)
		emu_spin_wait(&shared->finished);
	run_list(LIST_EXIT);
}

#ifdef EMU_TEST_THREADS
static void *thread_main(void *arg)
{
	cpu_main((uint32_t)(uintptr_t)arg);
	return NULL;
}

static void run_cpus(void)
{
	pthread_t threads[CPUS];

	for (uintptr_t i = 0; i < CPUS; i++)
		ASSERT(!pthread_create(&threads[i], NULL, thread_main, (void *)i), "pthread_create");
	for (uint32_t i = 0; i < CPUS; i++)
		pthread_join(threads[i], NULL);
}
#else
static void run_cpus(void)
{
	pid_t pids[CPUS];

	fflush(stdout);
	for (uint32_t i = 0; i < CPUS; i++) {
		pids[i] = fork();
		ASSERT(pids[i] >= 0, "fork: %s", strerror(errno));
		if (!pids[i]) {
			alarm(120); /* a lost wake-up must not hang the tests */
			cpu_main(i);
			_exit(0);
		}
	}
	for (uint32_t i = 0; i < CPUS; i++) {
		int status;

		ASSERT(waitpid(pids[i], &status, 0) == pids[i], "waitpid");
		ASSERT(!status, "CPU %u ended with status %#x", i, status);
	}
}
#endif

static void stress(const char *design, bool penalty)
{
	const uint32_t node_of_cpu[CPUS] = { 0, 0, 1, 1 };
	const uint32_t penalty_ns[4] = { 0, 100, 100, 0 };
	const struct emu_config config = {
		.bytes = sizeof(config),	.nr_cpus = CPUS,	  .nr_nodes = 2,	     .nr_files = NR_FILES,
		.nr_lists = NR_LISTS,		.nr_calls = 4,		  .oversubscribed = true,    .numa_penalty = penalty,
		.seed = 1,			.node_of_cpu = node_of_cpu, .penalty_ns = penalty_ns,
	};
	const struct emu_call fork_call = { .op = EMU_CALL_FORK }, exit_call = { .op = EMU_CALL_EXIT },
			      exec_call = { .op = EMU_CALL_EXEC, .arg = LIST_IMAGE, .addr = UINT64_C(1) << 40 };
	char path[512];
	void *base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t acquired = 0;

	ASSERT(base != MAP_FAILED, "mmap: %s", strerror(errno));
	memset(shared, 0, sizeof(*shared));
	snprintf(path, sizeof(path), "%s/rmap/%s.so", EMU_DESIGNS, design);
	ASSERT(!emu_design_load(0, path, NULL), "%s", emu_error());
	ASSERT(!emu_design_load(1, EMU_DESIGNS "/mm/mmap-sem-rbtree.so", NULL), "%s", emu_error());
	ASSERT(!emu_arena_format(base, ARENA_BYTES, &config), "%s", emu_error());
	ASSERT(emu_file_add("anchor", PAGES) == FILE_ANCHOR && emu_file_add("churn", 2 * PAGES) == FILE_CHURN, "files");
	ASSERT(emu_list_add(&fork_call, 1) == LIST_FORK && emu_list_add(&exit_call, 1) == LIST_EXIT &&
		       emu_list_add(&exec_call, 1) == LIST_EXEC && emu_list_add(NULL, 0) == LIST_IMAGE,
	       "lists");
	ASSERT(!emu_boot(), "%s", emu_error());
	run_cpus();
	ASSERT(!emu_check_drained(), "%s", emu_error());
	ASSERT(atomic_load(&shared->walks) > 0, "nobody walked");
	for (uint32_t cpu = 0; cpu < CPUS; cpu++)
		for (uint32_t i = 0; i < emu_nr_lock_classes() * EMU_SITES_MAX; i++)
			acquired += emu_cpu_lock_stats(cpu)[i].acquired;
	ASSERT(acquired > (uint64_t)CPUS * calls_per_cpu / 2, "only %llu acquisitions", (unsigned long long)acquired);
	munmap(base, ARENA_BYTES);
}

static void single(void)
{
	stress("single", false);
}

static void numa_trees(void)
{
	stress("numa-trees", false);
}

static void numa_locks(void)
{
	stress("numa-locks", false);
}

static void numa_locks_with_penalty(void)
{
	stress("numa-locks", true);
}

int main(int argc, char **argv)
{
	static const char *const designs[] = { EMU_DESIGNS "/rmap/single.so", EMU_DESIGNS "/rmap/numa-trees.so",
					       EMU_DESIGNS "/rmap/numa-locks.so" };

	if (argc > 1)
		calls_per_cpu = (uint32_t)strtoul(argv[1], NULL, 10);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(shared != MAP_FAILED, "mmap");
	/* Open to the end: a sanitizer names functions only of what it saw loaded before its first report. */
	for (uint32_t i = 0; i < ARRAY_SIZE(designs); i++)
		ASSERT(dlopen(designs[i], RTLD_NOW), "%s", dlerror());
	TEST(single);
	TEST(numa_trees);
	TEST(numa_locks);
	TEST(numa_locks_with_penalty);
	return test_report();
}
