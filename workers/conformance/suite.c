/* SPDX-License-Identifier: MIT */
/*
 * suite.c - runs a rule: set-up, barriers, what CPUs report (see conformance.h).
 */
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct check *check;

static const struct conformance_rule *const suites[] = { rmap_rules, mm_rules };

const char *conformance_rule(uint32_t kind, uint32_t n, const char **text)
{
	if (kind >= ARRAY_SIZE(suites))
		return NULL;
	for (uint32_t i = 0; i < n; i++)
		if (!suites[kind][i].name)
			return NULL;
	*text = suites[kind][n].text;
	return suites[kind][n].name;
}

int conformance_has_quiet(uint32_t kind, uint32_t n)
{
	return suites[kind][n].quiet != NULL;
}

static int never(struct vm_area_struct *vma, void *arg)
{
	(void)vma;
	(void)arg;
	return 0;
}

void conformance_begin(uint32_t kind, uint32_t n, uint32_t steps)
{
	struct task_struct *caller = current;

	emu_cpu_attach(0);
	check = emu_zalloc(sizeof(*check), 0);
	check->kind = kind;
	check->rule = n;
	check->steps = steps;
	check->nr_cpus = emu_nr_tasks();
	check->cpus = emu_zalloc(check->nr_cpus * sizeof(*check->cpus), 0);
	atomic_store(&check->busy, check->nr_cpus);
	if (kind)
		mm_begin();
	for (uint32_t i = 0; i < PROCESSES && !kind; i++) {
		struct process *p = emu_zalloc(sizeof(*p), i % emu_nr_nodes());

		init_rwsem(&p->lock, EMU_CLASS_MMAP_LOCK);
		spin_lock_init(&p->ptl, 0);
		p->id = i;
		for (uint32_t file = 0; file < FILES; file++) {
			for (uint32_t j = 0; j < POOL; j++) {
				p->pool[file][j].process = i;
				p->pool[file][j].file = file;
			}
		}
		check->process[i] = p;
	}
	for (uint32_t file = 0; file < FILES; file++)
		if (emu_rmap->walk(emu_file(file), 0, PAGES - 1, true, never, NULL) == -EOPNOTSUPP)
			check->declared |= 1u << file;
	check->bytes_at_begin = emu_live_bytes();
	current = caller;
}

void conformance_cpu(void *unused)
{
	(void)unused;
	suites[check->kind][check->rule].cpu();
}

void conformance_quiet(void *times)
{
	suites[check->kind][check->rule].quiet((uint32_t)(uintptr_t)times);
}

/* In the conductor: what the hooks of the last CPU have left. */
static const char *left_over(void)
{
	static char text[256];

	for (uint32_t file = 0; file < FILES; file++) {
		uint64_t vmas = emu_file_vmas(file);

		if (vmas == UINT64_MAX)
			snprintf(text, sizeof(text), "all CPUs are done and a lock of %s is still held",
				 emu_file(file)->name);
		else if (vmas)
			snprintf(text, sizeof(text), "all is unmapped and a walk of %s still meets %llu VMAs",
				 emu_file(file)->name, (unsigned long long)vmas);
		else
			continue;
		return text;
	}
	return NULL;
}

const char *conformance_end(struct conformance_totals *totals)
{
	struct task_struct *caller = current;
	const char *why;

	if (totals->bytes != sizeof(*totals))
		return "struct conformance_totals has another size here";
	emu_cpu_attach(0);
	why = left_over();
	totals->declared = check->declared;
	totals->used_file_bytes = check->used_file_bytes;
	totals->mm_bytes = check->mm_bytes;
	totals->vma_millibytes = check->vma_millibytes;
	for (uint32_t cpu = 0; cpu < check->nr_cpus; cpu++) {
		const struct conformance_totals *t = &check->cpus[cpu].totals;

		totals->walks += t->walks;
		totals->refused += t->refused;
		totals->vmas += t->vmas;
		totals->changes += t->changes;
		totals->answers += t->answers;
		totals->faults += t->faults;
		totals->undecided += t->undecided;
		totals->addresses += t->addresses;
		totals->forks += t->forks;
	}
	for (uint32_t i = 0; i < PROCESSES; i++)
		emu_free(check->process[i]);
	emu_free(check->threads);
	emu_free(check->cpus);
	emu_free(check);
	check = NULL;
	current = caller;
	return why;
}

const char *conformance_doing(uint32_t cpu)
{
	static char text[160];
	const char *hook = atomic_load_explicit(&check->cpus[cpu].doing, memory_order_relaxed);
	uint32_t file = atomic_load_explicit(&check->cpus[cpu].file, memory_order_relaxed);

	if (!hook)
		return NULL;
	if (check->kind)
		return hook;
	snprintf(text, sizeof(text), "%s of %s", hook, emu_file(file)->name);
	return text;
}

uint64_t conformance_steps(uint32_t cpu)
{
	return atomic_load_explicit(&check->cpus[cpu].steps, memory_order_relaxed);
}

void broken(const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "emu: CPU %u: %s\n", current->nr, text);
	emu_fail("CPU %u: %s", current->nr, text);
}

void barrier(void)
{
	uint32_t turn = atomic_load_explicit(&check->turn, memory_order_acquire);

	/* Release and acquire: what any CPU did before is seen by all after. */
	if (atomic_fetch_add_explicit(&check->arrived, 1, memory_order_acq_rel) + 1 == check->nr_cpus) {
		atomic_store_explicit(&check->arrived, 0, memory_order_relaxed);
		atomic_store_explicit(&check->turn, turn + 1, memory_order_release);
		emu_futex_wake(&check->turn, INT_MAX);
		return;
	}
	while (atomic_load_explicit(&check->turn, memory_order_acquire) == turn)
		emu_futex_wait(&check->turn, turn);
}

void publish(uint32_t value)
{
	atomic_store_explicit(&check->flag, value, memory_order_release);
	emu_futex_wake(&check->flag, INT_MAX);
}

void wait_for(uint32_t value)
{
	uint32_t now;

	while ((now = atomic_load_explicit(&check->flag, memory_order_acquire)) != value)
		emu_futex_wait(&check->flag, now);
}

/* From some ns to some us, each power of two as likely; and now and then long enough for everybody to come by. */
void jitter(void)
{
	uint64_t limit_ns = UINT64_C(4) << below(10);

	if (below(64) == 0)
		limit_ns = 50000;
	emu_compute(below((uint32_t)limit_ns));
}

void doing(const char *hook, uint32_t file)
{
	struct check_cpu *cpu = check_here();

	atomic_store_explicit(&cpu->file, file, memory_order_relaxed);
	atomic_store_explicit(&cpu->doing, hook, memory_order_relaxed);
	/* Its own word: only the conductor reads it. Release: the thread sanitizer forgets where a look that is repeated
	 * without any was from. */
	atomic_store_explicit(&cpu->steps, atomic_load_explicit(&cpu->steps, memory_order_relaxed) + 1,
			      memory_order_release);
}
