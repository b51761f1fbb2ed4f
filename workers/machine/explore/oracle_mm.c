/* SPDX-License-Identifier: MIT */
/*
 * oracle_mm.c - what must hold for mm designs (the rules in emu/mm_ops.h), in scenarios of kind EMU_SCENARIO_MM.
 *
 * The design's hooks are wrapped, and a copy of what is linked is kept. From it follows what each page is: nothing, or a
 * page of a file or of nobody with a protection. A change makes all that it does to a page one step from old to new,
 * which begins when its range is locked and is over when the unlock has returned. A fault is judged when no change of
 * its page goes on: its result must be that of what the page was, or became, at some time while it ran. What was replaced
 * before it began, as far as that happens before in the sense of C11, does not count.
 *
 * What PTEs say is compared with what the page is whenever that is settled: when a range is unlocked, when a fault
 * ends, and at the end. Memory is the machine's business (use after free), and so is what races.
 */
#include "internal.h"
#include "../../mm/internal.h"

#include <errno.h>
#include <stdio.h>

#define AREAS_MAX 128u
#define PAGES_MAX 256u
#define VERSIONS 12u
#define FAULTS_MAX 64u
#define HOLDS 2u /* of a CPU: fork has two */
#define FOUND_MAX 16u
#define TOUCHED_MAX 64u

/* A linked VMA; addresses in pages. */
struct area {
	const struct vm_area_struct *vma;
	const struct mm_struct *mm;
	uint64_t start, end, pgoff;
	struct address_space *file;
	uint32_t flags;
	uint32_t since, by;
};

/* What a page is. */
struct state {
	const struct address_space *file;
	uint64_t page;
	uint32_t flags;
	bool mapped;
};

struct version {
	struct state state;
	uint32_t from;
	uint32_t replaced_by; /* CPU + 1; 0: by none so far */
	int32_t replaced_at;  /* that CPU's time */
};

struct page {
	const struct mm_struct *mm; /* NULL: gone */
	uint64_t page;
	uint32_t busy; /* changes that go on */
	uint32_t nr;
	struct version versions[VERSIONS];
};

struct hold {
	const struct mm_struct *mm; /* NULL: none */
	uint64_t start, end;
	uint32_t begun, from;
	bool map;
	uint32_t nr_found, nr_touched;
	const struct vm_area_struct *found[FOUND_MAX];
	uint32_t touched[TOUCHED_MAX];
};

struct fault {
	const struct mm_struct *mm;
	uint64_t page;
	struct vclock begun;
	uint32_t ended; /* 0: it goes on */
	uint32_t cpu;
	int err;
	bool write;
};

static struct area areas[AREAS_MAX], base_areas[AREAS_MAX];
static struct page pages[PAGES_MAX];
static const struct mm_struct *base_page_mm[PAGES_MAX];
static struct hold holds[CPUS + 1][HOLDS];
static struct fault faults_seen[FAULTS_MAX];
static uint32_t nr_areas, nr_base_areas, nr_pages, nr_base_pages, nr_faults, now;
static const struct mm_ops *design;
static void (*unlock)(struct mm_struct *mm, struct mm_range *range);

/*
 * What pages are
 */

static uint32_t number(const struct vm_area_struct *vma)
{
	const struct object *object = object_at((uintptr_t)vma);

	return object ? object_number(object) : 0;
}

static struct area *area_of(const struct vm_area_struct *vma)
{
	for (uint32_t i = 0; i < nr_areas; i++)
		if (areas[i].vma == vma)
			return &areas[i];
	return NULL;
}

static struct area *area_at(const struct mm_struct *mm, uint64_t page)
{
	for (uint32_t i = 0; i < nr_areas; i++)
		if (areas[i].mm == mm && page >= areas[i].start && page < areas[i].end)
			return &areas[i];
	return NULL;
}

static struct state state_now(const struct mm_struct *mm, uint64_t page)
{
	const struct area *area = area_at(mm, page);

	if (!area)
		return (struct state){ .mapped = false };
	return (struct state){ .mapped = true,
			       .file = area->file,
			       .page = area->pgoff + (page - area->start),
			       .flags = area->flags & (VM_ACCESS | VM_SHARED) };
}

