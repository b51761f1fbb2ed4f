/* SPDX-License-Identifier: MIT */
/*
 * task.c - sleep and wake-up of a task, by a futex on its wake token.
 *
 *   wake_token  EMPTY   the task runs and nobody has woken it
 *               TOKEN   somebody has: the next task_park() returns at once
 *               ASLEEP  the task sleeps on the word, or is about to; a waker owes it a futex wake
 *
 * Rules for callers: task_park() may return although the reason for waiting is still there (a waker that decided long
 * ago may post its token late), so callers look again and loop. What a waker wrote before task_unpark() is seen after
 * the task_park() that it ended.
 *
 * No wake-up is lost to a word that went away and came back: only the task itself moves the word away from TOKEN, so
 * between its last look and the futex call the word can go from ASLEEP to TOKEN but not back to ASLEEP.
 */
#include <emu/task.h>

enum task_wake_token { TASK_EMPTY, TASK_TOKEN, TASK_ASLEEP };

void task_park(void)
{
	_Atomic uint32_t *token = &current->wake_token;
	uint32_t old = TASK_EMPTY;

	/* Acquire on both ways out: pairs with the release of the waker that left the token. */
	if (atomic_compare_exchange_strong_explicit(token, &old, TASK_ASLEEP, memory_order_acquire,
						    memory_order_relaxed)) {
		do
			emu_futex_wait(token, TASK_ASLEEP);
		while (atomic_load_explicit(token, memory_order_relaxed) == TASK_ASLEEP);
	}
	/* An exchange, not a store: wakers are a chain of read-modify-writes, and this takes over from all of them. */
	atomic_exchange_explicit(token, TASK_EMPTY, memory_order_acquire);
}

void task_unpark(struct task_struct *task)
{
	/* Release even where a token lies there already: the one park that takes it answers every waker. */
	if (atomic_exchange_explicit(&task->wake_token, TASK_TOKEN, memory_order_release) == TASK_ASLEEP)
		emu_futex_wake(&task->wake_token, 1);
}
