/* SPDX-License-Identifier: MIT */
/*
 * oracle.c - what must hold whatever the order was: rules of rmap designs, locks that are given back, lock order.
 *
 * The loaded designs are wrapped: each call of a hook is noted with its beginning and end, in a copy of what is linked
 * that is the explorer's own. A walk is judged when it ends: what was linked all the time it must have shown exactly
 * once, and nothing that was never linked in that time. What changed meanwhile may be either way. Pages are compared
 * rather than VMAs, since a split or merge leaves every page where it was.
 *
 * Locks tell of themselves through the statistics' hooks (stat.h), which every lock with a class calls.
 */
#include "internal.h"
#include "../../mm/internal.h"

#include <errno.h>
#include <stdio.h>

/*
 * Locks
 */

#define CLASSES_MAX 64u
#define INSTANCES_MAX 256u
#define LOCKS 4096u /* a power of two */

static struct {
	uintptr_t addr;
	uint32_t class_id, run;
} locks[LOCKS];

/* Edges over all runs: `to` was waited for while `from` was held. Classes, and locks of one class among themselves. */
struct edge {
	bool is_there;
	char from_in[48], to_in[48];
};

static struct edge class_edges[CLASSES_MAX][CLASSES_MAX];
static struct {
	uintptr_t addr;
	uint32_t class_id;
} instances[INSTANCES_MAX];
static uint32_t nr_instances;
static bool instance_edges[INSTANCES_MAX][INSTANCES_MAX];
static char order_text[900];

static void lock_seen(uintptr_t addr, uint32_t class_id)
{
	uint32_t slot = (uint32_t)(addr >> 4) * 0x9e3779b1u >> 20;

	locks[slot].addr = addr;
	locks[slot].class_id = class_id;
	locks[slot].run = x.run;
}

const char *lock_name(uintptr_t addr, uint64_t *offset)
{
	static char name[100];

	for (uintptr_t at = addr & ~UINT64_C(15); at + sizeof(struct rw_semaphore) > addr; at -= 16) {
		uint32_t slot = (uint32_t)(at >> 4) * 0x9e3779b1u >> 20;
		const struct emu_class *class = &emu_arena->classes[locks[slot].class_id];

		if (locks[slot].addr != at || (at - x.base >= x.base_end && locks[slot].run != x.run))
			continue;
		*offset = addr - at;
		snprintf(name, sizeof(name), "%s%s%s", class->name, class->file[0] ? " " : "", class->file);
		/* Of many with one name: which. */
		if (object_at(at) && strstr(class->name, "shard"))
			snprintf(name + strlen(name), sizeof(name) - strlen(name), "#%u", object_number(object_at(at)));
		return name;
	}
	return NULL;
}

static uint32_t instance_of(uintptr_t addr, uint32_t class_id)
{
	/* Objects that a run made have no identity beyond it. */
	if (addr - x.base >= x.base_end)
		return INSTANCES_MAX;
	for (uint32_t i = 0; i < nr_instances; i++)
		if (instances[i].addr == addr)
			return i;
	if (nr_instances == INSTANCES_MAX)
		return INSTANCES_MAX;
	instances[nr_instances].addr = addr;
	instances[nr_instances].class_id = class_id;
	return nr_instances++;
}

static bool class_reaches(uint32_t from, uint32_t to, uint64_t *visited)
{
	if (from == to)
		return true;
	*visited |= UINT64_C(1) << from;
	for (uint32_t next = 0; next < CLASSES_MAX; next++)
		if (class_edges[from][next].is_there && !(*visited >> next & 1) && class_reaches(next, to, visited))
			return true;
	return false;
}

static bool instance_reaches(uint32_t from, uint32_t to, bool *visited)
{
	if (from == to)
		return true;
	visited[from] = true;
	for (uint32_t next = 0; next < nr_instances; next++)
		if (instance_edges[from][next] && !visited[next] && instance_reaches(next, to, visited))
			return true;
	return false;
}

