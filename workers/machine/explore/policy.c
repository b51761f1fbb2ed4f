/* SPDX-License-Identifier: MIT */
/*
 * policy.c - who goes next, by chance or as it was written down.
 *
 *   random  each run draws how likely a switch is, from every other step to every 32nd, and then any CPU is as likely
 *   pct     CPUs have priorities, the highest that can run does; at d - 1 random steps the running one becomes the
 *           lowest (Burckhardt and others, ASPLOS 2010): finds a bug of depth d with probability 1/(n k^(d-1)) at least
 *   replay  as the decisions of a schedule say
 *
 * A decision is 0 for what would happen anyway: the CPU that runs goes on, or the lowest that can; otherwise 1 + CPU.
 */
#include "internal.h"

static uint32_t depth;	   /* pct: 0 = in turn */
static uint64_t longest;   /* steps of the longest run so far */
static uint32_t mask_bits; /* random: a switch is considered when these bits of a random number are 0 */
static int32_t priority[CPUS];
static uint32_t change_at[8], nr_changes, next_change;
static int32_t lowest;

static const uint8_t *script;
static uint32_t script_length;

/* splitmix64 (Steele, Lea, Flood 2014). */
uint64_t next_random(void)
{
	uint64_t z = (x.rng += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static uint32_t below(uint32_t n)
{
	return (uint32_t)((next_random() >> 32) * n >> 32);
}

void decision_record(uint32_t value)
{
	if (likely(x.nr_decisions < DECISIONS_MAX))
		x.decisions[x.nr_decisions++] = (uint8_t)value;
}

static uint32_t decided(uint32_t cpu, uint32_t otherwise)
{
	decision_record(cpu == otherwise ? 0 : cpu + 1);
	return cpu;
}

static uint32_t nth_ready(uint32_t nth)
{
	uint32_t mask = x.ready;

	while (nth--)
		mask &= mask - 1;
	return (uint32_t)__builtin_ctz(mask);
}

static uint32_t random_cpu(uint32_t otherwise)
{
	uint64_t r = next_random();

	/* A CPU that waits leaves the choice to chance always. */
	if ((x.ready >> x.me->cpu & 1) && (r & mask_bits))
		return decided(otherwise, otherwise);
	return decided(nth_ready((uint32_t)((r >> 32) * (uint32_t)__builtin_popcount(x.ready) >> 32)), otherwise);
}

static uint32_t random_value(uint32_t n, bool is_rare)
{
	uint64_t r = next_random();

	if (r & (is_rare ? 31 : 3))
		return 0;
	return 1 + (uint32_t)((r >> 32) * (n - 1) >> 32);
}

const struct policy policy_random = { .next_cpu = random_cpu, .value = random_value };

static uint32_t pct_cpu(uint32_t otherwise)
{
	uint32_t best = CPUS;

	while (next_change < nr_changes && x.steps >= change_at[next_change]) {
		next_change++;
		if (x.me->cpu < CPUS)
			priority[x.me->cpu] = --lowest;
	}
	for (uint32_t mask = x.ready; mask; mask &= mask - 1) {
		uint32_t cpu = (uint32_t)__builtin_ctz(mask);

		if (best == CPUS || priority[cpu] > priority[best])
			best = cpu;
	}
	/* One that goes round and round without waiting must let others go on at last. */
	if (x.steps > 2000 && !(next_random() & 63))
		priority[best] = --lowest;
	return decided(best, otherwise);
}

const struct policy policy_pct = { .next_cpu = pct_cpu, .value = random_value };

static uint32_t replay_next(void)
{
	return x.nr_decisions < script_length ? script[x.nr_decisions] : 0;
}

static uint32_t replay_cpu(uint32_t otherwise)
{
	uint32_t value = replay_next();

	if (!value || value > CPUS || !(x.ready >> (value - 1) & 1))
		return decided(otherwise, otherwise);
	return decided(value - 1, otherwise);
}

static uint32_t replay_value(uint32_t n, bool is_rare)
{
	uint32_t value = replay_next();

	(void)is_rare;
	return value < n ? value : 0;
}

const struct policy policy_replay = { .next_cpu = replay_cpu, .value = replay_value };

void replay_set(const uint8_t *decisions, uint32_t n)
{
	script = decisions;
	script_length = n;
}

void policy_reset(uint64_t seed, uint32_t wanted_depth)
{
	x.rng = seed * UINT64_C(0xd1342543de82ef95) + 1;
	depth = wanted_depth;
	longest = 30;
}

/* Run `number` of a campaign is about to begin. */
void policy_begin_run(uint64_t number)
{
	static const uint32_t bits[] = { 1, 7, 0, 31 };
	uint32_t d = depth ? depth : 2 + (uint32_t)(number / 2 % 4);

	if (x.steps > longest)
		longest = x.steps;
	mask_bits = bits[below(ARRAY_SIZE(bits))];
	for (uint32_t i = 0; i < x.nr_cpus; i++)
		priority[i] = (int32_t)i + 1;
	for (uint32_t i = x.nr_cpus; i > 1; i--) {
		uint32_t j = below(i);
		int32_t swap = priority[i - 1];

		priority[i - 1] = priority[j];
		priority[j] = swap;
	}
	lowest = 0;
	next_change = 0;
	nr_changes = d - 1 < ARRAY_SIZE(change_at) ? d - 1 : (uint32_t)ARRAY_SIZE(change_at);
	for (uint32_t i = 0; i < nr_changes; i++) {
		uint32_t at = 1 + below((uint32_t)longest), j = i;

		for (; j && change_at[j - 1] > at; j--)
			change_at[j] = change_at[j - 1];
		change_at[j] = at;
	}
}