static bool same(const struct state *a, const struct state *b)
{
	return a->mapped == b->mapped && a->file == b->file && a->page == b->page && a->flags == b->flags;
}

static struct page *find_page(const struct mm_struct *mm, uint64_t page)
{
	for (uint32_t i = 0; i < nr_pages; i++)
		if (pages[i].page == page && pages[i].mm == mm)
			return &pages[i];
	return NULL;
}

/* As it is; before the first change of it. */
static struct page *get_page(const struct mm_struct *mm, uint64_t page)
{
	struct page *p = find_page(mm, page);

	if (p)
		return p;
	if (nr_pages == PAGES_MAX)
		fail(EMU_FOUND_LIVELOCK, "more than %u pages: a shorter scenario is needed", PAGES_MAX);
	p = &pages[nr_pages++];
	p->mm = mm;
	p->page = page;
	p->busy = 0;
	p->nr = 1;
	p->versions[0] = (struct version){ .state = state_now(mm, page) };
	return p;
}

static const char *state_text(const struct state *state, char *buf, size_t size)
{
	if (!state->mapped)
		snprintf(buf, size, "not mapped");
	else
		snprintf(buf, size, "%s page %llu, %c%c%c", state->file ? state->file->name : "anonymous",
			 (unsigned long long)state->page, state->flags & VM_READ ? 'r' : '-',
			 state->flags & VM_WRITE ? 'w' : '-', state->flags & VM_EXEC ? 'x' : '-');
	return buf;
}

/*
 * PTEs
 */

static bool pte_fits(uint64_t pte, const struct state *state, uint64_t page)
{
	uint64_t file = state->file ? state->file->id : PTE_NO_FILE;

	if (!pte)
		return true;
	return state->mapped && pte_file(pte) == file && pte_page(pte) == (state->file ? state->page : page) &&
	       (!(pte & PTE_WRITE) || (state->flags & VM_WRITE)) && !(pte & PTE_EXEC) == !(state->flags & VM_EXEC) &&
	       !(pte & PTE_PRESENT) == !(state->flags & VM_ACCESS);
}

static void check_pte(const struct page *p, const char *when)
{
	uint64_t addr = p->page << EMU_PAGE_SHIFT, pte;
	struct page_table *table;
	struct state state;
	char text[128];

	if (!p->mm || p->busy)
		return;
	table = pte_find((struct mm_struct *)p->mm, addr, NULL);
	pte = table ? pte_get(table, pte_index(addr)) : 0;
	state = p->versions[p->nr - 1].state;
	if (pte_fits(pte, &state, p->page))
		return;
	oracle_rule("%s the page at %#llx is %s, but its PTE %#llx has page %llu of file %lld, %s%s", when,
		    (unsigned long long)addr, state_text(&state, text, sizeof(text)), (unsigned long long)pte,
		    (unsigned long long)pte_page(pte), pte_file(pte) == PTE_NO_FILE ? -1 : (long long)pte_file(pte),
		    pte & PTE_WRITE ? "writable" : "read-only", pte & PTE_EXEC ? ", executable" : "");
}

/*
 * Changes
 */

static struct hold *hold_of(uint32_t cpu, const struct mm_struct *mm)
{
	for (uint32_t i = 0; i < HOLDS; i++)
		if (holds[cpu][i].mm == mm)
			return &holds[cpu][i];
	return NULL;
}

/* This CPU's range. The small mm changes nothing outside of one. */
static struct hold *my_hold(const struct mm_struct *mm)
{
	struct hold *h = hold_of(x.me->cpu, mm);

	EMU_ASSERT(h, "a change without a lock");
	return h;
}

static void touch(struct hold *h, uint64_t page)
{
	struct page *p = get_page(h->mm, page);
	uint32_t index = (uint32_t)(p - pages);

	for (uint32_t i = 0; i < h->nr_touched; i++)
		if (h->touched[i] == index)
			return;
	if (h->nr_touched == TOUCHED_MAX)
		fail(EMU_FOUND_LIVELOCK, "a change of more than %u pages: a shorter scenario is needed", TOUCHED_MAX);
	h->touched[h->nr_touched++] = index;
	p->busy++;
}