static void class_text(uint32_t class_id, char *buf, size_t size)
{
	const struct emu_class *class = &emu_arena->classes[class_id];

	snprintf(buf, size, "%s%s%s", class->name, class->file[0] ? " " : "", class->file);
}

static void add_class_edge(const struct held *from, const struct held *to)
{
	struct edge *edge = &class_edges[from->class_id][to->class_id], *back;
	uint64_t visited = 0;
	char a[100], b[100];

	if (edge->is_there)
		return;
	edge->is_there = true;
	function_name(from->pc, edge->from_in, sizeof(edge->from_in));
	function_name(to->pc, edge->to_in, sizeof(edge->to_in));
	if (order_text[0] || !class_reaches(to->class_id, from->class_id, &visited))
		return;
	class_text(from->class_id, a, sizeof(a));
	class_text(to->class_id, b, sizeof(b));
	back = &class_edges[to->class_id][from->class_id];
	snprintf(order_text, sizeof(order_text),
		 "lock order: %s (taken in %s) is held when %s is taken in %s,\n  and the other way round %s%s%s%s", a,
		 edge->from_in, b, edge->to_in, back->is_there ? "in " : "over other locks",
		 back->is_there ? back->from_in : "", back->is_there ? " and " : "", back->is_there ? back->to_in : "");
}

static void add_instance_edge(const struct held *from, const struct held *to)
{
	uint32_t a = instance_of((uintptr_t)from->lock, from->class_id);
	uint32_t b = instance_of((uintptr_t)to->lock, to->class_id);
	bool visited[INSTANCES_MAX] = { false };
	char name[100], in[48], from_in[48];

	if (a == INSTANCES_MAX || b == INSTANCES_MAX || a == b || instance_edges[a][b])
		return;
	instance_edges[a][b] = true;
	if (order_text[0] || !instance_reaches(b, a, visited))
		return;
	class_text(from->class_id, name, sizeof(name));
	function_name(to->pc, in, sizeof(in));
	function_name(from->pc, from_in, sizeof(from_in));
	snprintf(order_text, sizeof(order_text),
		 "lock order: two locks %s (objects %u and %u) are taken one after the other in %s and %s,\n"
		 "  and elsewhere in the opposite order",
		 name, object_number(object_at((uintptr_t)from->lock)), object_number(object_at((uintptr_t)to->lock)),
		 from_in, in);
}

int oracle_lock_order(char *text, size_t size)
{
	if (!order_text[0])
		return 0;
	return snprintf(text, size, "%s", order_text);
}

static bool in_try_walk[CPUS + 1];

void lock_stat_hold_begin(struct task_struct *task, struct lock_stat *stat, const void *lock)
{
	struct xcpu *me = x.me;
	struct held held = {
		.lock = lock,
		.class_id = lock_stat_class(stat),
		.try_lock = in_try_walk[me->cpu],
		.pc = me->depth ? me->shadow[(me->depth - 1) % SHADOW_DEPTH] : 0,
	};

	task->holds[0].lock = lock; /* so that every release is told */
	if (!x.span)
		return;
	lock_seen((uintptr_t)lock, held.class_id);
	for (uint32_t i = 0; i < me->nr_held && x.running; i++) {
		if (me->held[i].lock == lock) {
			char name[100];

			class_text(held.class_id, name, sizeof(name));
			fail(EMU_FOUND_DEADLOCK,
			     "CPU%u takes %s, which it has already: with a writer in between, a deadlock", me->cpu,
			     name);
		}
		if (held.try_lock)
			continue;
		if (me->held[i].class_id != held.class_id && held.class_id < CLASSES_MAX)
			add_class_edge(&me->held[i], &held);
		else if (me->held[i].class_id == held.class_id)
			add_instance_edge(&me->held[i], &held);
	}
	if (me->nr_held < HELD_MAX)
		me->held[me->nr_held++] = held;
}

