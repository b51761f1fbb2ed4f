/* SPDX-License-Identifier: MIT */
/*
 * process.c - processes that map files, as the small mm would: they call the hooks that link, change and unlink VMAs.
 *
 * Any CPU may change any process, as the threads of a process do; so VMAs of one process come to lie in several trees.
 * A VMA covers pages [first, last] of its file at an address that follows from the page, so all neighbours can merge.
 */
#include "internal.h"

#define BATCH 8u
#define BASE UINT64_C(0x10000000)

struct process *process_some(void)
{
	return check->process[below(PROCESSES)];
}

static uint64_t address_of(uint32_t file, uint32_t page)
{
	return BASE + ((uint64_t)file * 2 * PAGES + page) * EMU_PAGE_SIZE;
}

static void set_bounds(struct tracked *t, uint32_t first, uint32_t last)
{
	t->vma.vm_start = address_of(t->file, first);
	t->vma.vm_end = address_of(t->file, last + 1);
	t->vma.vm_pgoff = first;
	atomic_store_explicit(&t->first, first, memory_order_relaxed);
	atomic_store_explicit(&t->last, last, memory_order_relaxed);
}

static uint32_t first_of(struct tracked *t)
{
	return atomic_load_explicit(&t->first, memory_order_relaxed);
}

static uint32_t last_of(struct tracked *t)
{
	return atomic_load_explicit(&t->last, memory_order_relaxed);
}

/* Release: who sees the new state sees what came before. */
static void set_state(struct tracked *t, uint32_t state)
{
	uint32_t word = atomic_load_explicit(&t->state, memory_order_relaxed);
	uint32_t times = word / VMA_STATES + (state == VMA_LINKING);

	atomic_store_explicit(&t->state, times * VMA_STATES + state, memory_order_release);
}

static void count_shape(struct tracked *t)
{
	if (t)
		atomic_fetch_add_explicit(&t->shape, 1, memory_order_acq_rel);
}

static struct tracked *vma_new(struct process *p, uint32_t file, uint32_t first, uint32_t last, struct tracked *parent)
{
	uint32_t start = below(POOL);
	struct tracked *t = NULL;

	for (uint32_t i = 0; i < POOL && !t; i++) {
		struct tracked *candidate = &p->pool[file][(start + i) % POOL];

		if (atomic_load_explicit(&candidate->state, memory_order_relaxed) % VMA_STATES == VMA_FREE)
			t = candidate;
	}
	EMU_ASSERT(t, "process %u has no VMA left", p->id);
	t->vma.vm_mm = &p->mm;
	t->vma.vm_flags = VM_READ;
	t->vma.vm_file = emu_file(file);
	t->vma.i_mmap_index = 0;
	t->cpu = emu_cpu_id();
	atomic_store_explicit(&t->shape, 0, memory_order_relaxed);
	t->parent_state = parent ? atomic_load_explicit(&parent->state, memory_order_relaxed) : 0;
	t->parent_shape = parent ? atomic_load_explicit(&parent->shape, memory_order_relaxed) : 0;
	atomic_store_explicit(&t->parent, parent, memory_order_relaxed);
	set_bounds(t, first, last);
	set_state(t, VMA_LINKING);
	return t;
}

static void occupy(struct process *p, struct tracked *t)
{
	for (uint32_t page = first_of(t); page <= last_of(t); page++)
		p->at[t->file][page] = t;
}

static bool is_whole(struct process *p, uint32_t file)
{
	for (uint32_t page = 0; page < PAGES; page++)
		if (!p->at[file][page])
			return false;
	return true;
}

/* All pages are mapped, all hooks have returned. */
static void became_whole(struct process *p, uint32_t file)
{
	if (is_whole(p, file) && !(atomic_load_explicit(&p->whole[file], memory_order_relaxed) & 1))
		atomic_fetch_add_explicit(&p->whole[file], 1, memory_order_release);
}

/* A page is about to go. */
static void no_longer_whole(struct process *p, uint32_t file)
{
	if (atomic_load_explicit(&p->whole[file], memory_order_relaxed) & 1)
		atomic_fetch_add_explicit(&p->whole[file], 1, memory_order_acq_rel);
}

static void changed(void)
{
	doing(NULL, 0);
	check_here()->totals.changes++;
	jitter();
}

static void map_locked(struct process *p, uint32_t file, uint32_t first, uint32_t last)
{
	struct tracked *t = vma_new(p, file, first, last, NULL);
	struct vm_area_struct *vma = &t->vma;

	occupy(p, t);
	doing("insert", file);
	emu_rmap->insert(emu_file(file), &vma, NULL, 1);
	set_state(t, VMA_LINKED);
	changed();
	became_whole(p, file);
}

