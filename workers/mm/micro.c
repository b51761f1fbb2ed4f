/* SPDX-License-Identifier: MIT */
/*
 * micro.c - the calls of the micro workloads: each word that CPUs fight for is alone on its line.
 */
#include "micro.h"

#include <emu/rwsem.h>

#define GONE(side) (UINT64_C(1) << (62 + (side)))

#define BARRIER_OPENED (UINT32_C(1) << 17)
#define BARRIER_LEFT (UINT32_C(1) << 16)
#define BARRIER_WAITING UINT32_C(0xffff)

/* The page that the task before has for this one; 0 in the upper bits: none. */
struct box {
	__cacheline_aligned _Atomic uint64_t page;
	_Atomic uint32_t changes; /* of page: what its two tasks sleep on */
};
#define BOX_OWNER_LEFT UINT64_C(1)
#define BOX_SENDER_LEFT UINT64_C(2)
#define BOX_PAGE (~UINT64_C(3))

struct emu_meeting {
	/* How often the barrier has opened, whether a task has left, how many wait. */
	__cacheline_aligned _Atomic uint32_t barrier;
	struct box boxes[]; /* [nr_tasks] */
};

struct emu_micro {
	__cacheline_aligned _Atomic uint64_t written;
	__cacheline_aligned _Atomic uint64_t added;
	struct rw_semaphore sem; /* a line of its own */
	__cacheline_aligned uint64_t guarded; /* by sem */
	struct pair {
		/* Hand-overs so far; whose turn it is, is its lowest bit. GONE(side): that side plays no more. */
		__cacheline_aligned _Atomic uint64_t turn;
	} pairs[];
};

/* Of tasks that have a CPU of their own: more than those do not play. */
static uint32_t nr_pairs(void)
{
	return emu_nr_cpus() / 2;
}

struct emu_micro *emu_micro_create(void)
{
	struct emu_micro *micro = emu_zalloc(sizeof(*micro) + nr_pairs() * sizeof(micro->pairs[0]), 0);

	init_rwsem(&micro->sem, lock_class("micro_rwsem", NULL));
	return micro;
}

void emu_micro_reset(struct emu_micro *micro)
{
	for (uint32_t i = 0; i < nr_pairs(); i++)
		atomic_store_explicit(&micro->pairs[i].turn, 0, memory_order_relaxed);
}

void emu_line_write(struct emu_micro *micro)
{
	atomic_store_explicit(&micro->written, current->nr, memory_order_seq_cst);
}

void emu_line_fetch_add(struct emu_micro *micro)
{
	atomic_fetch_add_explicit(&micro->added, 1, memory_order_relaxed);
}

void emu_line_cmpxchg(struct emu_micro *micro)
{
	uint64_t value = atomic_load_explicit(&micro->added, memory_order_relaxed);

	while (!atomic_compare_exchange_weak_explicit(&micro->added, &value, value + 1, memory_order_relaxed,
						      memory_order_relaxed))
		;
}

bool emu_line_ping_pong(struct emu_micro *micro, uint64_t *turn)
{
	uint32_t cpu = current->nr, side = cpu & 1;
	struct pair *pair = &micro->pairs[cpu / 2];
	uint64_t seen = *turn;

	if (cpu / 2 >= nr_pairs())
		return false;
	/* By compare-and-exchange, as core-to-core-latency does it: a look first would fetch the line twice. */
	while (!atomic_compare_exchange_strong_explicit(&pair->turn, &seen, *turn + 1, memory_order_acq_rel,
							memory_order_acquire)) {
		if (seen & GONE(!side)) {
			if ((seen & ~GONE(!side)) != *turn)
				return false;
			/* The other's last is ours to answer; nobody else changes the word any more. */
			atomic_fetch_add_explicit(&pair->turn, 1, memory_order_acq_rel);
			break;
		}
		emu_spin_wait(&pair->turn);
		seen = *turn;
	}
	*turn += 2;
	return true;
}

void emu_line_ping_pong_end(struct emu_micro *micro)
{
	uint32_t cpu = current->nr;

	if (cpu / 2 < nr_pairs())
		atomic_fetch_or_explicit(&micro->pairs[cpu / 2].turn, GONE(cpu & 1), memory_order_release);
}

struct emu_meeting *emu_meeting_create(void)
{
	return emu_zalloc(sizeof(struct emu_meeting) + emu_nr_tasks() * sizeof(struct box), 0);
}

void emu_meeting_reset(struct emu_meeting *meeting)
{
	for (uint32_t i = 0; i < emu_nr_tasks(); i++)
		atomic_store_explicit(&meeting->boxes[i].page, 0, memory_order_relaxed);
	atomic_store_explicit(&meeting->barrier, 0, memory_order_relaxed);
}

/* Who has its CPU for itself spins; where tasks share CPUs, those that all wait for may be waiting for this one. */
static bool waits_asleep(void)
{
	return emu_nr_tasks() > emu_nr_cpus();
}