void lock_stat_hold_end(struct task_struct *task, const void *lock)
{
	struct xcpu *me = x.me;

	if (!x.span)
		return;
	for (uint32_t i = me->nr_held; i-- > 0;) {
		if (me->held[i].lock != lock)
			continue;
		me->nr_held--;
		for (; i < me->nr_held; i++)
			me->held[i] = me->held[i + 1];
		if (!me->nr_held)
			task->holds[0].lock = NULL;
		return;
	}
	if (me->nr_held < HELD_MAX && x.running) {
		char name[100], stack[256];

		address_name((uintptr_t)lock, name, sizeof(name));
		stack_text(me, stack, sizeof(stack));
		fail(EMU_FOUND_LEAK, "CPU%u gives back %s, which it does not have, in %s", me->cpu, name, stack);
	}
}

uint32_t emu_machine_first_cpu(uint32_t cpu)
{
	return cpu;
}

/* Nobody keeps times here. */
void emu_machine_held(const void *lock, uint32_t class_id, uint32_t site, uint64_t since_ns)
{
	(void)lock;
	(void)class_id;
	(void)site;
	(void)since_ns;
}

void emu_waited(uint32_t class_id, uint64_t wait_ns)
{
	(void)class_id;
	(void)wait_ns;
}

void emu_machine_lock_held(uint32_t class_id, bool held)
{
	(void)class_id;
	(void)held;
}

void emu_machine_called(uint32_t op, uint64_t start_ns)
{
	(void)op;
	(void)start_ns;
}

void emu_machine_lock_seen(const void *lock, uint32_t class_id)
{
	lock_seen((uintptr_t)lock, class_id);
}

/*
 * What is linked
 */

#define GHOSTS_MAX 256u
#define CHANGES_MAX 512u
#define SEEN_MAX 256u

/* A VMA that its file's index has. */
struct ghost {
	struct vm_area_struct *vma;
	struct mm_struct *mm;
	struct address_space *file;
	uint64_t start, end, pgoff; /* addresses in pages */
	uint32_t since;
	struct vm_area_struct *parent; /* while the fork goes on that copied it */
	struct mm_struct *parent_mm;
};

/* Pages whose coverage changed, between two times. */
struct change {
	const struct vm_area_struct *vma;
	const struct mm_struct *mm;
	const struct address_space *file;
	uint64_t start, end;
	uint32_t from, to; /* UINT32_MAX: not done yet */
};

struct walk {
	const struct address_space *file;
	uint64_t first, last;
	rmap_walk_fn fn;
	void *arg;
	uint32_t begun;
	uint32_t nr_before, nr_seen;
	bool cut; /* the callback has ended it */
	struct ghost before[GHOSTS_MAX];
	struct ghost seen[SEEN_MAX];
};

static struct ghost ghosts[GHOSTS_MAX];
static uint32_t nr_ghosts;
static struct change changes[CHANGES_MAX];
static uint32_t nr_changes;
static uint32_t now;
static struct walk walks[CPUS + 1];
/* Of prepare on this CPU: the changes begin there. */
static uint32_t prepared_at[CPUS + 1];
static const struct rmap_ops *design;
static const struct mm_ops *mm_design;
static struct rmap_ops wrapped;
static struct mm_ops mm_wrapped;
/* What setup() left. */
static struct ghost base_ghosts[GHOSTS_MAX];
static uint32_t nr_base_ghosts;

static uint32_t here(void)
{
	return x.me->cpu;
}

static struct ghost *ghost_of(const struct vm_area_struct *vma)
{
	for (uint32_t i = 0; i < nr_ghosts; i++)
		if (ghosts[i].vma == vma)
			return &ghosts[i];
	return NULL;
}

