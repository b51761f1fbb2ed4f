/* SPDX-License-Identifier: MIT */
/*
 * dpor.c - all orders, each equivalence class once: dynamic partial-order reduction.
 *
 * Two orders are equivalent if one becomes the other by swapping neighbours that are independent. After a run each race
 * (two steps of different CPUs that are dependent with nothing ordered in between) asks for a run in which the second
 * comes first: at the state before the first step a CPU must be tried with which such a run can begin (source sets,
 * Abdulla and others, POPL 2014). Sleep sets keep a run from repeating one that was made; such a run is cut where that is
 * seen. So complete runs are exactly as many as there are classes.
 *
 * Values that a load may return are branches too. Time stands still and emu_need_resched() is false.
 *
 * With a bound on preemptions no sleep sets are used, since who sleeps may have been kept out by the bound; and each race
 * is tried where the first CPU's turn began as well (Coons, Musuvathi, McKinley, OOPSLA 2013). Classes may then be met
 * more than once.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>

#define NODES_MAX 8192u

struct node {
	bool is_value;
	uint8_t n, value;			 /* of a value */
	uint8_t chosen, before;			 /* CPUs: who goes, who went before (CPUS: nobody that could go on) */
	uint8_t enabled, backtrack, done, sleep; /* masks */
	uint32_t preemptions;			 /* before this one */
	struct op op;				 /* of the chosen one */
	uint16_t clock[CPUS];			 /* [cpu]: its last step that is ordered before this one, + 1 */
	uint16_t since[CPUS];			 /* the same for the CPU's state before the step */
};

static struct node *nodes;
static uint32_t nr_nodes, at;
static uint32_t bound;
static bool was_cut, too_long;
static uint64_t left_out;

int dpor_start(uint32_t preemptions)
{
	free(nodes);
	nodes = calloc(NODES_MAX, sizeof(*nodes));
	nr_nodes = 0;
	bound = preemptions;
	left_out = 0;
	return nodes ? 0 : -1;
}

void dpor_destroy(void)
{
	free(nodes);
	nodes = NULL;
	nr_nodes = 0;
	was_cut = false;
}

bool dpor_run_was_cut(void)
{
	return was_cut && x.policy == &policy_exhaustive;
}

uint64_t dpor_left_out(void)
{
	return left_out;
}

void dpor_begin_run(void)
{
	at = 0;
	was_cut = false;
}

static bool overlap(const struct op *a, const struct op *b)
{
	uintptr_t from_a = a->addr & ~UINT64_C(3), to_a = a->addr + a->size, from_b = b->addr & ~UINT64_C(3),
		  to_b = b->addr + b->size;

	return from_a < ((to_b + 3) & ~UINT64_C(3)) && from_b < ((to_a + 3) & ~UINT64_C(3));
}

static bool dependent(const struct op *a, const struct op *b)
{
	if (a->kind == OP_LOCAL || b->kind == OP_LOCAL)
		return false;
	if (a->kind == OP_FENCE)
		return b->sc || b->kind == OP_FENCE;
	if (b->kind == OP_FENCE)
		return a->sc;
	if (a->kind == OP_READ && b->kind == OP_READ)
		return false;
	return overlap(a, b);
}

static void cut(void)
{
	was_cut = true;
	x.running = false;
	context_switch(&x.me->sp, x.main.sp);
	__builtin_unreachable();
}

static struct node *last_cpu_node(uint32_t before)
{
	while (before--)
		if (!nodes[before].is_value)
			return &nodes[before];
	return NULL;
}

static struct node *add_node(void)
{
	if (nr_nodes == NODES_MAX) {
		too_long = true;
		fail(EMU_FOUND_LIVELOCK, "a run of more than %u steps is too long for an exhaustive search", NODES_MAX);
	}
	nodes[nr_nodes] = (struct node){ 0 };
	return &nodes[nr_nodes++];
}

static uint32_t exhaustive_cpu(uint32_t otherwise)
{
	struct node *node, *parent;

	if (at == nr_nodes) {
		uint32_t candidates;

		parent = last_cpu_node(at);
		node = add_node();
		node->enabled = (uint8_t)x.ready;
		node->before = x.me->cpu < CPUS && (x.ready >> x.me->cpu & 1) ? (uint8_t)x.me->cpu : CPUS;
		if (parent) {
			uint32_t asleep = (parent->sleep | parent->done) & ~(1u << parent->chosen);

			node->preemptions =
				parent->preemptions + (parent->before < CPUS && parent->before != parent->chosen);
			if (bound == UINT32_MAX)
				for (; asleep; asleep &= asleep - 1) {
					uint32_t cpu = (uint32_t)__builtin_ctz(asleep);

					if (!dependent(&x.cpus[cpu].op, &parent->op))
						node->sleep |= 1u << cpu;
				}
		}
		candidates = node->enabled & ~(uint32_t)node->sleep;
		if (!candidates)
			cut();
		node->chosen = (uint8_t)(candidates >> otherwise & 1 ? otherwise : (uint32_t)__builtin_ctz(candidates));
		node->backtrack = (uint8_t)(1u << node->chosen);
	} else {
		node = &nodes[at];
		if (node->is_value || node->enabled != x.ready)
			fail(EMU_FOUND_ASSERT,
			     "a run does not repeat itself: the scenario depends on something else than the order");
	}
	at++;
	node->op = x.cpus[node->chosen].op;
	if (x.ready & (x.ready - 1))
		decision_record(node->chosen == otherwise ? 0 : node->chosen + 1u);
	return node->chosen;
}