static void touch_all(struct hold *h, uint64_t start, uint64_t end)
{
	for (uint64_t page = start; page < end; page++)
		touch(h, page);
}

static void note_found(struct hold *h, const struct vm_area_struct *vma)
{
	for (uint32_t i = 0; i < h->nr_found; i++)
		if (h->found[i] == vma)
			return;
	if (h->nr_found < FOUND_MAX)
		h->found[h->nr_found++] = vma;
}

static void forget_found(struct hold *h, const struct vm_area_struct *vma)
{
	for (uint32_t i = 0; i < h->nr_found; i++)
		if (h->found[i] == vma)
			h->found[i] = h->found[--h->nr_found];
}

/* Nobody else has found it under a lock that he still has. */
static void check_not_found(const struct vm_area_struct *vma, const char *what)
{
	for (uint32_t cpu = 0; cpu < x.nr_cpus; cpu++) {
		if (cpu == x.me->cpu)
			continue;
		for (uint32_t i = 0; i < HOLDS; i++) {
			const struct hold *h = &holds[cpu][i];

			for (uint32_t n = 0; n < h->nr_found && h->mm; n++)
				if (h->found[n] == vma)
					oracle_rule("vma %u %s while CPU%u, which found it, has its range locked",
						    number(vma), what, cpu);
		}
	}
}

/* [start, end) becomes this VMA's: nobody else's, and in no range that somebody else has locked to map in. */
static void check_free(const struct vm_area_struct *vma, uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; i < nr_areas; i++)
		if (areas[i].mm == vma->vm_mm && areas[i].vma != vma && areas[i].start < end && areas[i].end > start)
			oracle_rule("vma %u at [%#llx, +%llu pages) lies over vma %u", number(vma),
				    (unsigned long long)start << EMU_PAGE_SHIFT, (unsigned long long)(end - start),
				    number(areas[i].vma));
	for (uint32_t cpu = 0; cpu < x.nr_cpus; cpu++) {
		const struct hold *h = hold_of(cpu, vma->vm_mm);

		if (cpu != x.me->cpu && h && h->map && h->start < end && h->end > start)
			oracle_rule("vma %u is put where CPU%u has locked the range to map something", number(vma), cpu);
	}
}

static void set_area(struct area *area, const struct vm_area_struct *vma)
{
	area->start = vma->vm_start >> EMU_PAGE_SHIFT;
	area->end = vma->vm_end >> EMU_PAGE_SHIFT;
	area->pgoff = vma->vm_pgoff;
	area->flags = vma->vm_flags;
}

static void checked_link(struct mm_struct *mm, struct vm_area_struct *vma)
{
	uint64_t start = vma->vm_start >> EMU_PAGE_SHIFT, end = vma->vm_end >> EMU_PAGE_SHIFT;
	struct hold *h = my_hold(mm);

	trace_note("link vma %u [%#llx, +%llu pages)", number(vma), (unsigned long long)vma->vm_start,
		   (unsigned long long)(end - start));
	if (area_of(vma))
		oracle_rule("vma %u is linked twice", number(vma));
	check_free(vma, start, end);
	touch_all(h, start, end);
	if (nr_areas == AREAS_MAX)
		fail(EMU_FOUND_LIVELOCK, "more than %u VMAs: a shorter scenario is needed", AREAS_MAX);
	areas[nr_areas] = (struct area){ .vma = vma, .mm = mm, .file = vma->vm_file, .since = ++now, .by = x.me->cpu };
	set_area(&areas[nr_areas++], vma);
	design->link(mm, vma);
}

static void unlink_checked(struct mm_struct *mm, struct vm_area_struct *vma)
{
	struct hold *h = my_hold(mm);
	struct area *area = area_of(vma);

	trace_note("unlink vma %u", number(vma));
	if (!area)
		oracle_rule("vma %u is unlinked, but is not linked", number(vma));
	check_not_found(vma, "is unlinked");
	forget_found(h, vma);
	touch_all(h, area->start, area->end);
	design->change(mm, vma, NULL);
	*area_of(vma) = areas[nr_areas - 1];
	nr_areas--;
}