static void set_bounds(struct ghost *g)
{
	g->start = g->vma->vm_start >> EMU_PAGE_SHIFT;
	g->end = g->vma->vm_end >> EMU_PAGE_SHIFT;
	g->pgoff = g->vma->vm_pgoff;
}

void oracle_rule(const char *fmt, ...)
{
	char text[400], stack[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	stack_text(x.me, stack, sizeof(stack));
	if (x.me == &x.main)
		fail(EMU_FOUND_RULE, "%s, when all is quiet", text);
	fail(EMU_FOUND_RULE, "%s; CPU%u in %s", text, x.me->cpu, stack);
}

static uint32_t vma_number(const struct vm_area_struct *vma)
{
	const struct object *object = object_at((uintptr_t)vma);

	return object ? object_number(object) : 0;
}

static void ghost_add(struct address_space *file, struct vm_area_struct *vma, struct vm_area_struct *parent)
{
	struct ghost *g = ghost_of(vma);

	if (g)
		oracle_rule("vma %u is linked twice", vma_number(vma));
	if (nr_ghosts == GHOSTS_MAX)
		fail(EMU_FOUND_LIVELOCK, "more than %u VMAs: a shorter scenario is needed", GHOSTS_MAX);
	g = &ghosts[nr_ghosts++];
	*g = (struct ghost){ .vma = vma,
			     .mm = vma->vm_mm,
			     .file = file,
			     .since = now,
			     .parent = parent,
			     .parent_mm = parent ? parent->vm_mm : NULL };
	set_bounds(g);
}

static void ghost_del(const struct vm_area_struct *vma)
{
	struct ghost *g = ghost_of(vma);

	if (!g)
		oracle_rule("vma %u is unlinked, but is not linked", vma_number(vma));
	*g = ghosts[--nr_ghosts];
}

/* Coverage of these pages changes from now on; returns which change it is. */
static uint32_t change_begins(const struct address_space *file, const struct vm_area_struct *vma)
{
	if (nr_changes == CHANGES_MAX)
		fail(EMU_FOUND_LIVELOCK, "more than %u changes of mappings: a shorter scenario is needed", CHANGES_MAX);
	changes[nr_changes] = (struct change){
		.vma = vma,
		.mm = vma->vm_mm,
		.file = file,
		.start = vma->vm_start >> EMU_PAGE_SHIFT,
		.end = vma->vm_end >> EMU_PAGE_SHIFT,
		.from = ++now,
		.to = UINT32_MAX,
	};
	return nr_changes++;
}

static void checked_init(struct address_space *mapping)
{
	design->init(mapping);
}

static void checked_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			   struct vm_area_struct **prevs, uint32_t n)
{
	uint32_t change[FILE_BATCH];

	for (uint32_t i = 0; i < n; i++) {
		change[i] = change_begins(mapping, vmas[i]);
		if (!prevs) {
			trace_note("insert vma %u of %s [%llu, +%llu)", vma_number(vmas[i]), mapping->name,
				   (unsigned long long)vmas[i]->vm_pgoff, (unsigned long long)vma_pages(vmas[i]));
			continue;
		}
		trace_note("insert vma %u of %s after its parent %u", vma_number(vmas[i]), mapping->name,
			   vma_number(prevs[i]));
		/* A walk may meet it as soon as the design has linked it. */
		ghost_add(mapping, vmas[i], prevs[i]);
	}
	design->insert(mapping, vmas, prevs, n);
	for (uint32_t i = 0; i < n; i++) {
		if (!prevs)
			ghost_add(mapping, vmas[i], NULL);
		changes[change[i]].to = ++now;
	}
	trace_note("insert done");
}

static void checked_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	struct vm_area_struct *copy[FILE_BATCH];
	uint32_t change[FILE_BATCH];

	for (uint32_t i = 0; i < n; i++) {
		copy[i] = vmas[i];
		change[i] = change_begins(mapping, vmas[i]);
		trace_note("remove vma %u of %s", vma_number(vmas[i]), mapping->name);
	}
	design->remove(mapping, vmas, n);
	for (uint32_t i = 0; i < n; i++) {
		ghost_del(copy[i]);
		changes[change[i]].to = ++now;
	}
	trace_note("remove done");
}