static uint32_t exhaustive_value(uint32_t n, bool is_rare)
{
	struct node *node;

	(void)is_rare;
	if (at == nr_nodes) {
		node = add_node();
		node->is_value = true;
		node->n = (uint8_t)n;
	} else {
		node = &nodes[at];
	}
	at++;
	return node->value;
}

const struct policy policy_exhaustive = { .next_cpu = exhaustive_cpu, .value = exhaustive_value, .always = true };

static void join(uint16_t into[CPUS], const uint16_t from[CPUS])
{
	for (uint32_t i = 0; i < CPUS; i++)
		if (from[i] > into[i])
			into[i] = from[i];
}

/* Is step m ordered before step i, not counting what goes through step j? */
static bool precedes(uint32_t m, uint32_t i, uint32_t j)
{
	if (nodes[i].since[nodes[m].chosen] > m)
		return true;
	for (uint32_t k = m; k < i; k++)
		if (!nodes[k].is_value && nodes[k].clock[nodes[j].chosen] <= j &&
		    dependent(&nodes[k].op, &nodes[i].op) && nodes[k].clock[nodes[m].chosen] > m)
			return true;
	return false;
}

static void add_backtrack(struct node *node, uint32_t initials, uint32_t preferred)
{
	uint32_t usable = initials & node->enabled;

	if (initials & node->backtrack)
		return;
	if (!usable)
		node->backtrack |= node->enabled;
	else if (usable >> preferred & 1)
		node->backtrack |= (uint8_t)(1u << preferred);
	else
		node->backtrack |= (uint8_t)(usable & -usable);
}

/* Steps j and i could be in the other order. */
static void reverse(uint32_t j, uint32_t i)
{
	uint32_t initials = 0, met = 0, first = j;

	/* What can come before step i without step j; whose first step of it nothing of it precedes. */
	for (uint32_t k = j + 1; k <= i; k++) {
		bool is_initial = true;

		if (nodes[k].is_value || (k < i && nodes[k].clock[nodes[j].chosen] > j))
			continue;
		if (met >> nodes[k].chosen & 1)
			continue;
		met |= 1u << nodes[k].chosen;
		for (uint32_t m = j + 1; m < k && is_initial; m++)
			if (!nodes[m].is_value && nodes[m].clock[nodes[j].chosen] <= j)
				is_initial = k < i ? nodes[k].clock[nodes[m].chosen] <= m : !precedes(m, i, j);
		if (is_initial)
			initials |= 1u << nodes[k].chosen;
	}
	add_backtrack(&nodes[j], initials, nodes[i].chosen);
	if (bound == UINT32_MAX)
		return;
	/* Where the turn of j's CPU began, going there costs no preemption. */
	for (uint32_t k = j; k-- > 0;) {
		if (nodes[k].is_value)
			continue;
		if (nodes[k].chosen != nodes[j].chosen)
			break;
		first = k;
	}
	nodes[first].backtrack |= nodes[first].enabled & (1u << nodes[i].chosen | initials);
}

static void find_races(void)
{
	uint16_t now[CPUS][CPUS] = { 0 };

	for (uint32_t i = 0; i < at; i++) {
		struct node *node = &nodes[i];
		uint16_t seen[CPUS];

		if (node->is_value)
			continue;
		memcpy(node->since, now[node->chosen], sizeof(node->since));
		memcpy(seen, node->since, sizeof(seen));
		for (uint32_t k = i; k-- > 0;) {
			uint32_t cpu = nodes[k].chosen, m;

			if (nodes[k].is_value || cpu == node->chosen || seen[cpu] > k ||
			    !dependent(&nodes[k].op, &node->op))
				continue;
			join(seen, nodes[k].clock);
			if (node->op.kind == OP_LOCK && nodes[k].op.kind == OP_UNLOCK) {
				/* Not these two can be swapped, but the two that took the lock. */
				for (m = k; m-- > 0;)
					if (!nodes[m].is_value && nodes[m].chosen == cpu &&
					    nodes[m].op.kind == OP_LOCK && overlap(&nodes[m].op, &node->op))
						break;
				if (m != UINT32_MAX && node->since[cpu] <= m)
					reverse(m, i);
			} else if (node->op.kind != OP_UNLOCK || nodes[k].op.kind != OP_LOCK) {
				reverse(k, i);
			}
		}
		memcpy(node->clock, seen, sizeof(seen));
		node->clock[node->chosen] = (uint16_t)(i + 1);
		memcpy(now[node->chosen], node->clock, sizeof(node->clock));
	}
}

bool dpor_next(void)
{
	find_races();
	while (nr_nodes) {
		struct node *node = &nodes[nr_nodes - 1];
		uint32_t left;

		if (node->is_value) {
			if (++node->value < node->n)
				return true;
			nr_nodes--;
			continue;
		}
		node->done |= (uint8_t)(1u << node->chosen);
		left = node->backtrack & ~(uint32_t)node->done & ~(uint32_t)node->sleep;
		while (left) {
			uint32_t cpu = (uint32_t)__builtin_ctz(left);

			left &= left - 1;
			if (bound != UINT32_MAX && node->before < CPUS && node->before != cpu &&
			    node->preemptions >= bound) {
				node->done |= (uint8_t)(1u << cpu);
				left_out++;
				continue;
			}
			node->chosen = (uint8_t)cpu;
			return true;
		}
		nr_nodes--;
	}
	return false;
}