static void change_checked(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	uint64_t start = to->start >> EMU_PAGE_SHIFT, end = to->end >> EMU_PAGE_SHIFT;
	struct hold *h = my_hold(mm);
	struct area *area = area_of(vma);
	bool is_same = area && area->start == start && area->end == end && area->pgoff == to->pgoff &&
		       area->flags == to->flags;

	trace_note("change vma %u to [%#llx, +%llu pages)", number(vma), (unsigned long long)to->start,
		   (unsigned long long)(end - start));
	if (!area)
		oracle_rule("vma %u is changed, but is not linked", number(vma));
	if (!is_same) {
		check_not_found(vma, "is changed");
		check_free(vma, start, end);
	}
	touch_all(h, area->start, area->end);
	touch_all(h, start, end);
	design->change(mm, vma, to);
	area = area_of(vma);
	set_area(area, vma);
	if (area->start != start || area->end != end || area->pgoff != to->pgoff || area->flags != to->flags)
		oracle_rule("change() of vma %u makes it something else than it was told", number(vma));
}

static void checked_change(struct mm_struct *mm, struct vm_area_struct *vma, const struct vma_change *to)
{
	if (to)
		change_checked(mm, vma, to);
	else
		unlink_checked(mm, vma);
}

static struct vm_area_struct *checked_find(struct mm_struct *mm, uint64_t addr, uint64_t end,
					   struct vm_area_struct **prev)
{
	struct hold *h = my_hold(mm);
	uint64_t first = addr >> EMU_PAGE_SHIFT, last = (end - 1) >> EMU_PAGE_SHIFT;
	struct vm_area_struct *vma = design->find(mm, addr, end, prev);
	const struct area *area = vma ? area_of(vma) : NULL;

	if (vma && (!area || area->mm != mm || area->end <= first || area->start > last))
		oracle_rule("find() from %#llx on gives vma %u, which %s", (unsigned long long)addr, number(vma),
			    area ? "is not there" : "is not linked");
	for (uint32_t i = 0; i < nr_areas; i++) {
		const struct area *each = &areas[i];

		/* What was there before the range was locked, or was put there since by this CPU. */
		if (each->mm == mm && each->end > first && each->start <= last && each->end > h->start &&
		    each->start < h->end && (each->since < h->begun || each->by == x.me->cpu) &&
		    (!area || each->start < area->start))
			oracle_rule("find() from %#llx on misses vma %u", (unsigned long long)addr, number(each->vma));
	}
	if (vma)
		note_found(h, vma);
	if (prev && *prev) {
		area = area_of(*prev);
		if (!area || area->mm != mm || area->end > first)
			oracle_rule("find() from %#llx on gives vma %u as the one before, which is not",
				    (unsigned long long)addr, number(*prev));
		note_found(h, *prev);
	}
	return vma;
}

static int64_t checked_lock(struct mm_struct *mm, struct mm_range *range)
{
	uint64_t low = range->start, high = range->end, len = range->len;
	struct hold *h = hold_of(x.me->cpu, NULL);
	uint32_t begun = ++now;
	int64_t err;

	EMU_ASSERT(h, "CPU%u has more than %u ranges locked", x.me->cpu, HOLDS);
	trace_note("lock [%#llx, %#llx)%s", (unsigned long long)low, (unsigned long long)high,
		   len ? ", any free range in it" : "");
	err = design->lock(mm, range);
	if (err) {
		trace_note("lock: %lld", (long long)err);
		return err;
	}
	*h = (struct hold){ .mm = mm,
			    .start = range->start >> EMU_PAGE_SHIFT,
			    .end = range->end >> EMU_PAGE_SHIFT,
			    .begun = begun,
			    .from = ++now,
			    .map = range->map || len };
	trace_note("locked [%#llx, %#llx)", (unsigned long long)range->start, (unsigned long long)range->end);
	if (!len)
		return 0;
	if (range->start < low || range->end > high || range->end - range->start != len ||
	    range->start % EMU_PAGE_SIZE)
		oracle_rule("lock() chooses [%#llx, %#llx) for %llu bytes in [%#llx, %#llx)",
			    (unsigned long long)range->start, (unsigned long long)range->end, (unsigned long long)len,
			    (unsigned long long)low, (unsigned long long)high);
	for (uint64_t page = h->start; page < h->end; page++)
		if (area_at(mm, page))
			oracle_rule("lock() chooses %#llx, where vma %u is", (unsigned long long)range->start,
				    number(area_at(mm, page)->vma));
	for (uint32_t cpu = 0; cpu < x.nr_cpus; cpu++) {
		const struct hold *other = hold_of(cpu, mm);

		if (cpu != x.me->cpu && other && other->map && other->start < h->end && other->end > h->start)
			oracle_rule("lock() chooses %#llx, which CPU%u has locked to map something",
				    (unsigned long long)range->start, cpu);
	}
	return 0;
}

