/* SPDX-License-Identifier: MIT */
/*
 * directory.c - an access to a line that the CPU does not have: where it comes from, what that takes, who is told.
 *
 * Requests for a line are served in the order of their virtual time, in which the points of order come by themselves.
 * A request that finds the line on its way to another CPU waits until it is there, and pays the latency after that: so
 * does a lock that is handed on, or a compare-and-exchange that has to see what the other CPU made of the word. Copies
 * for readers leave the owner occupancy_ps apart and travel at the same time. Read-modify-writes that always succeed
 * (fetch_add, exchange) are served by real machines in batches, neighbours and repeated ones first, which no rule about
 * single requests gives: of those that find the line on its way, each takes occupancy_ps and no latency. The CPU has
 * the line for that time, so its stores to it leave at once. And a compare-and-exchange that fails takes effect when
 * the line has come, and may be tried again before the line goes: else one of n CPUs would succeed each round.
 *
 * A read takes a copy; a write takes the line from everybody, waiting for the farthest. Loads and read-modify-writes
 * stall their CPU. Stores leave through a store buffer of outstanding_stores entries.
 */
#include "virtual.h"

#include <string.h>

static uint64_t leg(uint32_t from, uint32_t to)
{
	return vm.cost.leg_ps[from * vm.cost.nr_nodes + to];
}

static uint64_t latency(const struct fiber *to, const struct fiber *from, uint32_t home)
{
	if (to->core == from->core)
		return vm.cost.smt_ps;
	if (to->l3 == from->l3)
		return vm.cost.c2c_l3_ps;
	return vm.cost.c2c_base_ps + leg(to->node, home) + leg(home, from->node) + leg(from->node, to->node);
}

/* A single transfer of that latency: no two take quite as long, and spinners in step would share a lock out by it. */
static uint64_t transfer(const struct fiber *to, const struct fiber *from, uint32_t home)
{
	return spread(&vm.random, latency(to, from, home), TRANSFER_SPREAD);
}

static uint32_t home_of(uint32_t line)
{
	return vm.home[line >> (EMU_PAGE_SHIFT - 6)];
}

/* The way of the CPU's cache that has the line, 0 being the one used last; WAYS: none. */
static uint32_t way_of(const struct fiber *f, uint32_t line, uint64_t tag)
{
	uint32_t set = tag_set(line), way = 1;
	const uint64_t *older = f->older + set * (WAYS - 1);

	if (f->tags[set] == tag)
		return 0;
	/* A line is in one way at most, so an old version of it here says no. */
	if (f->tags[set] >> 32 == line)
		return WAYS;
	while (way < WAYS && older[way - 1] != tag)
		way++;
	return way;
}

static void to_front(struct fiber *f, uint32_t line, uint32_t way, uint64_t tag)
{
	uint32_t set = tag_set(line);
	uint64_t *older = f->older + set * (WAYS - 1);

	for (uint32_t i = way; i > 1; i--)
		older[i - 1] = older[i - 2];
	if (way)
		older[0] = f->tags[set];
	f->tags[set] = tag;
}

void caches_empty(struct fiber *f)
{
	memset(f->tags, 0, ((uint64_t)vm.set_mask + 1) * sizeof(*f->tags));
	memset(f->older, 0, ((uint64_t)vm.set_mask + 1) * (WAYS - 1) * sizeof(*f->older));
}

/* A new tag: over an old version of the line if that is still there, else over what was used longest ago. */
static void fill(struct fiber *f, uint32_t line, uint64_t tag)
{
	uint32_t set = tag_set(line), way = 0;
	const uint64_t *older = f->older + set * (WAYS - 1);

	if (f->tags[set] >> 32 != line)
		for (way = 1; way < WAYS - 1 && older[way - 1] >> 32 != line; way++)
			;
	to_front(f, line, way, tag);
	f->l3_tags[l3_slot(line)] = tag;
}

static bool still_has(const struct fiber *f, uint32_t line, uint64_t tag)
{
	return f->l3_tags[l3_slot(line)] == tag || way_of(f, line, tag) < WAYS;
}