static void checked_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	prepared_at[here()] = ++now;
	trace_note("prepare vma %u%s%s", vma_number(vp->vma), vp->insert ? ", split" : "", vp->remove ? ", merge" : "");
	design->prepare(mapping, vp);
	trace_note("prepared");
}

static bool covered_before(const struct mm_struct *mm, const struct address_space *file, uint64_t page)
{
	for (uint32_t i = 0; i < nr_ghosts; i++)
		if (ghosts[i].mm == mm && ghosts[i].file == file && page >= ghosts[i].start && page < ghosts[i].end)
			return true;
	return false;
}

/* Was the page of one of the VMAs whose bounds change? Old mappings below a new one are others. */
static bool was_theirs(const struct vma_prepare *vp, uint64_t page)
{
	const struct vm_area_struct *vmas[] = { vp->vma, vp->adj_next, vp->remove, vp->remove2 };

	for (uint32_t i = 0; i < ARRAY_SIZE(vmas); i++) {
		const struct ghost *g = vmas[i] ? ghost_of(vmas[i]) : NULL;

		if (g && page >= g->start && page < g->end)
			return true;
	}
	return false;
}

/* Bounds are what they will be from here on: what is new, page by page. */
static void note_growth(const struct address_space *mapping, const struct vma_prepare *vp)
{
	const struct vm_area_struct *vma = vp->vma;
	uint64_t start = vma->vm_start >> EMU_PAGE_SHIFT, end = vma->vm_end >> EMU_PAGE_SHIFT;

	for (uint64_t page = start; page < end; page++) {
		uint64_t first = page;

		while (page < end && !was_theirs(vp, page))
			page++;
		if (page == first)
			continue;
		change_begins(mapping, vma);
		changes[nr_changes - 1].from = prepared_at[here()];
		changes[nr_changes - 1].start = first;
		changes[nr_changes - 1].end = page;
	}
}

static void update(struct vm_area_struct *vma)
{
	struct ghost *g = vma ? ghost_of(vma) : NULL;

	if (!vma)
		return;
	if (!g)
		oracle_rule("the bounds of vma %u change, but it is not linked", vma_number(vma));
	set_bounds(g);
}

static void checked_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	uint32_t first = nr_changes;

	note_growth(mapping, vp);
	trace_note("complete vma %u", vma_number(vp->vma));
	design->complete(mapping, vp);
	update(vp->vma);
	update(vp->adj_next);
	if (vp->insert)
		ghost_add(mapping, vp->insert, NULL);
	if (vp->remove)
		ghost_del(vp->remove);
	if (vp->remove2)
		ghost_del(vp->remove2);
	now++;
	for (; first < nr_changes; first++)
		if (changes[first].from == prepared_at[here()])
			changes[first].to = now;
	prepared_at[here()] = 0;
	trace_note("complete done");
}

static bool changed_since(const struct mm_struct *mm, const struct address_space *file, uint64_t page, uint32_t time)
{
	for (uint32_t i = nr_changes; i-- > 0;)
		if (changes[i].to > time && changes[i].mm == mm && changes[i].file == file &&
		    page >= changes[i].start && page < changes[i].end)
			return true;
	/* Somebody is between prepare and complete: what he adds is not known yet. */
	for (uint32_t cpu = 0; cpu < x.nr_cpus; cpu++)
		if (prepared_at[cpu] && emu_arena->cpus[cpu].task.mm == mm && !covered_before(mm, file, page))
			return true;
	return false;
}

static bool in_walk(const struct walk *w, const struct ghost *g, uint64_t page)
{
	uint64_t offset = g->pgoff + (page - g->start);

	return offset >= w->first && offset <= w->last;
}

