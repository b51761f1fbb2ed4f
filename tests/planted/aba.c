/* SPDX-License-Identifier: MIT */
/*
 * aba.c - a planted bug: a sleeping lock whose futex word counts releases with one bit, so that two releases between a
 * waiter's look and its sleep are not noticed. It takes three waiting writers.
 */
#include <emu/scenario.h>

static struct {
	__cacheline_aligned _Atomic uint32_t taken;
	__cacheline_aligned _Atomic uint32_t releases;
	__cacheline_aligned uint64_t words;
} * lock;

static void setup(void)
{
	lock = emu_zalloc(sizeof(*lock), 0);
}

static void cpu(uint32_t number)
{
	(void)number;
	for (;;) {
		uint32_t seen = atomic_load_explicit(&lock->releases, memory_order_acquire);

		if (!atomic_exchange_explicit(&lock->taken, 1, memory_order_acquire))
			break;
		emu_futex_wait(&lock->releases, seen);
	}
	lock->words++;
	atomic_store_explicit(&lock->taken, 0, memory_order_release);
	atomic_fetch_xor_explicit(&lock->releases, 1, memory_order_seq_cst);
	emu_futex_wake(&lock->releases, 1);
}

EMU_EXPORT const struct emu_scenario emu_scenarios[] = {
	{ .name = "aba",
	  .help = "a futex word that repeats",
	  .nr_cpus = 4,
	  .kind = EMU_SCENARIO_LOCK,
	  .setup = setup,
	  .cpu = cpu },
	{ 0 },
};