/* The end of a miss: the line came from another CPU's cache (NULL: it did not), and the CPU goes on at `when`. */
static void finish(uint64_t offset, enum emu_site_kind kind, const struct fiber *from, uint64_t when)
{
	uint64_t wait_ps = when > vm.clock ? when - vm.clock : 0;

	if (from) {
		bool remote = from->node != vm.fiber->node;

		vm.transfers++;
		vm.remote_transfers += remote;
		vm.fiber->spent.transfers++;
		vm.fiber->spent.remote_transfers += remote;
		if (vm.recorded)
			vm.node_transfers[vm.fiber->node * vm.cost.nr_nodes + from->node]++;
	} else if (!wait_ps) {
		return;
	}
	if (vm.recorded)
		site_count((uint32_t)(offset >> 6), kind, (uint32_t)offset & 63, from, wait_ps);
	vm.fiber->spent.stall_ps += wait_ps;
	vm.clock += wait_ps;
}

/* A copy for a reader, from the owner or from memory. */
static uint64_t copy(struct transit *t, uint64_t latency_ps)
{
	uint64_t start = later(vm.clock, t->ready);

	if (t->served && start < t->served + vm.cost.occupancy_ps)
		start = t->served + vm.cost.occupancy_ps;
	t->served = start;
	t->arrived = later(t->arrived, (start + latency_ps) << 16 | vm.fiber->l3);
	return start + latency_ps;
}

/* How far a copy is: from its owner, or where there is none, from memory. */
static uint64_t far_from(const struct fiber *owner, const struct fiber *f, uint32_t home)
{
	return owner ? latency(owner, f, home) : leg(home, f->node);
}

void line_read(uint64_t offset)
{
	struct fiber *f = vm.fiber, *owner, *from = NULL;
	uint32_t line = (uint32_t)(offset >> 6);
	struct line *l = &vm.lines[line];
	struct transit *t = &vm.transits[line];
	uint64_t tag, done;
	uint32_t way, home;

	if (unlikely(vm.clock >= vm.horizon))
		horizon_reached();
	vm.misses++;
	if (unlikely(!l->version))
		l->version = FIRST_VERSION;
	tag = tag_of(line, l);
	way = way_of(f, line, tag);
	if (way < WAYS) {
		to_front(f, line, way, tag);
		return;
	}
	owner = l->owner && l->owner != vm.cpu + 1 ? &vm.fibers[l->owner - 1] : NULL;
	home = home_of(line);
	if (f->l3_tags[l3_slot(line)] == tag) {
		/* It may still be on its way here. */
		if (owner && !l->sharer && owner->l3 == f->l3) {
			done = copy(t, transfer(f, owner, home));
			from = owner;
		} else {
			done = later(t->ready, vm.clock + vm.cost.l3_hit_ps);
			if ((t->arrived & 0xffff) == f->l3)
				done = later(done, t->arrived >> 16);
		}
	} else if (owner && still_has(owner, line, tag)) {
		done = copy(t, transfer(f, owner, home));
		from = owner;
	} else {
		done = copy(t, vm.cost.dram_ps[f->node * vm.cost.nr_nodes + home]);
		vm.dram++;
		if (!l->sharer) {
			l->owner = (uint16_t)(vm.cpu + 1);
			t->ready = done;
		}
		owner = NULL;
	}
	if (l->owner != vm.cpu + 1 && l->sharer != vm.cpu + 1) {
		if (!l->sharer || far_from(owner, f, home) > far_from(owner, &vm.fibers[l->sharer - 1], home))
			l->sharer = (uint16_t)(vm.cpu + 1);
	}
	fill(f, line, tag);
	finish(offset, EMU_SITE_LOAD, from, done);
}

