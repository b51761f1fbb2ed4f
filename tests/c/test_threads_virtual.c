/* SPDX-License-Identifier: MIT */
/*
 * test_threads_virtual.c - every mm design in EMU_DESIGNS/mm under threads, on the virtual machine, with several seeds
 * (see thread_cases.h); and that each rule is found broken in a design that breaks it. A seed gives one run, so that what
 * is found once is found always.
 *
 * A broken design is a good one with one hook replaced. The runs that are to fail end in a process of their own.
 */
#define _GNU_SOURCE
#include "virtual_machine.h"

#include "thread_cases.h"

#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEEDS 4u

extern EMU_EXPORT const struct mm_ops *emu_mm;
static void (*break_it)(struct mm_ops *ops);
static struct mm_ops broken;
static const struct mm_ops *good;

static void on_cpu(void *arg)
{
	(void)arg;
	emu_rcu_online();
	thread_main();
	emu_rcu_idle();
}

static uint64_t seed;

static void run_threads(const char *design)
{
	static const struct shape shape = { .sockets = 2, .nodes = 1, .l3 = 1, .cores = 2, .smt = 1 };
	struct emu_config config = { .seed = seed, .nr_files = NR_FILES, .nr_lists = NR_LISTS, .nr_calls = 4 };
	char path[512];

	snprintf(path, sizeof(path), "%s/mm/%s", EMU_DESIGNS, design);
	ASSERT(!emu_design_load(0, EMU_DESIGNS "/rmap/single.so", NULL), "%s", emu_error());
	ASSERT(!emu_design_load(1, path, NULL), "%s", emu_error());
	if (break_it) {
		good = emu_mm;
		broken = *emu_mm;
		break_it(&broken);
		emu_mm = &broken;
	}
	machine_format(&shape, CPUS, &config);
	shared = machine_zalloc(sizeof(*shared), 0);
	boot_threads();
	machine_model(&config);
	ASSERT(!emu_virtual_run(on_cpu, NULL), "%s", emu_error());
	check_threads();
	emu_design_unload();
	machine_end();
}

static int is_design(const struct dirent *entry)
{
	size_t len = strlen(entry->d_name);

	return len > 3 && !strcmp(entry->d_name + len - 3, ".so");
}

static void all_designs(void)
{
	struct dirent **designs;
	int n = scandir(EMU_DESIGNS "/mm", &designs, is_design, alphasort);

	ASSERT(n > 0, "no designs in %s", EMU_DESIGNS "/mm");
	for (int i = 0; i < n; i++) {
		for (seed = 1; seed <= SEEDS; seed++)
			run_threads(designs[i]->d_name);
		free(designs[i]);
	}
	free(designs);
}

/* Some seed finds the rule broken, and says so in these words. */
static void is_found(const char *design, void (*breaking)(struct mm_ops *ops), const char *const words[])
{
	for (seed = 1; seed <= 8; seed++) {
		char text[2048] = "";
		size_t used = 0;
		int out[2], status;
		ssize_t n;
		pid_t pid;

		ASSERT(!pipe(out), "pipe");
		fflush(stdout);
		pid = fork();
		ASSERT(pid >= 0, "fork");
		if (!pid) {
			dup2(out[1], STDERR_FILENO);
			break_it = breaking;
			run_threads(design);
			_exit(0);
		}
		close(out[1]);
		while ((n = read(out[0], text + used, sizeof(text) - 1 - used)) > 0)
			used += (size_t)n;
		close(out[0]);
		ASSERT(waitpid(pid, &status, 0) == pid, "waitpid");
		if (!status)
			continue;
		ASSERT(used, "status %#x without a word", (unsigned int)status);
		for (uint32_t i = 0; words[i]; i++)
			if (strstr(text, words[i]))
				return;
		ASSERT(false, "found something else: %s", text);
	}
	ASSERT(false, "not found in 8 runs");
}

/* Faults go on while VMAs change: they find half of a change, or what is no longer there. */
static int fault_without_lock(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct vm_area_struct *vma = good->find(mm, addr, addr + 1, NULL);

	emu_compute(500);
	return fault_in_vma(vma, addr, write, busy);
}

static void break_fault(struct mm_ops *ops)
{
	ops->fault = fault_without_lock;
}

static void a_fault_without_lock_is_found(void)
{
	static const char *const words[] = { "a mixture", "a page", "which is", "PTEs from", "Bad address", NULL };

	is_found("mmap-lock-maple.so", break_fault, words);
}

/* Before it goes by the protection that it looked up, mprotect may have taken it away. */
static struct vm_area_struct stale[CPUS];