static void judge_faults(void);

/* What the change has done is what its pages are from here on. */
static void settle(struct hold *h)
{
	for (uint32_t i = 0; i < h->nr_touched; i++) {
		struct page *p = &pages[h->touched[i]];
		struct state state = state_now(h->mm, p->page);

		p->busy--;
		if (!same(&state, &p->versions[p->nr - 1].state)) {
			if (p->nr == VERSIONS)
				fail(EMU_FOUND_LIVELOCK, "more than %u changes of a page: a shorter scenario is needed",
				     VERSIONS);
			p->versions[p->nr++] = (struct version){ .state = state, .from = h->from };
		}
		check_pte(p, "when its range is unlocked,");
	}
}

static void checked_unlock(struct mm_struct *mm, struct mm_range *range)
{
	uint32_t nr_touched, touched[TOUCHED_MAX], last[TOUCHED_MAX];
	struct hold *h = my_hold(mm);

	settle(h);
	nr_touched = h->nr_touched;
	for (uint32_t i = 0; i < nr_touched; i++) {
		touched[i] = h->touched[i];
		last[i] = pages[touched[i]].nr - 1;
	}
	h->mm = NULL;
	trace_note("unlock [%#llx, %#llx)", (unsigned long long)range->start, (unsigned long long)range->end);
	unlock(mm, range);
	trace_note("unlocked");
	/* All that was before is over, for whoever knows of it. */
	for (uint32_t i = 0; i < nr_touched; i++) {
		for (uint32_t n = 0; n < last[i]; n++) {
			struct version *v = &pages[touched[i]].versions[n];

			if (v->replaced_by)
				continue;
			v->replaced_by = x.me->cpu + 1;
			v->replaced_at = x.me->hb.of[x.me->cpu % CPUS];
		}
	}
	if (x.running)
		tick();
	judge_faults();
}

/*
 * Faults
 */

static int outcome(const struct state *state, bool write)
{
	return state->mapped && (state->flags & VM_ACCESS) && (!write || (state->flags & VM_WRITE)) ? 0 : -EFAULT;
}

static void judge(const struct fault *f)
{
	const struct page *p = find_page(f->mm, f->page);
	struct state state = { .mapped = false };
	char text[128];

	for (uint32_t i = 0; i < (p ? p->nr : 1); i++) {
		const struct version *v = p ? &p->versions[i] : NULL;

		if (v && (v->from > f->ended ||
			  (v->replaced_by && v->replaced_by <= CPUS && f->begun.of[v->replaced_by - 1] > v->replaced_at)))
			continue;
		if (v)
			state = v->state;
		if (outcome(&state, f->write) == f->err)
			return;
	}
	oracle_rule("a fault of CPU%u for %s at %#llx came to %d, while the page was %s%s", f->cpu,
		    f->write ? "writing" : "reading", (unsigned long long)f->page << EMU_PAGE_SHIFT, f->err,
		    state_text(&state, text, sizeof(text)), p && p->nr > 1 ? " at last" : " all the time");
}

