/* SPDX-License-Identifier: MIT */
/*
 * rmap.c - the rules that every rmap design keeps, or declares that it does not, each with its test.
 *
 * Most tests are a mixture: three of four CPUs map, unmap, split, merge, fork and exit in processes that they share,
 * the fourth walks. What a walk has met is compared with what was so from before the walk to after it; nothing is asked
 * of what changed meanwhile. Two situations are brought about on purpose, because chance seldom does: a walk while
 * another CPU is between prepare and complete, and two merges over the same two trees in opposite directions.
 */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * Walks
 */

/* What is asked of a walk. */
#define ASK_VMAS 1u  /* every VMA that was linked all the time, once */
#define ASK_ORDER 2u /* a parent before the child that was forked from it */
#define ASK_ALL 8u   /* a trylock walk that is refused has not called back */
#define ASK_PAGES 4u /* every page of a process that was whole all the time, once */

struct before {
	uint32_t state, shape, first, last;
};

/* One walk: what was there when it began, and what it has met. On the walker's stack. */
struct view {
	uint32_t file, first, last, ask, met;
	bool try_lock;
	struct before before[PROCESSES][POOL];
	uint32_t whole[PROCESSES];
	uint8_t times[PROCESSES][POOL];
	uint8_t page_times[PROCESSES][PAGES];
};

static const char *file_name(uint32_t file)
{
	return emu_file(file)->name;
}