/* Returns when the line is there; *from: out of whose cache. */
static uint64_t line_take(uint32_t line, bool any_order, const struct fiber **from)
{
	struct fiber *f = vm.fiber, *owner, *sharer;
	struct line *l = &vm.lines[line];
	struct transit *t = &vm.transits[line];
	uint64_t tag, cost = 0, done;
	uint32_t way, home = home_of(line);
	bool here;

	if (unlikely(vm.clock >= vm.horizon))
		horizon_reached();
	tag = tag_of(line, l);
	way = way_of(f, line, tag);
	here = way < WAYS || f->l3_tags[l3_slot(line)] == tag;
	vm.misses++;
	vm.last_write = line;
	owner = l->owner && l->owner != vm.cpu + 1 ? &vm.fibers[l->owner - 1] : NULL;
	sharer = l->sharer && l->sharer != vm.cpu + 1 ? &vm.fibers[l->sharer - 1] : NULL;
	if (l->owner == vm.cpu + 1 && !sharer && way < WAYS) {
		to_front(f, line, way, tag);
		return vm.clock;
	}
	if (owner && still_has(owner, line, tag)) {
		cost = transfer(f, owner, home);
		*from = owner;
	} else if (!here) {
		cost = vm.cost.dram_ps[f->node * vm.cost.nr_nodes + home];
		vm.dram++;
	} else if (way == WAYS) {
		cost = vm.cost.l3_hit_ps;
	}
	if (sharer) {
		uint64_t ps = transfer(f, sharer, home);

		if (!cost)
			*from = sharer;
		if (cost < ps)
			cost = ps;
	}
	if (any_order && owner && t->ready > vm.clock)
		done = t->ready + vm.cost.occupancy_ps;
	else
		done = later(vm.clock, t->ready) + cost;
	t->ready = done;
	l->version = (l->version | (FIRST_VERSION - 1)) + 1;
	if (unlikely(!l->version))
		l->version = FIRST_VERSION;
	l->owner = (uint16_t)(vm.cpu + 1);
	l->sharer = 0;
	fill(f, line, tag_of(line, l));
	if (unlikely(t->watchers))
		fiber_wake_watchers(line, done);
	return done;
}

/* Others may be on their way to the line, and will find what is done to it meanwhile; who watches it must look again. */
static bool has_kept(uint32_t line, enum kept what_for)
{
	const struct fiber *f = vm.fiber;

	if (f->kept != what_for || f->kept_line != line || vm.clock >= f->kept_until)
		return false;
	vm.lines[line].version++;
	if (unlikely(vm.transits[line].watchers))
		fiber_wake_watchers(line, vm.clock);
	return true;
}

void line_store(uint64_t offset)
{
	struct fiber *f = vm.fiber;
	const struct fiber *from = NULL;
	uint32_t line = (uint32_t)(offset >> 6);
	uint64_t done;

	if (has_kept(line, KEPT_FOR_STORES))
		return;
	done = line_take(line, false, &from);
	finish(offset, EMU_SITE_STORE, from, f->stores[f->next_store]);
	f->stores[f->next_store] = done;
	if (++f->next_store == vm.cost.outstanding_stores)
		f->next_store = 0;
	if (f->store_done < done)
		f->store_done = done;
}

void line_modify(uint64_t offset, enum modify how)
{
	struct fiber *f = vm.fiber;
	const struct fiber *from = NULL;
	uint32_t line = (uint32_t)(offset >> 6);
	uint64_t done;

	/* One that fails takes the line: its CPU may wait for the next write, of which the line's owner tells it. */
	if (how == MODIFY_SUCCEEDS && has_kept(line, KEPT_FOR_RETRY))
		return;
	done = line_take(line, how == MODIFY_ANY_ORDER, &from);
	finish(offset, EMU_SITE_MODIFY, from, done);
	if (from) {
		f->kept_line = line;
		f->kept = how == MODIFY_ANY_ORDER ? KEPT_FOR_STORES : KEPT_FOR_NOTHING;
		f->kept_until = done + vm.cost.occupancy_ps;
	}
}

void line_arrives(uint32_t line)
{
	if (vm.fiber->kept_line == line)
		vm.fiber->kept = KEPT_FOR_RETRY;
	sync_point(line, false);
}
