/* SPDX-License-Identifier: MIT */
/* rcu.c - a planted bug: an object is freed as soon as it is unlinked, while a reader may have found it before. */
#include <emu/scenario.h>

static struct {
	_Atomic(uint32_t *) pointer;
} * list;

static void setup(void)
{
	uint32_t *object;

	list = emu_zalloc(sizeof(*list), 0);
	object = emu_zalloc(sizeof(*object), 0);
	atomic_init(&list->pointer, object);
}

static void cpu(uint32_t number)
{
	uint32_t *object;

	if (number) {
		object = atomic_load_explicit(&list->pointer, memory_order_acquire);
		/* More work between the two, as a reader has. */
		(void)atomic_load_explicit(&list->pointer, memory_order_acquire);
		if (object)
			EMU_ASSERT(*object == 0, "%u", *object);
	} else {
		emu_free(atomic_exchange_explicit(&list->pointer, NULL, memory_order_acq_rel));
	}
}

EMU_EXPORT const struct emu_scenario emu_scenarios[] = {
	{ .name = "rcu-free",
	  .help = "freed too early",
	  .nr_cpus = 2,
	  .kind = EMU_SCENARIO_LOCK,
	  .setup = setup,
	  .cpu = cpu },
	{ 0 },
};
