/* SPDX-License-Identifier: MIT */
/*
 * rcu.c - grace periods; see rcu.h.
 *
 * Orders, for a reader R that misses an unlinking by W whose memory goes with grace period n. W freed after it had said
 * n - 2; n - 1 ended after W spoke again (release in say(), acquire in has_passed()), and n began after that (release of
 * `started`). If R said n, then by an acquire of `started`: what it loads later sees the unlinking, and what it loaded
 * earlier is done, for it said so with a release. If R was found idle, then by a read-modify-write of its word: R comes back
 * by another one, which reads from that, so that again all that R loads later sees the unlinking.
 */
#include <emu/rcu.h>

struct emu_rcu *emu_rcu;

static struct emu_rcu_cpu *this_cpu(void)
{
	return &emu_rcu->cpus[current->nr];
}

void emu_rcu_init(struct emu_rcu *rcu, uint32_t nr_cpus)
{
	atomic_init(&rcu->started, 1);
	atomic_init(&rcu->done, 1);
	atomic_init(&rcu->locked, 0);
	rcu->nr_cpus = nr_cpus;
	rcu->next_cpu = 0;
	for (uint32_t i = 0; i < nr_cpus; i++) {
		atomic_init(&rcu->cpus[i].seen, 0);
		rcu->cpus[i].first = rcu->cpus[i].last = NULL;
		rcu->cpus[i].freed = rcu->cpus[i].waiting = 0;
	}
	emu_rcu = rcu;
}

void emu_rcu_idle(void)
{
	EMU_ASSERT(!current->rcu_nesting, "a CPU sleeps or ends inside %u read-side sections", current->rcu_nesting);
	atomic_store_explicit(&this_cpu()->seen, 0, memory_order_release);
}

uint64_t emu_rcu_sleep(void)
{
	uint64_t was = atomic_load_explicit(&this_cpu()->seen, memory_order_relaxed);

	if (was)
		emu_rcu_idle();
	return was;
}

/* Is the CPU through grace period n? */
static bool has_passed(struct emu_rcu_cpu *cpu, uint64_t n)
{
	uint64_t seen = atomic_load_explicit(&cpu->seen, memory_order_acquire);

	if (!seen)
		seen = atomic_fetch_add_explicit(&cpu->seen, 0, memory_order_acq_rel);
	return !seen || seen >= n;
}

static void say(struct emu_rcu_cpu *cpu)
{
	uint64_t started = atomic_load_explicit(&emu_rcu->started, memory_order_acquire);

	if (atomic_load_explicit(&cpu->seen, memory_order_relaxed) != started)
		atomic_store_explicit(&cpu->seen, started, memory_order_release);
}

void emu_rcu_online(void)
{
	/*
	 * No longer idle first, the number afterwards: grace periods that find this CPU idle meanwhile would leave the
	 * number behind, and emu_free_rcu() would count from there. Acquire: see above.
	 */
	emu_preempt_disable();
	atomic_exchange_explicit(&this_cpu()->seen, 1, memory_order_acq_rel);
	say(this_cpu());
	emu_preempt_enable();
}

void emu_rcu_wake(uint64_t was)
{
	if (was)
		emu_rcu_online();
}

/* Begins and ends grace periods as far as the CPUs let, until `target` is over. One CPU at a time; nobody waits. */
static void drive(struct emu_rcu_cpu *self, uint64_t target)
{
	uint64_t done = atomic_load_explicit(&emu_rcu->done, memory_order_acquire);

	if (done >= target || atomic_exchange_explicit(&emu_rcu->locked, 1, memory_order_acquire))
		return;
	while ((done = atomic_load_explicit(&emu_rcu->done, memory_order_relaxed)) < target) {
		if (atomic_load_explicit(&emu_rcu->started, memory_order_relaxed) == done) {
			emu_rcu->next_cpu = 0;
			atomic_store_explicit(&emu_rcu->started, done + 1, memory_order_release);
			say(self);
		}
		while (emu_rcu->next_cpu < emu_rcu->nr_cpus &&
		       has_passed(&emu_rcu->cpus[emu_rcu->next_cpu], done + 1))
			emu_rcu->next_cpu++;
		if (emu_rcu->next_cpu < emu_rcu->nr_cpus)
			break;
		atomic_store_explicit(&emu_rcu->done, done + 1, memory_order_release);
	}
	atomic_store_explicit(&emu_rcu->locked, 0, memory_order_release);
}

static void free_first(struct emu_rcu_cpu *cpu)
{
	struct emu_rcu_bag *bag = cpu->first;

	cpu->first = bag->next;
	if (!cpu->first)
		cpu->last = NULL;
	for (uint32_t i = 0; i < bag->nr; i++)
		emu_free(bag->ptrs[i]);
	cpu->freed += bag->nr;
	cpu->waiting -= bag->nr;
	emu_free(bag);
}

/* Frees what may be freed by now. Preempted, it would keep others from driving, and say() what is out of date. */
static void advance(struct emu_rcu_cpu *cpu)
{
	emu_preempt_disable();
	/* Idle: nobody waits for this CPU, and it has nothing to say. */
	if (atomic_load_explicit(&cpu->seen, memory_order_relaxed))
		say(cpu);
	if (cpu->first)
		drive(cpu, cpu->first->target);
	while (cpu->first && cpu->first->target <= atomic_load_explicit(&emu_rcu->done, memory_order_acquire))
		free_first(cpu);
	emu_preempt_enable();
}

void emu_rcu_quiescent_slow(struct emu_rcu_cpu *cpu)
{
	advance(cpu);
	while (cpu->waiting > EMU_RCU_BACKLOG) {
		emu_wait_unwatched();
		/* A look at the arena: on the virtual machine those who are behind come first. */
		(void)task_running(current);
		advance(cpu);
	}
}

void emu_free_rcu(void *ptr)
{
	struct emu_rcu_cpu *cpu = this_cpu();
	uint64_t seen = atomic_load_explicit(&cpu->seen, memory_order_relaxed);
	struct emu_rcu_bag *bag = cpu->last;

	EMU_ASSERT(seen, "emu_free_rcu() by a CPU that is not online");
	if (!ptr)
		return;
	if (!bag || bag->nr == EMU_RCU_BAG || bag->target != seen + 2) {
		bag = emu_alloc(sizeof(*bag), emu_node_id());
		bag->next = NULL;
		bag->nr = 0;
		bag->target = seen + 2;
		if (cpu->last)
			cpu->last->next = bag;
		else
			cpu->first = bag;
		cpu->last = bag;
	}
	bag->ptrs[bag->nr++] = ptr;
	cpu->waiting++;
}

void emu_rcu_drain(void)
{
	for (uint32_t i = 0; i < emu_rcu->nr_cpus; i++)
		while (emu_rcu->cpus[i].first)
			free_first(&emu_rcu->cpus[i]);
}