bool emu_barrier(struct emu_meeting *meeting)
{
	uint32_t state = atomic_load_explicit(&meeting->barrier, memory_order_relaxed), next;

	/* Release: what was done before the barrier. Acquire: what others did. */
	do {
		if (state & BARRIER_LEFT)
			return false;
		next = (state & BARRIER_WAITING) + 1 == emu_nr_tasks() ? (state | BARRIER_WAITING | BARRIER_LEFT) + 1 :
									 state + 1;
	} while (!atomic_compare_exchange_weak_explicit(&meeting->barrier, &state, next, memory_order_acq_rel,
							memory_order_relaxed));
	if (!waits_asleep()) {
		next = smp_cond_load_acquire(&meeting->barrier,
					     VAL / BARRIER_OPENED != state / BARRIER_OPENED || (VAL & BARRIER_LEFT));
	} else if (next / BARRIER_OPENED != state / BARRIER_OPENED) {
		emu_futex_wake(&meeting->barrier, emu_nr_tasks());
	} else {
		while (next / BARRIER_OPENED == state / BARRIER_OPENED && !(next & BARRIER_LEFT)) {
			emu_futex_wait(&meeting->barrier, next);
			next = atomic_load_explicit(&meeting->barrier, memory_order_acquire);
		}
	}
	return next / BARRIER_OPENED != state / BARRIER_OPENED;
}

static struct box *next_box(struct emu_meeting *meeting)
{
	return &meeting->boxes[(current->nr + 1) % emu_nr_tasks()];
}

/* Until one of these bits is set, or (wanted 0) none of BOX_PAGE is, or the other side has left. */
static uint64_t await_box(struct box *box, uint64_t wanted, uint64_t left)
{
	uint64_t state;
	uint32_t changes;

	if (!waits_asleep())
		return smp_cond_load_acquire(&box->page, !(VAL & BOX_PAGE) == !wanted || (VAL & left));
	for (;;) {
		changes = atomic_load_explicit(&box->changes, memory_order_acquire);
		state = atomic_load_explicit(&box->page, memory_order_acquire);
		if (!(state & BOX_PAGE) == !wanted || (state & left))
			return state;
		emu_futex_wait(&box->changes, changes);
	}
}

static void box_changed(struct box *box)
{
	if (!waits_asleep())
		return;
	/* Release: the page is what it is now. */
	atomic_fetch_add_explicit(&box->changes, 1, memory_order_release);
	emu_futex_wake(&box->changes, 2);
}

uint64_t emu_pass(struct emu_meeting *meeting, uint64_t addr)
{
	struct box *own = &meeting->boxes[current->nr], *next = next_box(meeting);
	uint64_t state;

	if (emu_nr_tasks() == 1)
		return addr;
	state = await_box(next, 0, BOX_OWNER_LEFT);
	if (state & BOX_OWNER_LEFT)
		return addr;
	/* Release: the page's first user is done with it. 0: the last one had nothing to give either. */
	if (addr) {
		atomic_fetch_or_explicit(&next->page, addr, memory_order_release);
		box_changed(next);
	}
	state = await_box(own, BOX_PAGE, BOX_SENDER_LEFT);
	atomic_fetch_and_explicit(&own->page, ~BOX_PAGE, memory_order_release);
	box_changed(own);
	return state & BOX_PAGE;
}

void emu_leave(struct emu_meeting *meeting)
{
	struct box *own = &meeting->boxes[current->nr], *next = next_box(meeting);

	atomic_fetch_or_explicit(&meeting->barrier, BARRIER_LEFT, memory_order_release);
	if (waits_asleep())
		emu_futex_wake(&meeting->barrier, emu_nr_tasks());
	atomic_fetch_or_explicit(&own->page, BOX_OWNER_LEFT, memory_order_release);
	box_changed(own);
	atomic_fetch_or_explicit(&next->page, BOX_SENDER_LEFT, memory_order_release);
	box_changed(next);
}

EMU_NOINLINE void emu_rwsem_write(struct emu_micro *micro)
{
	EMU_CALL_SITE();

	down_write(&micro->sem);
	micro->guarded++;
	up_write(&micro->sem);
}

EMU_NOINLINE void emu_rwsem_read(struct emu_micro *micro)
{
	EMU_CALL_SITE();
	volatile uint64_t seen;

	down_read(&micro->sem);
	seen = micro->guarded;
	(void)seen;
	up_read(&micro->sem);
}

const char *emu_micro_name(const struct emu_micro *micro, const void *at)
{
	uintptr_t offset = (uintptr_t)at - (uintptr_t)micro;

	if (!micro || offset >= sizeof(*micro) + nr_pairs() * sizeof(micro->pairs[0]))
		return NULL;
	if (offset >= offsetof(struct emu_micro, pairs))
		return "line_ping_pong line";
	if (offset >= offsetof(struct emu_micro, guarded))
		return "word under micro_rwsem";
	if (offset >= offsetof(struct emu_micro, sem))
		return "micro_rwsem";
	return offset < offsetof(struct emu_micro, added) ? "line_write line" : "line_fetch_add line";
}

void emu_micro_totals(const struct emu_micro *micro, uint64_t *added, uint64_t *written)
{
	*added = atomic_load_explicit(&micro->added, memory_order_relaxed);
	*written = micro->guarded;
}
