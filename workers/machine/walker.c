/* SPDX-License-Identifier: MIT */
/*
 * walker.c - walkers of a workload: when they walk, what came of it, and whether they missed anything.
 *
 * A walker has no CPU of its own: when its time has come, the CPU that it belongs to walks before its program's next
 * call, as a kernel thread that gets the CPU when a system call ends. Times that have passed meanwhile are left out.
 *
 * After each walk every page table of every process is searched for pages that the walk should have changed. That knows
 * neither VMAs nor i_mmap. It is no part of what is emulated: on the virtual engine it takes no time and nothing else
 * happens meanwhile; on the native one it is not in the walk's latency.
 */
#include "internal.h"
#include "../mm/internal.h"
#include "../mm/walk.h"

#include <errno.h>
#include <string.h>

static const char *const kind_names[EMU_WALK_NR] = { "truncate", "reclaim", "migrate" };

const char *emu_walk_name(uint32_t kind)
{
	return kind < EMU_WALK_NR ? kind_names[kind] : "?";
}

int emu_walker_add(uint32_t kind, uint32_t cpu, uint32_t file, uint64_t first, uint64_t last, uint64_t at_once,
		   uint64_t every_ns)
{
	struct emu_arena *arena = emu_arena;

	if (arena->nr_walkers == arena->config.nr_walkers)
		return emu_set_error(-ENOSPC, "more than %u walkers", arena->config.nr_walkers);
	if (kind >= EMU_WALK_NR || cpu >= arena->config.nr_cpus || file >= arena->nr_files || !every_ns ||
	    !at_once || first > last || last >= arena->files[file].nr_pages)
		return emu_set_error(-EINVAL, "a walker of kind %u on CPU %u, pages %llu to %llu of file %u, every %llu ns",
				     kind, cpu, (unsigned long long)first, (unsigned long long)last, file,
				     (unsigned long long)every_ns);
	arena->walkers[arena->nr_walkers] = (struct emu_walker){
		.kind = kind,	      .cpu = cpu,	      .file = file,  .first = first, .last = last,
		.at_once = at_once, .every_ns = every_ns, .next = first,
	};
	return (int)arena->nr_walkers++;
}

const struct emu_walker *emu_walker(uint32_t n)
{
	return &emu_arena->walkers[n];
}

void emu_walkers_reset(struct emu_cpu *cpu)
{
	cpu->walk_due_ns = UINT64_MAX;
	for (uint32_t i = 0; i < emu_arena->nr_walkers; i++) {
		struct emu_walker *w = &emu_arena->walkers[i];

		if (w->cpu != cpu->task.nr)
			continue;
		w->done = w->refused = w->lost = w->vmas = w->pages = 0;
		memset(&w->latency, 0, sizeof(w->latency));
	}
}

void emu_walkers_start(struct emu_cpu *cpu)
{
	for (uint32_t i = 0; i < emu_arena->nr_walkers; i++) {
		struct emu_walker *w = &emu_arena->walkers[i];

		if (w->cpu != cpu->task.nr)
			continue;
		w->due_ns = emu_arena->phase.start_ns + w->every_ns;
		if (w->due_ns < cpu->walk_due_ns)
			cpu->walk_due_ns = w->due_ns;
	}
}

/*
 * The list of address spaces: a list a CPU, of those that were made there. Its lock also keeps the page tables of what
 * is in it. The virtual machine needs no lock: none of this can be interrupted there.
 */
static void mms_lock(struct emu_cpu *cpu)
{
	if (EMU_CPUS_AT_ONCE)
		emu_raw_lock(&cpu->mms_locked);
}

static void mms_unlock(struct emu_cpu *cpu)
{
	if (EMU_CPUS_AT_ONCE)
		emu_raw_unlock(&cpu->mms_locked);
}

void emu_mm_register(struct mm_struct *mm)
{
	struct emu_cpu *cpu = emu_this_cpu();

	if (likely(!emu_arena->nr_walkers))
		return;
	mm->listed_cpu = cpu->task.nr;
	mms_lock(cpu);
	mm->prev_mm = NULL;
	mm->next_mm = cpu->mms;
	if (cpu->mms)
		cpu->mms->prev_mm = mm;
	cpu->mms = mm;
	mms_unlock(cpu);
}

void emu_mm_unregister(struct mm_struct *mm)
{
	struct emu_cpu *cpu = &emu_arena->cpus[mm->listed_cpu];

	if (likely(!emu_arena->nr_walkers))
		return;
	mms_lock(cpu);
	if (mm->prev_mm)
		mm->prev_mm->next_mm = mm->next_mm;
	else
		cpu->mms = mm->next_mm;
	if (mm->next_mm)
		mm->next_mm->prev_mm = mm->prev_mm;
	mms_unlock(cpu);
}

