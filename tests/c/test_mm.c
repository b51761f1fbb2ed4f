/* SPDX-License-Identifier: MIT */
/*
 * test_mm.c - the small mm under every rmap design in EMU_DESIGNS/rmap, with many CPUs at once.
 *
 * Each CPU keeps one mapping of all pages of the file "anchor" and changes the protection of random parts of it, so that
 * it is split and merged all the time; beside that it maps, unmaps, forks and exits on the file "churn". Every few calls
 * a CPU walks the anchor and must find each page of each CPU's mapping exactly once: a walker that sees a half-done
 * split, a hole, an overlap or a VMA twice fails. A CPU that has just forked walks too, and must meet each page of the
 * parent's anchor before the child's. At the end nothing may be left.
 *
 * Of a file that a design keeps out of its index, a walk must say so, always; whether the file is mapped must be right.
 *
 * A CPU is a process, or with -DEMU_TEST_THREADS a thread, so that the thread sanitizer sees them all.
 */
#define _GNU_SOURCE
#include "test.h"

#include <emu/control.h>

#include <dirent.h>
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

static uint32_t calls_per_cpu = 20000;
static bool refuses_walks; /* the design under test, for the anchor */

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

/* Pages of the anchor that a walk has met so far, a bit a page. */
struct family {
	struct mm_struct *parent, *child;
	uint64_t parents, childs;
};

static int look_for_family(struct vm_area_struct *vma, void *arg)
{
	struct family *family = arg;
	uint64_t pages = (vma_pages(vma) == PAGES ? 0 : UINT64_C(1) << vma_pages(vma)) - 1;

	pages <<= vma->vm_pgoff;
	if (vma->vm_mm == family->parent)
		family->parents |= pages;
	if (vma->vm_mm == family->child) {
		ASSERT(!(pages & ~family->parents), "pages %#llx of the child before the parent's %#llx",
		       (unsigned long long)pages, (unsigned long long)family->parents);
		family->childs |= pages;
	}
	return 0;
}

static void run_list(uint32_t list)
{
	uint32_t failed;
	int ret = emu_list_run(list, &failed);

	ASSERT(!ret, "list %u: %s", list, emu_error());
}

/* As long as neither changes its mappings, and the parent does not run before the child has left. */
static void fork_in_order(void)
{
	struct family family = { .parent = current->mm };
	int ret;

	run_list(LIST_FORK);
	family.child = current->mm;
	ret = emu_rmap->walk(emu_file(FILE_ANCHOR), 0, PAGES - 1, false, look_for_family, &family);
	ASSERT(ret == (refuses_walks ? -EOPNOTSUPP : 0), "a walk of the anchor: %d", ret);
	ASSERT(refuses_walks || (family.parents & family.childs) == UINT64_MAX, "parent %#llx, child %#llx",
	       (unsigned long long)family.parents, (unsigned long long)family.childs);
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
				fork_in_order();
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

static void stress(const char *design, const char *params, bool penalty)
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
	ASSERT(!emu_design_load(0, path, params), "%s", emu_error());
	ASSERT(!emu_design_load(1, EMU_DESIGNS "/mm/mmap-sem-rbtree.so", NULL), "%s", emu_error());
	ASSERT(!emu_arena_format(base, ARENA_BYTES, &config), "%s", emu_error());
	ASSERT(emu_file_add("anchor", PAGES) == FILE_ANCHOR && emu_file_add("libchurn.so.1", 2 * PAGES) == FILE_CHURN, "files");
	ASSERT(emu_list_add(&fork_call, 1) == LIST_FORK && emu_list_add(&exit_call, 1) == LIST_EXIT &&
		       emu_list_add(&exec_call, 1) == LIST_EXEC && emu_list_add(NULL, 0) == LIST_IMAGE,
	       "lists");
	ASSERT(!emu_boot(), "%s", emu_error());
	emu_cpu_attach(0);
	refuses_walks = emu_rmap->walk(emu_file(FILE_ANCHOR), 0, 0, true, look, NULL) == -EOPNOTSUPP;
	run_cpus();
	ASSERT(!emu_check_drained(), "%s", emu_error());
	ASSERT(refuses_walks == !atomic_load(&shared->walks), "%llu walks",
	       (unsigned long long)atomic_load(&shared->walks));
	for (uint32_t cpu = 0; cpu < CPUS; cpu++)
		for (uint32_t i = 0; i < emu_nr_lock_classes() * EMU_SITES_MAX; i++)
			acquired += emu_cpu_lock_stats(cpu)[i].acquired;
	ASSERT(acquired > (uint64_t)CPUS * calls_per_cpu / 2, "only %llu acquisitions", (unsigned long long)acquired);
	munmap(base, ARENA_BYTES);
}

/* Every design is run as it is; some in other ways too. */
static const struct variant {
	const char *design, *params;
	bool penalty;
} variants[] = {
	{ "numa-locks", NULL, true },
	{ "cpu-locks", "cpus=1", false },
	{ "cpu-locks", "cpus=3", false },
	{ "outer-inner", "shards=3,by=vma", true },
	{ "outer-inner", "shards=4,by=mm", false },
	{ "outer-percpu", "shards=3,by=vma", false },
	{ "outer-percpu", "shards=1", false },
	{ "dynamic", "threshold=0,shards=3", false },
	{ "dynamic", "threshold=300", false },
	{ "exclude", "files=all", false },
	{ "btree", "node=128", false },
	{ "btree", "node=512", true },
};

static void run(const char *design, const char *params, bool penalty)
{
	printf("%s%s%s%s ... ", design, params ? ":" : "", params ? params : "", penalty ? " with penalty" : "");
	fflush(stdout);
	stress(design, params, penalty);
	printf("ok\n");
	test_passed++;
}

static int is_design(const struct dirent *entry)
{
	size_t len = strlen(entry->d_name);

	return len > 3 && !strcmp(entry->d_name + len - 3, ".so");
}

/* test_mm [calls per CPU [design]] */
int main(int argc, char **argv)
{
	struct dirent **designs;
	int n = scandir(EMU_DESIGNS "/rmap", &designs, is_design, alphasort);

	ASSERT(n > 0, "no designs in %s", EMU_DESIGNS "/rmap");
	if (argc > 1)
		calls_per_cpu = (uint32_t)strtoul(argv[1], NULL, 10);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(shared != MAP_FAILED, "mmap");
	/* Open to the end: a sanitizer names functions only of what it saw loaded before its first report. */
	for (int i = 0; i < n; i++) {
		char path[512];

		snprintf(path, sizeof(path), "%s/rmap/%s", EMU_DESIGNS, designs[i]->d_name);
		ASSERT(dlopen(path, RTLD_NOW), "%s", dlerror());
	}
	for (int i = 0; i < n; i++) {
		char *design = designs[i]->d_name;

		design[strlen(design) - 3] = '\0';
		if (argc <= 2 || !strcmp(design, argv[2])) {
			run(design, NULL, false);
			for (uint32_t v = 0; v < ARRAY_SIZE(variants); v++)
				if (!strcmp(design, variants[v].design))
					run(design, variants[v].params, variants[v].penalty);
		}
		free(designs[i]);
	}
	free(designs);
	return test_report();
}