/* While one mapping replaces another, both are linked at the same address, maybe with other pages of the file. */
static uint32_t count_page(const struct walk *w, const struct ghost *list, uint32_t n, const struct mm_struct *mm,
			   uint64_t page)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < n; i++)
		count += list[i].mm == mm && page >= list[i].start && page < list[i].end &&
			 in_walk(w, &list[i], page);
	return count;
}

static void judge(const struct walk *w)
{
	for (uint32_t i = 0; i < w->nr_before; i++) {
		const struct ghost *g = &w->before[i];

		for (uint64_t page = g->start; page < g->end; page++) {
			uint32_t expected, found;

			if (!in_walk(w, g, page))
				continue;
			expected = count_page(w, w->before, w->nr_before, g->mm, page);
			found = count_page(w, w->seen, w->nr_seen, g->mm, page);
			if (expected == found || changed_since(g->mm, w->file, page, w->begun))
				continue;
			oracle_rule("a walk of %s [%llu, %llu] %s vma %u: "
			     "page %llu of the file, mapped all the time, was met %u times",
			     w->file->name, (unsigned long long)w->first, (unsigned long long)w->last,
			     found ? "meets too often" : "misses", vma_number(g->vma),
			     (unsigned long long)(g->pgoff + page - g->start), found);
		}
	}
	for (uint32_t i = 0; i < w->nr_seen; i++) {
		const struct ghost *g = &w->seen[i];

		for (uint64_t page = g->start; page < g->end; page++)
			if (in_walk(w, g, page) && !count_page(w, w->before, w->nr_before, g->mm, page) &&
			    !changed_since(g->mm, w->file, page, w->begun))
				oracle_rule("a walk of %s meets vma %u, which does not map page %llu", w->file->name,
				     vma_number(g->vma), (unsigned long long)(g->pgoff + page - g->start));
	}
}

static int on_vma(struct vm_area_struct *vma, void *arg)
{
	struct walk *w = arg;
	struct ghost *g = ghost_of(vma), *seen;
	int ret;

	trace_note("walk meets vma %u [%llu, +%llu)", vma_number(vma), (unsigned long long)vma->vm_pgoff,
		   (unsigned long long)vma_pages(vma));
	for (uint32_t i = 0; i < w->nr_seen; i++)
		if (w->seen[i].vma == vma)
			oracle_rule("a walk of %s meets vma %u twice", w->file->name, vma_number(vma));
	if (vma->vm_pgoff > w->last || vma->vm_pgoff + vma_pages(vma) <= w->first)
		oracle_rule("a walk of %s [%llu, %llu] meets vma %u, which maps [%llu, +%llu)", w->file->name,
		     (unsigned long long)w->first, (unsigned long long)w->last, vma_number(vma),
		     (unsigned long long)vma->vm_pgoff, (unsigned long long)vma_pages(vma));
	if (g && g->parent && ghost_of(g->parent) && g->parent->vm_pgoff <= w->last &&
	    g->parent->vm_pgoff + vma_pages(g->parent) > w->first) {
		bool met = false;

		for (uint32_t i = 0; i < w->nr_seen; i++)
			met |= w->seen[i].vma == g->parent;
		if (!met)
			oracle_rule("a walk of %s meets the child's vma %u before its parent %u, while fork copies",
			     w->file->name, vma_number(vma), vma_number(g->parent));
	}
	if (w->nr_seen < SEEN_MAX) {
		seen = &w->seen[w->nr_seen++];
		*seen = (struct ghost){ .vma = vma, .mm = vma->vm_mm };
		set_bounds(seen);
	}
	ret = w->fn(vma, w->arg);
	if (ret)
		w->cut = true;
	return ret;
}