/* Between the two the caller changes bounds. */
static void prepare(struct vma_prepare *vp, uint32_t file)
{
	vp->mapping = emu_file(file);
	doing("prepare", file);
	emu_rmap->prepare(vp->mapping, vp);
	doing(NULL, file);
}

static void complete(struct vma_prepare *vp, uint32_t file, struct tracked *vma, struct tracked *adj_next)
{
	doing("complete", file);
	emu_rmap->complete(vp->mapping, vp);
	count_shape(vma);
	count_shape(adj_next);
	changed();
}

static void split_locked(struct process *p, uint32_t file, uint32_t at, bool new_below)
{
	struct tracked *t = p->at[file][at], *new;
	uint32_t first, last;
	struct vma_prepare vp = { 0 };

	if (!at || !t || p->at[file][at - 1] != t)
		return;
	first = first_of(t);
	last = last_of(t);
	new = new_below ? vma_new(p, file, first, at - 1, NULL) : vma_new(p, file, at, last, NULL);
	vp.vma = &t->vma;
	vp.insert = &new->vma;
	count_shape(t);
	prepare(&vp, file);
	jitter();
	set_bounds(t, new_below ? at : first, new_below ? last : at - 1);
	occupy(p, new);
	complete(&vp, file, t, NULL);
	set_state(new, VMA_LINKED);
}

/* The page-table lock is inside the design's; here nothing of the design's is held. */
static void zap(struct process *p)
{
	spin_lock(&p->ptl);
	spin_unlock(&p->ptl);
}

static void unmap_locked(struct process *p, uint32_t file, uint32_t first, uint32_t last)
{
	struct tracked *gone[PAGES];
	uint32_t n = 0;

	no_longer_whole(p, file);
	split_locked(p, file, first, true);
	if (last + 1 < PAGES)
		split_locked(p, file, last + 1, false);
	for (uint32_t page = first; page <= last; page++) {
		struct tracked *t = p->at[file][page];

		p->at[file][page] = NULL;
		if (!t || (n && gone[n - 1] == t))
			continue;
		set_state(t, VMA_UNLINKING);
		gone[n++] = t;
	}
	zap(p);
	for (uint32_t i = 0; i < n;) {
		struct vm_area_struct *vmas[BATCH];
		uint32_t wanted = 1 + below(BATCH), in_batch = 0;

		while (i + in_batch < n && in_batch < wanted) {
			vmas[in_batch] = &gone[i + in_batch]->vma;
			in_batch++;
		}
		doing("remove", file);
		emu_rmap->remove(emu_file(file), vmas, in_batch);
		for (; in_batch; in_batch--)
			set_state(gone[i++], VMA_FREE);
		changed();
	}
}

void process_map(struct process *p, uint32_t file, uint32_t first, uint32_t pages)
{
	uint32_t used = PROCESS_FREE;

	down_write(&p->lock);
	/* A fork may claim a free process without its lock. */
	if (atomic_compare_exchange_strong_explicit(&p->used, &used, PROCESS_USED, memory_order_acq_rel,
						    memory_order_relaxed) ||
	    used == PROCESS_USED) {
		/* The next hole, as far as it and the wish go. */
		while (first < PAGES && p->at[file][first])
			first++;
		if (first < PAGES) {
			uint32_t last = first;

			while (last + 1 < PAGES && last + 1 < first + pages && !p->at[file][last + 1])
				last++;
			map_locked(p, file, first, last);
		}
	}
	up_write(&p->lock);
}

static bool lock_used(struct process *p)
{
	down_write(&p->lock);
	if (atomic_load_explicit(&p->used, memory_order_relaxed) == PROCESS_USED)
		return true;
	up_write(&p->lock);
	return false;
}

void process_unmap(struct process *p, uint32_t file, uint32_t first, uint32_t last)
{
	if (!lock_used(p))
		return;
	unmap_locked(p, file, first, last);
	up_write(&p->lock);
}

void process_split(struct process *p, uint32_t file, uint32_t at, bool new_below)
{
	if (!lock_used(p))
		return;
	split_locked(p, file, at, new_below);
	up_write(&p->lock);
}

/*
 * The ways in which vma_merge() of the small mm calls a design. With A and B on both sides of the border:
 *   0  A takes B's pages, B goes             3  B takes some of A's pages (A is adj_next)
 *   1  A takes B's and those of C behind it  4  B takes A's pages, A goes
 *   2  A takes some of B's (B is adj_next)   5  A grows into the hole behind it, and B goes where the hole ends at B
 */