static int fault_by_old_flags(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct mm_range range = { .start = addr, .end = addr + EMU_PAGE_SIZE, .read = true };
	struct vm_area_struct *vma, *copy = &stale[current->cpu];
	int err = -EFAULT;

	good->lock(mm, &range);
	vma = good->find(mm, addr, addr + 1, NULL);
	if (vma)
		*copy = *vma;
	good->unlock(mm, &range);
	if (vma) {
		emu_compute(500);
		good->lock(mm, &range);
		vma = good->find(mm, addr, addr + 1, NULL);
		if (vma && vma->vm_file == copy->vm_file && vma->vm_pgoff == copy->vm_pgoff &&
		    vma->vm_start == copy->vm_start)
			err = fault_in_vma(copy, addr, write, busy);
		good->unlock(mm, &range);
	}
	return err == -EFAULT ? good->fault(mm, addr, write, busy) : err;
}

static void break_flags(struct mm_ops *ops)
{
	ops->fault = fault_by_old_flags;
}

static void an_old_protection_is_found(void)
{
	static const char *const words[] = { "written to what is for reading", "can be written is left", NULL };

	is_found("mmap-sem-rbtree.so", break_flags, words);
}

/* The address is chosen, and only then the range is locked. */
static int64_t lock_after_choosing(struct mm_struct *mm, struct mm_range *range)
{
	int64_t err = good->lock(mm, range);

	if (!range->len || err)
		return err;
	good->unlock(mm, range);
	emu_compute(500);
	range->len = 0;
	return good->lock(mm, range);
}

static void break_lock(struct mm_ops *ops)
{
	ops->lock = lock_after_choosing;
}

static void addresses_given_twice_are_found(void)
{
	static const char *const words[] = { "is CPU", "own memory", NULL };

	is_found("mmap-lock-maple.so", break_lock, words);
}

/* Fork locks nothing that a change would meet. */
static int64_t lock_but_not_for_fork(struct mm_struct *mm, struct mm_range *range)
{
	if (!range->start && range->end == EMU_TASK_SIZE && atomic_load(&mm->mm_users) > 1)
		range->start = EMU_TASK_SIZE - EMU_PAGE_SIZE;
	return good->lock(mm, range);
}

static struct vm_area_struct *find_without_lock(struct mm_struct *mm, uint64_t addr, uint64_t end,
						struct vm_area_struct **prev)
{
	struct vm_area_struct *vma = NULL;

	if (end != EMU_TASK_SIZE || atomic_load(&mm->mm_users) < 2)
		return good->find(mm, addr, end, prev);
	/* In tables that others have locked, too. Takes its time, so that these may come between. */
	emu_compute(1000);
	for (uint64_t at = addr, next; at < end && !vma; at = next) {
		struct page_table *table = pte_find(mm, at, &next);
		struct rb_root *root;

		if (!table)
			continue;
		next = (at | (EMU_PMD_SIZE - 1)) + 1;
		root = (struct rb_root *)(void *)(table->extents + sizeof(struct rw_semaphore) + sizeof(void *));
		for (struct rb_node *node = rb_first(root); node && !vma; node = rb_next(node)) {
			struct vm_area_struct *each = rb_entry(node, struct vm_area_struct, vm_rb);

			if (each->vm_end > at)
				vma = each;
		}
	}
	return vma;
}

static void break_fork(struct mm_ops *ops)
{
	ops->lock = lock_but_not_for_fork;
	ops->find = find_without_lock;
}

static void half_a_fork_is_found(void)
{
	/*
	 * Or it copies a VMA that is another one by the time that it is linked; or it writes the VMA as it was over what
	 * another CPU has made of it, which the parent's own faults then show.
	 */
	static const char *const words[] = { "the child has one half", "after one from", "a fault for ", NULL };

	is_found("pt-extents.so", break_fork, words);
}

/* In the middle of a fault it says that it holds nothing that readers find: the VMA is freed and filled. */
static int fault_with_a_nap(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct vm_area_struct *vma = good->find(mm, addr, addr + 1, NULL);

	if (vma) {
		emu_rcu_idle();
		emu_compute(100000);
		/* A look at what is shared: the others come first. */
		(void)atomic_load(&shared->arrived);
		ASSERT(vma->vm_mm == mm, "a VMA was freed under a reader");
		emu_rcu_online();
	}
	return good->fault(mm, addr, write, busy);
}

static void break_grace(struct mm_ops *ops)
{
	ops->fault = fault_with_a_nap;
}

static void a_reader_that_naps_is_found(void)
{
	static const char *const words[] = { "a VMA was freed under a reader", NULL };

	is_found("spf.so", break_grace, words);
}

int main(void)
{
	TEST(all_designs);
	TEST(a_fault_without_lock_is_found);
	TEST(an_old_protection_is_found);
	TEST(addresses_given_twice_are_found);
	TEST(half_a_fork_is_found);
	TEST(a_reader_that_naps_is_found);
	return test_report();
}