static int checked_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
			void *arg)
{
	struct walk *w = &walks[here()];
	uint32_t sleeps = x.me->sleeps;
	int ret;

	w->file = mapping;
	w->first = first;
	w->last = last;
	w->fn = fn;
	w->arg = arg;
	w->nr_seen = w->nr_before = 0;
	w->cut = false;
	w->begun = ++now;
	for (uint32_t i = 0; i < nr_ghosts; i++)
		if (ghosts[i].file == mapping)
			w->before[w->nr_before++] = ghosts[i];
	trace_note("walk of %s begins%s", mapping->name, try_lock ? ", trylock" : "");
	in_try_walk[here()] = try_lock;
	ret = design->walk(mapping, first, last, try_lock, on_vma, w);
	in_try_walk[here()] = false;
	trace_note("walk ends: %d", ret);
	if (try_lock && x.me->sleeps != sleeps)
		oracle_rule("a trylock walk of %s sleeps", mapping->name);
	if (ret == -EAGAIN && !w->cut) {
		if (!try_lock)
			oracle_rule("a walk of %s gives up, without trylock", mapping->name);
		if (w->nr_seen)
			oracle_rule("a trylock walk of %s gives up after %u VMAs", mapping->name, w->nr_seen);
		return ret;
	}
	if (ret == -EOPNOTSUPP && !w->cut) {
		if (w->nr_seen)
			oracle_rule("a walk of %s is refused after %u VMAs", mapping->name, w->nr_seen);
		return ret;
	}
	if (!w->cut)
		judge(w);
	return ret;
}

static bool checked_mapped(struct address_space *mapping)
{
	uint32_t begun = ++now, stale_loads = x.me->stale_loads;
	bool before = false, after = false, answer;
	struct walk *w = &walks[here()];

	w->nr_before = 0;
	for (uint32_t i = 0; i < nr_ghosts; i++)
		if (ghosts[i].file == mapping)
			w->before[w->nr_before++] = ghosts[i];
	before = w->nr_before != 0;
	answer = design->mapped(mapping);
	/* Without a lock it may look at old values, and then answers for a time before the call. */
	if (x.me->stale_loads != stale_loads)
		return answer;
	for (uint32_t i = 0; i < w->nr_before && !after; i++)
		for (uint64_t page = w->before[i].start; page < w->before[i].end && !after; page++)
			after = !changed_since(w->before[i].mm, mapping, page, begun);
	if (!answer && after)
		oracle_rule("mapped() of %s says no, while it is mapped all the time", mapping->name);
	if (answer && !before) {
		bool changed = false;

		for (uint32_t i = 0; i < nr_changes; i++)
			changed |= changes[i].file == mapping && changes[i].to > begun;
		for (uint32_t cpu = 0; cpu < x.nr_cpus; cpu++)
			changed |= prepared_at[cpu] != 0;
		if (!changed)
			oracle_rule("mapped() of %s says yes, while nobody maps it", mapping->name);
	}
	return answer;
}

/* Fork holds the parent's lock until the page tables are copied. */
static void checked_unlock(struct mm_struct *mm, struct mm_range *range)
{
	for (uint32_t i = 0; i < nr_ghosts; i++)
		if (ghosts[i].parent_mm == mm) {
			ghosts[i].parent = NULL;
			ghosts[i].parent_mm = NULL;
		}
	mm_design->unlock(mm, range);
}

void oracle_wrap(void)
{
	design = emu_rmap;
	mm_design = emu_mm;
	wrapped = *emu_rmap;
	wrapped.init = checked_init;
	wrapped.insert = checked_insert;
	wrapped.remove = checked_remove;
	wrapped.prepare = checked_prepare;
	wrapped.complete = checked_complete;
	wrapped.walk = checked_walk;
	wrapped.mapped = checked_mapped;
	mm_wrapped = *emu_mm;
	mm_wrapped.unlock = checked_unlock;
	if (x.scenario->kind == EMU_SCENARIO_MM)
		oracle_mm_wrap(&mm_wrapped, emu_mm);
	emu_rmap = &wrapped;
	emu_mm = &mm_wrapped;
}