static uint32_t load(const _Atomic uint32_t *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

static void look_before(struct view *v)
{
	for (uint32_t i = 0; i < PROCESSES; i++) {
		struct process *p = check->process[i];

		v->whole[i] = load(&p->whole[v->file]);
		for (uint32_t j = 0; j < POOL; j++) {
			struct tracked *t = &p->pool[v->file][j];
			uint32_t state = load(&t->state);

			v->before[i][j] = (struct before){ state, load(&t->shape), load(&t->first), load(&t->last) };
		}
	}
}

struct range_text {
	char text[32];
};

/* "page 3", "pages 3-5"; for the arguments of broken(). */
static struct range_text pages_text(uint32_t first, uint32_t last)
{
	struct range_text range;

	if (first == last)
		snprintf(range.text, sizeof(range.text), "page %u", first);
	else
		snprintf(range.text, sizeof(range.text), "pages %u-%u", first, last);
	return range;
}

/* The walk has met a child and not its parent, and neither has changed since the fork. */
static void ask_order(const struct view *v, struct tracked *t)
{
	struct tracked *parent = atomic_load_explicit(&t->parent, memory_order_acquire);
	struct process *of;

	if (!parent || load(&t->shape))
		return;
	of = check->process[parent->process];
	if (v->times[parent->process][parent - of->pool[v->file]])
		return;
	if (load(&parent->state) == t->parent_state && load(&parent->shape) == t->parent_shape)
		broken("a walk of %s met %s of process %u, forked by CPU %u, before the same of its parent, process %u",
		       file_name(v->file), pages_text(load(&t->first), load(&t->last)).text, t->process, t->cpu,
		       parent->process);
}

static int meet(struct vm_area_struct *vma, void *arg)
{
	struct view *v = arg;
	struct tracked *t = NULL;
	uint64_t first, pages;
	uint32_t slot = 0;
	struct process *p;

	for (uint32_t i = 0; i < PROCESSES && !t; i++) {
		p = check->process[i];
		if (vma >= &p->pool[v->file][0].vma && vma <= &p->pool[v->file][POOL - 1].vma) {
			t = container_of(vma, struct tracked, vma);
			slot = (uint32_t)(t - p->pool[v->file]);
		}
	}
	if (!t)
		broken("a walk of %s called back for what is no VMA of it: %p", file_name(v->file), (void *)vma);
	p = check->process[t->process];
	if (v->met++ > 4 * PROCESSES * POOL)
		broken("a walk of %s does not end", file_name(v->file));
	if (v->ask & ASK_ORDER)
		ask_order(v, t);
	v->times[t->process][slot]++;
	first = vma->vm_pgoff;
	pages = vma_pages(vma);
	if (!pages || pages > PAGES || first > PAGES - pages)
		broken("a walk of %s met a VMA of %llu pages from page %llu on in process %u", file_name(v->file),
		       (unsigned long long)pages, (unsigned long long)first, t->process);
	for (uint64_t page = first; page < first + pages; page++)
		v->page_times[t->process][page]++;
	/* What a walker does to a page: under the page-table lock, inside the design's locks. */
	spin_lock(&p->ptl);
	spin_unlock(&p->ptl);
	if (below(8) == 0)
		jitter();
	return 0;
}

static void ask_vma(const struct view *v, uint32_t process, uint32_t slot)
{
	struct tracked *t = &check->process[process]->pool[v->file][slot];
	const struct before *b = &v->before[process][slot];
	uint32_t times = v->times[process][slot];
	bool same_bounds;

	if (load(&t->state) != b->state)
		return;
	if (b->state % VMA_STATES == VMA_FREE && times)
		broken("a walk of %s met the VMA of %s of process %u, which was unlinked before it began",
		       file_name(v->file), pages_text(b->first, b->last).text, process);
	if (b->state % VMA_STATES != VMA_LINKED)
		return;
	if (times > 1)
		broken("a walk of %s met the VMA of %s of process %u, linked by CPU %u, %u times", file_name(v->file),
		       pages_text(b->first, b->last).text, process, t->cpu, times);
	same_bounds = !(b->shape & 1) && load(&t->shape) == b->shape;
	if (!times && (v->last - v->first + 1 == PAGES || (same_bounds && b->first <= v->last && b->last >= v->first)))
		broken("a %swalk of %s of %s missed the VMA of %s of process %u, linked by CPU %u",
		       v->try_lock ? "trylock " : "", pages_text(v->first, v->last).text, file_name(v->file),
		       pages_text(b->first, b->last).text, process, t->cpu);
}

static void ask_pages(const struct view *v, uint32_t process)
{
	if (!(v->whole[process] & 1) || load(&check->process[process]->whole[v->file]) != v->whole[process])
		return;
	for (uint32_t page = v->first; page <= v->last; page++) {
		uint32_t times = v->page_times[process][page];

		if (times != 1)
			broken("a walk of %s met page %u of process %u %u times (%s) amid splits and merges",
			       file_name(v->file), page, process, times, times ? "an overlap" : "a hole");
	}
}

/* Walks pages [first, last] and checks what it met; false: refused with -EAGAIN. Of a declared file: refused, true. */
static bool walk(uint32_t file, uint32_t first, uint32_t last, bool try_lock, uint32_t ask)
{
	struct check_cpu *cpu = check_here();
	struct view v;
	int ret;

	memset(&v, 0, sizeof(v));
	v.file = file;
	v.first = first;
	v.last = last;
	v.ask = ask;
	v.try_lock = try_lock;
	look_before(&v);
	doing(try_lock ? "trylock walk" : "walk", file);
	ret = emu_rmap->walk(emu_file(file), first, last, try_lock, meet, &v);
	doing(NULL, file);
	if ((ret == -EOPNOTSUPP) != ((check->declared >> file & 1) != 0))
		broken("a walk of %s returned %d, and the first walk of this file did%s return -EOPNOTSUPP",
		       file_name(file), ret, ret == -EOPNOTSUPP ? " not" : "");
	if (v.met && (ret == -EOPNOTSUPP || (ret == -EAGAIN && ask & ASK_ALL)))
		broken("a %swalk of %s returned %s after it had called back %u times", try_lock ? "trylock " : "",
		       file_name(file), ret == -EAGAIN ? "-EAGAIN" : "-EOPNOTSUPP", v.met);
	if (ret == -EOPNOTSUPP)
		return true;
	if (ret == -EAGAIN && try_lock) {
		cpu->totals.refused++;
		return false;
	}
	if (ret)
		broken("a %swalk of %s returned %d", try_lock ? "trylock " : "", file_name(file), ret);
	for (uint32_t i = 0; i < PROCESSES; i++) {
		for (uint32_t j = 0; j < POOL && ask & ASK_VMAS; j++)
			ask_vma(&v, i, j);
		if (ask & ASK_PAGES)
			ask_pages(&v, i);
	}
	cpu->totals.walks++;
	cpu->totals.vmas += v.met;
	return true;
}

static bool mapped(uint32_t file)
{
	bool yes;

	doing("mapped", file);
	yes = emu_rmap->mapped(emu_file(file));
	doing(NULL, file);
	check_here()->totals.answers++;
	return yes;
}

/*
 * Mixtures
 */

#define WALKS_A_STEP 4u /* at most: where CPUs are few, walkers would take all their time */

enum op { OP_MAP, OP_UNMAP, OP_SPLIT, OP_MERGE, OP_FORK, OP_EXIT, OP_NR };

struct mixture {
	uint32_t share[OP_NR];
	uint32_t ask;
	uint32_t try_one_in; /* so many walks is a trylock walk */
	uint32_t pages;	     /* at most, of a new VMA */
};

static void change_something(const struct mixture *m)
{
	uint32_t file = below(FILES), page = below(PAGES), which = 0, total = 0, left;
	struct process *p = process_some();

	for (uint32_t i = 0; i < OP_NR; i++)
		total += m->share[i];
	left = below(total);
	while (left >= m->share[which])
		left -= m->share[which++];
	switch ((enum op)which) {
	case OP_MAP:
		process_map(p, file, page, 1 + below(m->pages));
		break;
	case OP_UNMAP:
		process_unmap(p, file, page, page + below(PAGES - page));
		break;
	case OP_SPLIT:
		process_split(p, file, page, below(2));
		break;
	case OP_MERGE:
		process_merge(p, file, page, below(MERGE_WAYS), NULL);
		break;
	case OP_FORK:
		process_fork(p);
		break;
	default:
		process_exit(p);
	}
}

/* Every process begins with all pages mapped, by several CPUs. */
static void fill(uint32_t max_pages)
{
	for (uint32_t i = 0; i < PROCESSES; i += 2)
		for (uint32_t file = 0; file < FILES; file++)
			for (uint32_t page = 0; page < PAGES; page++)
				if ((page + i) % check->nr_cpus == emu_cpu_id())
					process_map(check->process[i], file, page, 1 + below(max_pages));
	barrier();
}

/* Everybody unmaps his share. After it nothing is mapped. */
static void drain(void)
{
	barrier();
	for (uint32_t i = emu_cpu_id(); i < PROCESSES; i += check->nr_cpus)
		process_exit(check->process[i]);
	barrier();
}

static bool is_walker(void)
{
	return emu_cpu_id() % 4 == 3 || check->nr_cpus == 1;
}

static void mix(const struct mixture *m)
{
	jitter();
	if (is_walker()) {
		uint32_t left = WALKS_A_STEP * check->steps;

		while (left-- && atomic_load_explicit(&check->busy, memory_order_acquire)) {
			uint32_t file = below(FILES), first = 0, last = PAGES - 1;

			if (below(4) == 0) {
				first = below(PAGES);
				last = first + below(PAGES - first);
			}
			walk(file, first, last, below(m->try_one_in) == 0, m->ask);
			jitter();
		}
		return;
	}
	for (uint32_t i = 0; i < check->steps; i++)
		change_something(m);
	atomic_fetch_sub_explicit(&check->busy, 1, memory_order_release);
}

/* `busy` counts CPUs that change things. */
static void without_walkers(void)
{
	if (is_walker())
		atomic_fetch_sub_explicit(&check->busy, 1, memory_order_release);
	barrier();
}

static void run_mixture(const struct mixture *m)
{
	without_walkers();
	fill(3);
	mix(m);
	drain();
}

static void rule_walk(void)
{
	static const struct mixture m = {
		.share = { [OP_MAP] = 6, [OP_UNMAP] = 3, [OP_SPLIT] = 3, [OP_MERGE] = 3, [OP_FORK] = 1, [OP_EXIT] = 1 },
		.ask = ASK_VMAS,
		.try_one_in = 4,
		.pages = 3,
	};

	run_mixture(&m);
}

static void rule_fork_order(void)
{
	static const struct mixture m = {
		.share = { [OP_MAP] = 3, [OP_UNMAP] = 1, [OP_SPLIT] = 1, [OP_MERGE] = 1, [OP_FORK] = 8, [OP_EXIT] = 4 },
		.ask = ASK_ORDER,
		.try_one_in = 8,
		.pages = 3,
	};

	run_mixture(&m);
}

static void rule_atomic(void)
{
	/* Nothing but exit takes a page away: most processes are whole most of the time. */
	static const struct mixture m = {
		.share = { [OP_MAP] = 4, [OP_SPLIT] = 10, [OP_MERGE] = 10, [OP_FORK] = 2, [OP_EXIT] = 1 },
		.ask = ASK_PAGES,
		.try_one_in = 4,
		.pages = PAGES,
	};

	run_mixture(&m);
}

/* Between prepare and complete: long enough for somebody to come by, also where CPUs share a host's few. */
static void linger(void)
{
	emu_compute(10000 + below(20000));
}

/*
 * mapped()
 */

static void ask_mapped(bool wanted, const char *when)
{
	for (uint32_t file = 0; file < FILES; file++)
		if (mapped(file) != wanted)
			broken("mapped() of %s says %s %s", file_name(file), wanted ? "no" : "yes", when);
}

/* The one who has the mapping changes it, so that the file's only VMA is out of the index for a while. */
static void change_the_only_one(struct process *p)
{
	for (uint32_t file = 0; file < FILES; file++) {
		process_split(p, file, 2, below(2));
		process_merge(p, file, 2, 2 + below(2), linger);
		process_merge(p, file, 2, below(2) ? 4 : 0, linger);
	}
}

static void map_both(struct process *p)
{
	for (uint32_t file = 0; file < FILES; file++)
		process_map(p, file, 0, 4);
}

/* Two CPUs take turns: there is always a mapping and often one only. A third of the others ask all the time. */
static void relay(uint32_t round)
{
	uint32_t a = round * 5 % check->nr_cpus, b = (a + 1 + round % (check->nr_cpus - 1)) % check->nr_cpus;
	uint32_t turns = 4, me = emu_cpu_id();

	ask_mapped(false, "while nobody maps it");
	barrier();
	if (me == a) {
		map_both(check->process[0]);
		atomic_store_explicit(&check->busy, 1, memory_order_relaxed);
		publish(0);
	}
	barrier();
	if (me != a && me != b && me % 3 == 0) {
		while (atomic_load_explicit(&check->busy, memory_order_acquire)) {
			ask_mapped(true, "while at least one process maps it at any time");
			jitter();
		}
	}
	for (uint32_t turn = 0; turn < turns; turn++) {
		struct process *mine = check->process[turn % 2], *next = check->process[(turn + 1) % 2];
		uint32_t flag = 4 * turn;

		if (me == (turn % 2 ? b : a)) {
			change_the_only_one(mine);
			publish(flag + 1);
			wait_for(flag + 2);
			process_exit(mine);
			publish(flag + 3);
		} else if (me == (turn % 2 ? a : b)) {
			wait_for(flag + 1);
			map_both(next);
			publish(flag + 2);
			wait_for(flag + 3);
		}
	}
	if (me == a)
		atomic_store_explicit(&check->busy, 0, memory_order_release);
	drain();
}

static void rule_mapped(void)
{
	if (check->nr_cpus < 2)
		return;
	for (uint32_t round = 0; round < 1 + check->steps / 16; round++) {
		barrier();
		relay(round);
	}
	ask_mapped(false, "after the last VMA was unlinked");
}

static void quiet_mapped(uint32_t times)
{
	if (emu_cpu_id() == 0)
		map_both(check->process[0]);
	barrier();
	for (uint32_t i = 0; i < times; i++)
		ask_mapped(true, "while a process maps it");
	drain();
}

/*
 * Trylock
 */

static void hold_open(void)
{
	publish(1);
	wait_for(2);
}

/* One CPU is between prepare and complete until another one's trylock walk has come back. */
static void try_amidst(uint32_t round)
{
	uint32_t holder = round * 5 % check->nr_cpus;
	uint32_t trier = (holder + 1 + round % (check->nr_cpus - 1)) % check->nr_cpus;
	uint32_t file = round % FILES, me = emu_cpu_id();

	if (me == 0)
		publish(0);
	barrier();
	if (me == holder) {
		struct process *p = check->process[2 + holder % (PROCESSES - 2)];

		process_exit(p);
		process_map(p, file, 0, 2);
		process_map(p, file, 2, 2);
		process_merge(p, file, 2, round % 3, hold_open);
	} else if (me == trier) {
		wait_for(1);
		walk(file, 0, PAGES - 1, true, ASK_VMAS | ASK_PAGES | ASK_ALL);
		publish(2);
	}
	barrier();
	/* Now nobody holds anything: there is no reason to refuse. */
	if (me == trier && !walk(file, 0, PAGES - 1, true, ASK_VMAS))
		broken("a trylock walk of %s returned -EAGAIN while no CPU held a lock", file_name(file));
	barrier();
}

static void rule_trylock(void)
{
	static const struct mixture m = {
		.share = { [OP_MAP] = 6, [OP_UNMAP] = 3, [OP_SPLIT] = 3, [OP_MERGE] = 3, [OP_FORK] = 1, [OP_EXIT] = 1 },
		.ask = ASK_VMAS | ASK_ALL,
		.try_one_in = 1,
		.pages = 3,
	};

	without_walkers();
	fill(2);
	for (uint32_t round = 0; check->nr_cpus > 1 && round < 1 + check->steps / 8; round++)
		try_amidst(round);
	mix(&m);
	drain();
}

/*
 * Deadlock
 */

/*
 * CPUs a and b each mapped a page of two processes, in opposite order: a merge over both borders takes the locks of the
 * same two trees. Each of them moves the border of one process to and fro, while others walk.
 */
static void cross(uint32_t round)
{
	uint32_t a = round * 5 % check->nr_cpus, b = (a + check->nr_cpus / 2) % check->nr_cpus;
	uint32_t me = emu_cpu_id();

	for (uint32_t file = 0; file < FILES; file++) {
		if (me == a)
			process_map(check->process[0], file, 0, 2);
		if (me == b)
			process_map(check->process[1], file, 0, 2);
	}
	barrier();
	for (uint32_t file = 0; file < FILES; file++) {
		if (me == b)
			process_map(check->process[0], file, 2, 2);
		if (me == a)
			process_map(check->process[1], file, 2, 2);
	}
	barrier();
	if (me == a || me == b) {
		struct process *p = check->process[me == b];

		for (uint32_t i = 0; i < 6; i++) {
			/* A few ns apart at most, of the same file or not. */
			uint32_t file = i / 2 % FILES;

			emu_compute(below(64));
			for (uint32_t at = 1; at < 4; at++)
				process_merge(p, file, at, i % 2 ? 3 : 2, linger);
		}
	} else if (is_walker()) {
		for (uint32_t i = 0; i < 2; i++) {
			walk(below(FILES), 0, PAGES - 1, false, 0);
			jitter();
		}
	}
	barrier();
	if (me == a)
		process_exit(check->process[0]);
	if (me == b)
		process_exit(check->process[1]);
	barrier();
}

static void rule_deadlock(void)
{
	static const struct mixture m = {
		.share = { [OP_MAP] = 6, [OP_UNMAP] = 3, [OP_SPLIT] = 2, [OP_MERGE] = 8, [OP_FORK] = 1, [OP_EXIT] = 1 },
		.try_one_in = 8,
		.pages = 1,
	};

	without_walkers();
	for (uint32_t round = 0; check->nr_cpus > 1 && round < 1 + check->steps / 8; round++)
		cross(round);
	fill(1);
	mix(&m);
	drain();
}

/*
 * Memory
 */

static void rule_memory(void)
{
	static const struct mixture m = {
		.share = { [OP_MAP] = 4, [OP_UNMAP] = 2, [OP_SPLIT] = 4, [OP_MERGE] = 4, [OP_FORK] = 2, [OP_EXIT] = 1 },
		.try_one_in = 4,
		.pages = 3,
	};
	int64_t full = 0;

	without_walkers();
	for (uint32_t i = emu_cpu_id(); i < PROCESSES; i += check->nr_cpus)
		for (uint32_t page = 0; page < PAGES; page++)
			for (uint32_t file = 0; file < FILES; file++)
				process_map(check->process[i], file, page, 1);
	barrier();
	if (emu_cpu_id() == 0)
		full = emu_live_bytes();
	drain();
	if (emu_cpu_id() == 0)
		check->vma_millibytes = (full - emu_live_bytes()) * 1000 / (int64_t)(PROCESSES * PAGES * FILES);
	barrier();
	mix(&m);
	drain();
	if (emu_cpu_id() == 0)
		check->used_file_bytes = (emu_live_bytes() - check->bytes_at_begin) / FILES;
	ask_mapped(false, "after the last VMA was unlinked");
}

const struct conformance_rule rmap_rules[] = {
	{ "walk", "a walk meets every VMA linked before it began and not unlinked before it ended, none twice",
	  rule_walk, NULL },
	{ "fork-order", "a walk in progress meets a parent's VMA before the child's copy", rule_fork_order, NULL },
	{ "atomic", "prepare ... complete is atomic to walks: no half-split range, no hole, no overlap", rule_atomic,
	  NULL },
	{ "mapped", "mapped() is right at all times; lines that its \"yes\" writes are counted", rule_mapped,
	  quiet_mapped },
	{ "trylock", "a trylock walk gets all or nothing, before its first callback, and never waits", rule_trylock,
	  NULL },
	{ "deadlock", "no cycle of locks: two files, neighbours in one tree, two trees in both directions",
	  rule_deadlock, NULL },
	{ "memory", "all memory comes back; bytes per cold file, per used file and per VMA are reported", rule_memory,
	  NULL },
	{ NULL, NULL, NULL, NULL },
};