void emu_page_tables_lock(struct mm_struct *mm)
{
	if (unlikely(emu_arena->nr_walkers))
		mms_lock(&emu_arena->cpus[mm->listed_cpu]);
}

void emu_page_tables_unlock(struct mm_struct *mm)
{
	if (unlikely(emu_arena->nr_walkers))
		mms_unlock(&emu_arena->cpus[mm->listed_cpu]);
}

/* Has the walk missed this? */
static bool is_missed(const struct emu_walk *walk, uint64_t pte, uint64_t generation)
{
	if (!pte || pte_file(pte) != walk->mapping->id || pte_page(pte) < walk->first || pte_page(pte) > walk->last)
		return false;
	switch (walk->kind) {
	case EMU_WALK_RECLAIM:
		return !(pte & PTE_ANON);
	case EMU_WALK_MIGRATE:
		return !(pte & PTE_ANON) && (pte & PTE_MIGRATION || pte_generation(pte) != generation);
	default:
		return true;
	}
}

static int check_mm(const struct emu_walk *walk, struct mm_struct *mm, uint32_t cpu)
{
	uint64_t generation = atomic_load(&walk->mapping->generation) & PTE_GENERATION_MASK, next;

	for (uint64_t addr = 0; addr < EMU_TASK_SIZE; addr = next) {
		const struct page_table *table = pte_find(mm, addr, &next);

		if (!table)
			continue;
		next = addr + EMU_PMD_SIZE;
		for (uint32_t i = 0; i < EMU_PTRS_PER_TABLE; i++) {
			uint64_t pte = pte_get(table, i);

			if (unlikely(is_missed(walk, pte, generation)))
				return emu_set_error(
					-EBADMSG,
					"%s of pages %llu to %llu of %s has visited %llu VMAs and missed one: page %llu is "
					"still mapped at %#llx, in a process made on CPU %u",
					emu_walk_name(walk->kind), (unsigned long long)walk->first,
					(unsigned long long)walk->last, walk->mapping->name,
					(unsigned long long)walk->vmas, (unsigned long long)pte_page(pte),
					(unsigned long long)(addr + i * EMU_PAGE_SIZE), cpu);
		}
	}
	return 0;
}

int emu_walk_check(const struct emu_walk *walk)
{
	int err = 0;

	for (uint32_t i = 0; i < emu_arena->config.nr_cpus && !err; i++) {
		struct emu_cpu *cpu = &emu_arena->cpus[i];

		mms_lock(cpu);
		for (struct mm_struct *mm = cpu->mms; mm && !err; mm = mm->next_mm)
			err = check_mm(walk, mm, i);
		mms_unlock(cpu);
	}
	return err;
}

static int run_one(struct emu_cpu *cpu, struct emu_walker *w)
{
	struct emu_walk walk = {
		.kind = w->kind,
		.mapping = &emu_arena->files[w->file],
		.first = w->next,
		.last = w->last - w->next < w->at_once ? w->last : w->next + w->at_once - 1,
		.taken = emu_walk_check,
	};
	int err = emu_walk(&walk);

	w->next = walk.last < w->last ? walk.last + 1 : w->first;
	switch (err) {
	case 0:
		w->done++;
		w->vmas += walk.vmas;
		w->pages += walk.pages;
		emu_hist_record(&w->latency, walk.ns);
		if (emu_arena->phase_record)
			emu_hist_record(&cpu->counter->hists[EMU_LAT_WALK], walk.ns);
		return 0;
	case -EAGAIN:
		w->refused++;
		return 0;
	case -EOPNOTSUPP:
		w->lost++;
		return 0;
	default:
		return err;
	}
}

int emu_walkers_run(struct emu_cpu *cpu)
{
	uint64_t due_ns = UINT64_MAX;

	for (uint32_t i = 0; i < emu_arena->nr_walkers; i++) {
		struct emu_walker *w = &emu_arena->walkers[i];
		uint64_t now_ns;
		int err;

		if (w->cpu != cpu->task.nr)
			continue;
		if (w->due_ns <= emu_clock_ns()) {
			err = run_one(cpu, w);
			if (err)
				return err;
			now_ns = emu_clock_ns();
			w->due_ns += ((now_ns - w->due_ns) / w->every_ns + 1) * w->every_ns;
		}
		if (w->due_ns < due_ns)
			due_ns = w->due_ns;
	}
	cpu->walk_due_ns = due_ns;
	return 0;
}