static void judge_faults(void)
{
	for (uint32_t i = 0; i < nr_faults; i++) {
		struct fault *f = &faults_seen[i];
		const struct page *p = find_page(f->mm, f->page);

		if (!f->mm || !f->ended || (p && p->busy))
			continue;
		judge(f);
		f->mm = NULL;
	}
	/* Slots are in use by address: only the last ones are given back. */
	while (nr_faults && !faults_seen[nr_faults - 1].mm)
		nr_faults--;
}

static int checked_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	struct fault *f = &faults_seen[nr_faults++];
	uint64_t page = addr >> EMU_PAGE_SHIFT;
	int err;

	if (nr_faults > FAULTS_MAX - CPUS)
		fail(EMU_FOUND_LIVELOCK, "more than %u faults: a shorter scenario is needed", FAULTS_MAX - CPUS);
	*f = (struct fault){ .mm = mm, .page = page, .begun = x.me->hb, .cpu = x.me->cpu, .write = write };
	trace_note("fault for %s at %#llx", write ? "writing" : "reading", (unsigned long long)addr);
	err = design->fault(mm, addr, write, busy);
	trace_note("fault: %d", err);
	f->ended = ++now;
	f->err = err;
	if (err == -EAGAIN)
		f->mm = NULL;
	for (uint32_t i = 0; i < nr_pages; i++)
		if (pages[i].mm == mm && pages[i].page / EMU_FAULT_AROUND == page / EMU_FAULT_AROUND)
			check_pte(&pages[i], "after a fault");
	judge_faults();
	return err;
}

static void checked_destroy(struct mm_struct *mm)
{
	for (uint32_t i = 0; i < nr_areas; i++)
		if (areas[i].mm == mm)
			oracle_rule("vma %u is left in a process that ends", number(areas[i].vma));
	for (uint32_t i = 0; i < nr_pages; i++)
		if (pages[i].mm == mm)
			pages[i].mm = NULL;
	if (design->destroy)
		design->destroy(mm);
}

/*
 * Runs
 */

void oracle_mm_wrap(struct mm_ops *wrapped, const struct mm_ops *of)
{
	design = of;
	unlock = wrapped->unlock;
	wrapped->destroy = checked_destroy;
	wrapped->lock = checked_lock;
	wrapped->unlock = checked_unlock;
	wrapped->find = checked_find;
	wrapped->link = checked_link;
	wrapped->change = checked_change;
	wrapped->fault = checked_fault;
}

void oracle_mm_reset(void)
{
	nr_areas = nr_base_areas = nr_pages = nr_base_pages = nr_faults = now = 0;
	memset(holds, 0, sizeof(holds));
}

void oracle_mm_setup_done(void)
{
	uint32_t n = 0;

	memcpy(base_areas, areas, nr_areas * sizeof(areas[0]));
	nr_base_areas = nr_areas;
	for (uint32_t i = 0; i < nr_pages; i++) {
		if (!pages[i].mm)
			continue;
		pages[n] = pages[i];
		base_page_mm[n] = pages[i].mm;
		pages[n].versions[0] = (struct version){ .state = state_now(pages[n].mm, pages[n].page) };
		n++;
	}
	nr_base_pages = nr_pages = n;
}

void oracle_mm_begin_run(void)
{
	memcpy(areas, base_areas, nr_base_areas * sizeof(areas[0]));
	nr_areas = nr_base_areas;
	for (uint32_t i = 0; i < nr_base_areas; i++)
		areas[i].since = 0;
	nr_pages = nr_base_pages;
	for (uint32_t i = 0; i < nr_pages; i++) {
		/* Its mm may have gone in the last run. */
		pages[i].mm = base_page_mm[i];
		pages[i].busy = 0;
		pages[i].nr = 1;
		pages[i].versions[0].replaced_by = 0;
	}
	nr_faults = 0;
	now = 1;
	for (uint32_t cpu = 0; cpu <= CPUS; cpu++)
		for (uint32_t i = 0; i < HOLDS; i++)
			holds[cpu][i].mm = NULL;
}

void oracle_mm_quiet(void)
{
	for (uint32_t i = 0; i < nr_pages; i++)
		check_pte(&pages[i], "in the end");
}