void process_merge(struct process *p, uint32_t file, uint32_t at, uint32_t way, void (*amidst)(void))
{
	struct tracked *a, *b, *c = NULL, *stays, *moved = NULL, *gone = NULL, *gone_too = NULL;
	uint32_t first, last;
	struct vma_prepare vp = { 0 };

	if (!lock_used(p))
		return;
	a = at ? p->at[file][at - 1] : NULL;
	b = p->at[file][at];
	if (way == 5) {
		if (!a || b)
			goto out;
		last = at;
		while (last + 1 < PAGES && !p->at[file][last + 1] && below(4))
			last++;
		gone = last + 1 < PAGES ? p->at[file][last + 1] : NULL;
		stays = a;
		first = first_of(a);
		last = gone ? last_of(gone) : last;
	} else {
		if (!a || !b || a == b)
			goto out;
		stays = way == 3 || way == 4 ? b : a;
		first = first_of(a);
		last = last_of(b);
		if (way == 1)
			c = last + 1 < PAGES ? p->at[file][last + 1] : NULL;
		if (way == 2) {
			if (first_of(b) == last)
				goto out;
			moved = b;
			last = first_of(b) + below(last - first_of(b));
		} else if (way == 3) {
			if (first == last_of(a))
				goto out;
			moved = a;
			first = first + 1 + below(last_of(a) - first);
		} else {
			gone = stays == a ? b : a;
			gone_too = c;
			last = c ? last_of(c) : last;
		}
	}
	vp.vma = &stays->vma;
	vp.adj_next = moved ? &moved->vma : NULL;
	vp.remove = gone ? &gone->vma : NULL;
	vp.remove2 = gone_too ? &gone_too->vma : NULL;
	count_shape(stays);
	count_shape(moved);
	if (gone)
		set_state(gone, VMA_UNLINKING);
	if (gone_too)
		set_state(gone_too, VMA_UNLINKING);
	prepare(&vp, file);
	if (amidst)
		amidst();
	else
		jitter();
	set_bounds(stays, first, last);
	if (way == 2)
		set_bounds(moved, last + 1, last_of(moved));
	else if (way == 3)
		set_bounds(moved, first_of(moved), first - 1);
	occupy(p, stays);
	complete(&vp, file, stays, moved);
	if (gone)
		set_state(gone, VMA_FREE);
	if (gone_too)
		set_state(gone_too, VMA_FREE);
	became_whole(p, file);
out:
	up_write(&p->lock);
}

/* Copies of a file's VMAs, several at once as batch=exit+fork links them. */
static void fork_file(struct process *p, struct process *child, uint32_t file)
{
	struct tracked *copies[BATCH];
	struct vm_area_struct *vmas[BATCH], *prevs[BATCH];
	uint32_t wanted = 1 + below(BATCH), n = 0;

	for (uint32_t page = 0; page <= PAGES; page++) {
		struct tracked *from = page < PAGES ? p->at[file][page] : NULL;

		if (from && (!page || p->at[file][page - 1] != from)) {
			copies[n] = vma_new(child, file, first_of(from), last_of(from), from);
			occupy(child, copies[n]);
			vmas[n] = &copies[n]->vma;
			prevs[n++] = &from->vma;
		}
		if (!n || (n < wanted && page < PAGES))
			continue;
		doing("insert", file);
		emu_rmap->insert(emu_file(file), vmas, prevs, n);
		for (uint32_t i = 0; i < n; i++) {
			set_state(copies[i], VMA_LINKED);
			/* The copy of the page tables. */
			zap(p);
			zap(child);
			changed();
		}
		wanted = 1 + below(BATCH);
		n = 0;
	}
	became_whole(child, file);
}

/* Into a free process; where there is none, nothing. */
void process_fork(struct process *p)
{
	struct process *child = NULL;
	uint32_t start = below(PROCESSES);

	if (!lock_used(p))
		return;
	for (uint32_t i = 0; i < PROCESSES && !child; i++) {
		uint32_t none = PROCESS_FREE;

		child = check->process[(start + i) % PROCESSES];
		if (!atomic_compare_exchange_strong_explicit(&child->used, &none, PROCESS_STARTING,
							     memory_order_acq_rel, memory_order_relaxed))
			child = NULL;
	}
	if (!child) {
		up_write(&p->lock);
		return;
	}
	/* Inside the parent's, as in the kernel. Who waits for a starting child's holds no other. */
	down_write(&child->lock);
	for (uint32_t file = 0; file < FILES; file++)
		fork_file(p, child, file);
	atomic_store_explicit(&child->used, PROCESS_USED, memory_order_relaxed);
	up_write(&child->lock);
	up_write(&p->lock);
}

void process_exit(struct process *p)
{
	if (!lock_used(p))
		return;
	for (uint32_t file = 0; file < FILES; file++)
		unmap_locked(p, file, 0, PAGES - 1);
	atomic_store_explicit(&p->used, PROCESS_FREE, memory_order_release);
	up_write(&p->lock);
}