void oracle_unwrap(void)
{
	if (emu_rmap == &wrapped)
		emu_rmap = design;
	if (emu_mm == &mm_wrapped)
		emu_mm = mm_design;
}

/* A new scenario: nothing is linked yet. */
void oracle_reset(void)
{
	memset(class_edges, 0, sizeof(class_edges));
	memset(instance_edges, 0, sizeof(instance_edges));
	memset(locks, 0, sizeof(locks));
	nr_instances = 0;
	order_text[0] = '\0';
	nr_ghosts = nr_changes = now = 0;
	memset(prepared_at, 0, sizeof(prepared_at));
	memset(in_try_walk, 0, sizeof(in_try_walk));
	oracle_mm_reset();
}

/* What is linked now is so at the beginning of every run. */
void oracle_setup_done(void)
{
	memcpy(base_ghosts, ghosts, nr_ghosts * sizeof(ghosts[0]));
	nr_base_ghosts = nr_ghosts;
	if (x.scenario->kind == EMU_SCENARIO_MM)
		oracle_mm_setup_done();
}

void oracle_begin_run(void)
{
	memcpy(ghosts, base_ghosts, nr_base_ghosts * sizeof(ghosts[0]));
	nr_ghosts = nr_base_ghosts;
	nr_changes = 0;
	now = 1;
	for (uint32_t i = 0; i < nr_ghosts; i++)
		ghosts[i].since = 0;
	memset(prepared_at, 0, sizeof(prepared_at));
	memset(in_try_walk, 0, sizeof(in_try_walk));
	if (x.scenario->kind == EMU_SCENARIO_MM)
		oracle_mm_begin_run();
}

void oracle_quiet(void)
{
	if (x.scenario->kind == EMU_SCENARIO_MM)
		oracle_mm_quiet();
}

static int look(struct vm_area_struct *vma, void *arg)
{
	(void)vma;
	(void)arg;
	return 0;
}

/* On the main stack: nobody runs any more. */
void oracle_end_run(void)
{
	bool uses_designs = x.scenario->kind == EMU_SCENARIO_RMAP || x.scenario->kind == EMU_SCENARIO_MM;
	const struct object *leaked;
	bool empty = true;

	for (uint32_t i = 0; i < x.nr_cpus; i++) {
		const struct xcpu *cpu = &x.cpus[i];
		char name[100], in[48];

		if (!cpu->nr_held)
			continue;
		address_name((uintptr_t)cpu->held[0].lock, name, sizeof(name));
		function_name(cpu->held[0].pc, in, sizeof(in));
		fail(EMU_FOUND_LEAK, "CPU%u still has %s at the end, taken in %s", i, name, in);
	}
	if (uses_designs) {
		for (uint32_t i = 0; i < emu_arena->nr_files; i++) {
			struct address_space *file = &emu_arena->files[i];
			uint32_t linked = 0;

			for (uint32_t n = 0; n < nr_ghosts; n++)
				linked += ghosts[n].file == file;
			empty &= !linked;
			if (checked_walk(file, 0, UINT64_MAX, true, look, NULL) == -EAGAIN)
				fail(EMU_FOUND_LEAK, "a lock of %s is still held at the end", file->name);
			if (checked_mapped(file) != (linked != 0))
				oracle_rule("mapped() of %s says %s", file->name,
				     linked ? "no, and it is" : "yes, and it is not");
		}
		for (uint32_t i = 0; i < emu_arena->nr_files && empty && design->destroy; i++)
			design->destroy(&emu_arena->files[i]);
	}
	emu_rcu_drain();
	leaked = empty ? leaked_object(uses_designs) : NULL;
	if (leaked) {
		char name[100];

		address_name(leaked->addr, name, sizeof(name));
		fail(EMU_FOUND_LEAK, "%s, allocated by CPU%d, is never freed", name, leaked->cpu);
	}
}
