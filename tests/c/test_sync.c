/* SPDX-License-Identifier: MIT */
/*
 * test_sync.c - the locks under workers/sync on their own: exclusion, order, hand-off, sleep and wake-up, statistics.
 *
 * Build it twice, with the four sources it tests (from the root, cc being gcc or clang):
 *
 *   SRC="tests/c/test_sync.c workers/sync/task.c workers/sync/osq.c workers/sync/qspinlock.c workers/sync/rwsem.c"
 *   cc -std=gnu11 -O1 -g -DEMU_MACHINE_NATIVE -Iworkers/include -fsanitize=address,undefined $SRC -pthread
 *   cc -std=gnu11 -O1 -g -DEMU_MACHINE_NATIVE -Iworkers/include -DEMU_TEST_THREADS -fsanitize=thread $SRC -pthread
 *
 * A lost wake-up shows as a test that never ends: watchdog() ends it, with the state of the locks.
 */
#define _GNU_SOURCE
#include "sync_machine.h"

#ifndef WATCHDOG_SECONDS
#define WATCHDOG_SECONDS 120u
#endif
#define MANY_CPUS 8u

/* Turns a CPU; few enough for sanitizers on two cores. */
#ifndef ITERATIONS
#define ITERATIONS 10000u
#endif

/* What the tests share. Cleared before each. */
struct shared {
	struct rw_semaphore sem;
	struct qspinlock spin;
	struct osq_lock osq;

	/* The lock that is tested guards these. Not atomic, so that TSan sees who comes in without it. */
	__cacheline_aligned uint32_t inside;
	uint32_t order[MACHINE_CPUS];
	uint32_t nr_order;

	__cacheline_aligned _Atomic uint32_t step;
	_Atomic uint32_t readers_inside;
	_Atomic uint32_t seen;
	_Atomic uint32_t done[MACHINE_CPUS]; /* acquisitions, by CPU */
};

static struct shared *shared;

enum { CLASS_SEM = 1, CLASS_SPIN = 2 };

static void watchdog(int sig)
{
	char text[200];
	int n = snprintf(text, sizeof(text),
			 "WATCHDOG: count %#llx owner %#llx osq %u wait_lock %#x spin %#x step %u\n",
			 (unsigned long long)shared->sem.count, (unsigned long long)shared->sem.owner,
			 shared->sem.osq.tail, shared->sem.wait_lock.val, shared->spin.val, shared->step);

	(void)sig;
	if (write(STDERR_FILENO, text, (size_t)n) < 0)
		_exit(2);
	_exit(1);
}

static void fresh(void)
{
	memset(shared, 0, sizeof(*shared));
	memset(machine->lock_stats, 0, sizeof(machine->lock_stats));
	init_rwsem(&shared->sem, CLASS_SEM);
	spin_lock_init(&shared->spin, CLASS_SPIN);
	osq_lock_init(&shared->osq);
	alarm(WATCHDOG_SECONDS);
}

static void stat_add(struct lock_stat *sum, const struct lock_stat *stat)
{
	sum->acquired += stat->acquired;
	sum->contended += stat->contended;
	sum->wait_ns += stat->wait_ns;
	sum->hold_ns += stat->hold_ns;
	sum->hold_samples += stat->hold_samples;
}

static struct lock_stat stat_of(uint32_t class_id, enum lock_mode mode)
{
	struct lock_stat sum = { 0 };

	for (uint32_t cpu = 0; cpu < MACHINE_CPUS; cpu++)
		stat_add(&sum, &machine->lock_stats[cpu][class_id * LOCK_MODES + mode]);
	return sum;
}

static struct lock_stat stat_sum(uint32_t class_id)
{
	struct lock_stat sum = stat_of(class_id, LOCK_WRITE), readers = stat_of(class_id, LOCK_READ);

	stat_add(&sum, &readers);
	return sum;
}

static uint32_t done_sum(void)
{
	uint32_t sum = 0;

	for (uint32_t cpu = 0; cpu < MACHINE_CPUS; cpu++)
		sum += shared->done[cpu];
	return sum;
}

/* All locks are free and nobody waits; every acquisition was counted, once. */
static void assert_settled(void)
{
	struct rw_semaphore *sem = &shared->sem;
	struct lock_stat stat = stat_sum(CLASS_SEM), spin_stat = stat_sum(CLASS_SPIN);

	ASSERT(sem->count == 0, "count %#llx", (unsigned long long)sem->count);
	ASSERT(!sem->owner || (sem->owner & RWSEM_READER_OWNED), "a writer is left as owner");
	ASSERT(!sem->wait_first && !sem->wait_last, "a waiter is left in the list");
	ASSERT(!osq_is_locked(&sem->osq) && !sem->wait_lock.val, "spinners are left");
	ASSERT(!osq_is_locked(&shared->osq) && !shared->spin.val, "spinners are left");
	ASSERT(shared->inside == 0, "somebody is left inside: %u", shared->inside);
	ASSERT(stat.acquired + spin_stat.acquired == done_sum(), "%llu + %llu counted of %u",
	       (unsigned long long)stat.acquired, (unsigned long long)spin_stat.acquired, done_sum());
	ASSERT(stat.contended <= stat.acquired && !stat.contended == !stat.wait_ns, "%llu contended, %llu ns",
	       (unsigned long long)stat.contended, (unsigned long long)stat.wait_ns);
	ASSERT(stat.acquired < EMU_HOLD_SAMPLE * MACHINE_CPUS || stat.hold_samples, "no hold was timed");
}

static void count_done(void)
{
	shared->done[current->cpu]++;
}

/* Lets others run; waiting of the test itself, not of a lock. */
static void wait_for_step(uint32_t step)
{
	while (shared->step < step)
		sched_yield();
}

static uint32_t queue_length(struct rw_semaphore *sem)
{
	uint32_t n = 0;

	spin_lock(&sem->wait_lock);
	for (struct rwsem_waiter *waiter = sem->wait_first; waiter; waiter = waiter->next)
		n++;
	spin_unlock(&sem->wait_lock);
	return n;
}

static void wait_for_queue(struct rw_semaphore *sem, uint32_t length)
{
	while (queue_length(sem) < length)
		sched_yield();
}

/* Ten increments, ten must be read, ten decrements: for one CPU at a time. Sleeps inside now and then. */
static void critical_section(void)
{
	ASSERT(shared->inside == 0, "%u inside on entry", shared->inside);
	for (int i = 0; i < 10; i++) {
		shared->inside++;
		atomic_signal_fence(memory_order_seq_cst);
	}
	if (machine_rand() % 256 == 0)
		machine_sleep_ns(20000);
	ASSERT(shared->inside == 10, "%u inside", shared->inside);
	for (int i = 0; i < 10; i++) {
		shared->inside--;
		atomic_signal_fence(memory_order_seq_cst);
	}
}

/* For readers: no writer may be inside, now or a moment later. */
static void read_section(void)
{
	ASSERT(shared->inside == 0, "a writer is inside");
	if (machine_rand() % 256 == 0)
		machine_sleep_ns(20000);
	ASSERT(shared->inside == 0, "a writer came in");
}

/*
 * task_park(), task_unpark()
 */

static void unpark_before_park_cpu(void *arg)
{
	(void)arg;
	for (uint32_t i = 0; i < ITERATIONS; i++) {
		task_unpark(current);
		task_unpark(current);
		task_park();
		ASSERT(current->wake_token == 0, "a park left token %u", current->wake_token);
	}
}

static void unpark_before_park_is_not_lost(void)
{
	fresh();
	machine_run(1, unpark_before_park_cpu, NULL);
}

/* Two tasks take turns, each parked in between: every wake-up is needed, and is all that hands `inside` on. */
static void ping_pong_cpu(void *arg)
{
	uint32_t self = current->cpu;

	(void)arg;
	for (uint32_t i = 0; i < ITERATIONS; i++) {
		if (self || i)
			task_park();
		ASSERT(shared->inside == 2 * i + self, "turn %u of CPU %u came at %u", i, self, shared->inside);
		shared->inside++;
		task_unpark(&machine->tasks[!self]);
	}
}

static void park_ping_pong(void)
{
	fresh();
	machine_run(2, ping_pong_cpu, NULL);
	ASSERT(shared->inside == 2 * ITERATIONS, "%u turns", shared->inside);
}

/*
 * Spinlock
 */

/* A fair lock among more CPUs than the host has waits for the host with each turn: fewer of them. */
static void spinlock_cpu(void *arg)
{
	(void)arg;
	for (uint32_t i = 0; i < ITERATIONS / 10; i++) {
		if (machine_rand() % 4)
			spin_lock(&shared->spin);
		else if (!spin_trylock(&shared->spin))
			continue;
		critical_section();
		count_done();
		spin_unlock(&shared->spin);
	}
}

static void spinlock_excludes(void)
{
	fresh();
	machine_run(3, spinlock_cpu, NULL);
	assert_settled();
	fresh();
	machine_run(MANY_CPUS, spinlock_cpu, NULL);
	assert_settled();
}

/* CPU 0 holds, the others queue one after the other. */
static void spinlock_fifo_cpu(void *arg)
{
	uint32_t self = current->cpu;

	(void)arg;
	if (self == 0) {
		spin_lock(&shared->spin);
		for (uint32_t cpu = 1; cpu < MANY_CPUS; cpu++) {
			uint32_t before = shared->spin.val;

			shared->step = cpu;
			/* Its arrival shows in the word: pending, or a new tail. */
			while (shared->spin.val == before)
				sched_yield();
		}
	} else {
		wait_for_step(self);
		spin_lock(&shared->spin);
	}
	shared->order[shared->nr_order++] = self;
	count_done();
	spin_unlock(&shared->spin);
}

static void spinlock_is_fifo(void)
{
	fresh();
	machine_run(MANY_CPUS, spinlock_fifo_cpu, NULL);
	for (uint32_t i = 0; i < MANY_CPUS; i++)
		ASSERT(shared->order[i] == i, "CPU %u came as number %u", shared->order[i], i);
	assert_settled();
	ASSERT(stat_sum(CLASS_SPIN).contended == MANY_CPUS - 1, "%llu contended",
	       (unsigned long long)stat_sum(CLASS_SPIN).contended);
}

/*
 * OSQ
 */

static void osq_cpu(void *arg)
{
	uint32_t impatient = *(uint32_t *)arg;

	machine_impatient = impatient;
	for (uint32_t i = 0; i < ITERATIONS; i++) {
		if (!osq_lock(&shared->osq)) {
			shared->seen++;
			continue;
		}
		critical_section();
		count_done();
		osq_unlock(&shared->osq);
	}
}

static void osq_excludes_and_lets_go(void)
{
	/* Impatience 0: leave only when the host is busy; 3: from the middle of the queue, all the time. */
	static const struct {
		uint32_t nr_cpus, impatient;
	} runs[] = { { 2, 0 }, { 2, 3 }, { MANY_CPUS, 0 }, { MANY_CPUS, 40 }, { MANY_CPUS, 3 } };

	for (uint32_t i = 0; i < ARRAY_SIZE(runs); i++) {
		uint32_t *arg = machine_zalloc(sizeof(*arg));

		fresh();
		*arg = runs[i].impatient;
		machine_run(runs[i].nr_cpus, osq_cpu, arg);
		ASSERT(shared->inside == 0 && !osq_is_locked(&shared->osq), "a spinner is left");
		ASSERT(done_sum() + shared->seen == runs[i].nr_cpus * ITERATIONS, "%u got it, %u left", done_sum(),
		       shared->seen);
		ASSERT(done_sum(), "nobody ever got it");
		ASSERT(shared->seen || !runs[i].impatient, "nobody ever left");
	}
}

/*
 * Reader/writer lock: exclusion
 */

/* Bits of what a CPU may do in rwsem_cpu(). */
enum { DO_WRITE = 1, DO_READ = 2, DO_TRY = 4, DO_DOWNGRADE = 8 };

struct rwsem_test {
	uint32_t what;
	uint32_t impatient;
	bool no_spin;
};

static void downgraded_section(void)
{
	struct rw_semaphore *sem = &shared->sem;
	uint32_t mark = (uint32_t)machine_rand();

	shared->order[0] = mark;
	shared->inside = 1;
	shared->inside = 0;
	downgrade_write(sem);
	ASSERT(rwsem_is_locked(sem) && !rwsem_is_write_locked(sem), "count %#llx", (unsigned long long)sem->count);
	read_section();
	ASSERT(shared->order[0] == mark, "a writer came in after the downgrade");
	up_read(sem);
}

static void rwsem_cpu(void *arg)
{
	struct rwsem_test *test = arg;
	struct rw_semaphore *sem = &shared->sem;

	machine_impatient = test->impatient;
	for (uint32_t i = 0; i < ITERATIONS; i++) {
		uint32_t what = test->what & (1u << machine_rand() % 4);
		bool read = machine_rand() % 2;

		switch (what) {
		case DO_WRITE:
			down_write(sem);
			critical_section();
			count_done();
			up_write(sem);
			break;
		case DO_READ:
			down_read(sem);
			read_section();
			count_done();
			up_read(sem);
			break;
		case DO_TRY:
			if (read && down_read_trylock(sem)) {
				read_section();
				count_done();
				up_read(sem);
			} else if (!read && down_write_trylock(sem)) {
				critical_section();
				count_done();
				up_write(sem);
			}
			break;
		case DO_DOWNGRADE:
			down_write(sem);
			critical_section();
			count_done();
			downgraded_section();
			break;
		}
	}
}

static void run_rwsem(uint32_t nr_cpus, struct rwsem_test test)
{
	struct rwsem_test *arg = machine_zalloc(sizeof(*arg));
	uint32_t runs = 0;

	*arg = test;
	/* On a busy host one process may be through before the next begins. */
	do {
		fresh();
		shared->sem.no_spin = test.no_spin;
		machine_run(nr_cpus, rwsem_cpu, arg);
		assert_settled();
	} while (!stat_sum(CLASS_SEM).contended && ++runs < 50);
	ASSERT(stat_sum(CLASS_SEM).contended, "nobody ever had to wait");
}

static void rwsem_excludes_writers(void)
{
	run_rwsem(2, (struct rwsem_test){ DO_WRITE, 0, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE, 0, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE, 8, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE, 0, true });
}

static void rwsem_excludes_writers_from_readers(void)
{
	run_rwsem(2, (struct rwsem_test){ DO_WRITE | DO_READ, 0, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE | DO_READ, 0, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE | DO_READ, 8, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE | DO_READ, 0, true });
}

static void rwsem_excludes_with_trylocks_and_downgrade(void)
{
	run_rwsem(2, (struct rwsem_test){ DO_WRITE | DO_READ | DO_TRY | DO_DOWNGRADE, 0, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE | DO_READ | DO_TRY | DO_DOWNGRADE, 0, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_READ | DO_TRY | DO_DOWNGRADE, 8, false });
	run_rwsem(MANY_CPUS, (struct rwsem_test){ DO_WRITE | DO_READ | DO_TRY | DO_DOWNGRADE, 0, true });
}

/*
 * Reader/writer lock: what each call does to the lock, on one CPU
 */

static void states_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;

	(void)arg;
	ASSERT(!rwsem_is_locked(sem), "locked at the start");
	down_write(sem);
	ASSERT(rwsem_is_locked(sem) && rwsem_is_write_locked(sem), "not locked");
	ASSERT(sem->owner == (uintptr_t)current, "owner %#llx", (unsigned long long)sem->owner);
	ASSERT(!down_write_trylock(sem) && !down_read_trylock(sem), "trylock of a writer's lock");
	up_write(sem);
	ASSERT(!sem->owner && !rwsem_is_locked(sem), "owner %#llx", (unsigned long long)sem->owner);

	down_read(sem);
	ASSERT(rwsem_is_locked(sem) && !rwsem_is_write_locked(sem), "not read-locked");
	ASSERT(sem->owner == ((uintptr_t)current | RWSEM_READER_OWNED), "owner %#llx", (unsigned long long)sem->owner);
	ASSERT(!down_write_trylock(sem), "write trylock of a reader's lock");
	ASSERT(down_read_trylock(sem), "read trylock of a reader's lock");
	ASSERT(sem->count == 2 * RWSEM_READER_BIAS, "count %#llx", (unsigned long long)sem->count);
	up_read(sem);
	up_read(sem);

	ASSERT(down_write_trylock(sem), "write trylock of a free lock");
	downgrade_write(sem);
	ASSERT(sem->count == RWSEM_READER_BIAS && (sem->owner & RWSEM_READER_OWNED), "count %#llx owner %#llx",
	       (unsigned long long)sem->count, (unsigned long long)sem->owner);
	up_read(sem);
	shared->done[0] = 4;
}

static void rwsem_states(void)
{
	fresh();
	machine_run(1, states_cpu, NULL);
	assert_settled();
	ASSERT(stat_sum(CLASS_SEM).contended == 0, "contended on one CPU");
	/* A writer who goes on as a reader has taken the lock once. */
	ASSERT(stat_of(CLASS_SEM, LOCK_WRITE).acquired == 2 && stat_of(CLASS_SEM, LOCK_READ).acquired == 2, "modes");
}

/*
 * Reader/writer lock: the wait list
 */

static void rwsem_fifo_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;
	uint32_t self = current->cpu;

	(void)arg;
	if (self == 0) {
		down_write(sem);
		for (uint32_t cpu = 1; cpu < MANY_CPUS; cpu++) {
			shared->step = cpu;
			wait_for_queue(sem, cpu);
		}
	} else {
		wait_for_step(self);
		down_write(sem);
	}
	shared->order[shared->nr_order++] = self;
	count_done();
	up_write(sem);
}

static void sleeping_writers_are_fifo(void)
{
	fresh();
	shared->sem.no_spin = true;
	machine_run(MANY_CPUS, rwsem_fifo_cpu, NULL);
	for (uint32_t i = 0; i < MANY_CPUS; i++)
		ASSERT(shared->order[i] == i, "CPU %u came as number %u", shared->order[i], i);
	assert_settled();
	ASSERT(stat_sum(CLASS_SEM).contended == MANY_CPUS - 1, "%llu contended",
	       (unsigned long long)stat_sum(CLASS_SEM).contended);
}

/* CPU 0 holds for writing; 1 reads, 2 writes, 3 reads: queued in this order. Both readers come in together. */
static void reader_batch_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;
	uint32_t self = current->cpu;
	bool downgrade = *(bool *)arg;

	if (self == 0) {
		down_write(sem);
		for (uint32_t cpu = 1; cpu < 4; cpu++) {
			shared->step = cpu;
			wait_for_queue(sem, cpu);
		}
		count_done();
		if (downgrade) {
			downgrade_write(sem);
			while (shared->readers_inside < 2)
				sched_yield();
			up_read(sem);
		} else {
			up_write(sem);
		}
		return;
	}
	wait_for_step(self);
	if (self == 2) {
		down_write(sem);
		shared->seen = shared->readers_inside;
		critical_section();
		count_done();
		up_write(sem);
		return;
	}
	down_read(sem);
	shared->readers_inside++;
	/* Each stays until the other is there: does not end unless they are inside at the same time. */
	while (shared->readers_inside < 2)
		sched_yield();
	read_section();
	count_done();
	up_read(sem);
}

static void queued_readers_come_in_together(void)
{
	for (int downgrade = 0; downgrade < 2; downgrade++) {
		bool *arg = machine_zalloc(sizeof(*arg));

		fresh();
		shared->sem.no_spin = true;
		*arg = downgrade;
		machine_run(4, reader_batch_cpu, arg);
		ASSERT(shared->seen == 2, "the writer between them came before %u readers", 2 - shared->seen);
		assert_settled();
		ASSERT(stat_of(CLASS_SEM, LOCK_WRITE).contended == 1 && stat_of(CLASS_SEM, LOCK_READ).contended == 2,
		       "modes");
	}
}

/* CPU 0 reads; 1 wants to write and queues; 2 wants to read and must not overtake it. */
static void no_overtaking_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;
	uint32_t self = current->cpu;

	(void)arg;
	if (self == 0) {
		down_read(sem);
		shared->step = 1;
		wait_for_queue(sem, 1);
		ASSERT(!down_read_trylock(sem), "read trylock overtook a waiting writer");
		shared->step = 2;
		wait_for_queue(sem, 2);
		count_done();
		up_read(sem);
		return;
	}
	wait_for_step(self);
	if (self == 1)
		down_write(sem);
	else
		down_read(sem);
	shared->order[shared->nr_order++] = self;
	count_done();
	if (self == 1)
		up_write(sem);
	else
		up_read(sem);
}

static void readers_do_not_overtake_a_writer_while_others_read(void)
{
	fresh();
	machine_run(3, no_overtaking_cpu, NULL);
	ASSERT(shared->order[0] == 1 && shared->order[1] == 2, "CPU %u came first", shared->order[0]);
	assert_settled();
}

/*
 * CPU 0 gives the lock up and at once wants it back for reading, while the writer it woke is still on its way. Without
 * spinning, as kernels had it then, the writer is first all the same.
 */
static void returning_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;
	uint32_t self = current->cpu;

	(void)arg;
	for (uint32_t round = 0; round < 300; round++) {
		if (self == 0) {
			down_write(sem);
			shared->nr_order = 0;
			shared->step = 2 * round + 1;
			wait_for_queue(sem, 1);
			up_write(sem);
			down_read(sem);
			ASSERT(shared->nr_order == 1, "round %u: the reader came first", round);
			up_read(sem);
			shared->done[0] += 2;
			wait_for_step(2 * round + 2);
		} else {
			wait_for_step(2 * round + 1);
			down_write(sem);
			shared->nr_order = 1;
			count_done();
			up_write(sem);
			shared->step = 2 * round + 2;
		}
	}
}

static void without_spinning_a_reader_does_not_overtake_a_woken_writer(void)
{
	fresh();
	shared->sem.no_spin = true;
	machine_run(2, returning_cpu, NULL);
	assert_settled();
}

/*
 * Reader/writer lock: optimistic spinning
 */

/* The writer spins while the owner runs, and queues once the owner sleeps. */
static void spinning_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;

	(void)arg;
	if (current->cpu == 0) {
		down_write(sem);
		shared->step = 1;
		while (!osq_is_locked(&sem->osq))
			sched_yield();
		for (int i = 0; i < 1000; i++) {
			ASSERT(!(sem->count & RWSEM_FLAG_WAITERS), "queued although the owner runs");
			sched_yield();
		}
		while (!(sem->count & RWSEM_FLAG_WAITERS))
			machine_sleep_ns(100000);
		ASSERT(!osq_is_locked(&sem->osq), "spins although the owner slept");
	} else {
		wait_for_step(1);
		down_write(sem);
	}
	count_done();
	up_write(sem);
}

static void writers_spin_on_a_running_owner_only(void)
{
	fresh();
	machine_run(2, spinning_cpu, NULL);
	assert_settled();
}

/* Readers may sleep, and nobody can tell: a writer queues at once. */
static void reader_owned_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;

	(void)arg;
	if (current->cpu == 0) {
		down_read(sem);
		shared->step = 1;
		wait_for_queue(sem, 1);
		ASSERT(!osq_is_locked(&sem->osq), "spins although readers have it");
		count_done();
		up_read(sem);
	} else {
		wait_for_step(1);
		down_write(sem);
		count_done();
		up_write(sem);
	}
}

static void writers_do_not_spin_on_readers(void)
{
	fresh();
	machine_run(2, reader_owned_cpu, NULL);
	assert_settled();
}

/* With no_spin the writer queues at once, although the owner runs. */
static void no_spin_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;

	(void)arg;
	if (current->cpu == 0) {
		down_write(sem);
		shared->step = 1;
		while (!(sem->count & RWSEM_FLAG_WAITERS)) {
			ASSERT(!osq_is_locked(&sem->osq), "spins in spite of no_spin");
			sched_yield();
		}
	} else {
		wait_for_step(1);
		down_write(sem);
	}
	count_done();
	up_write(sem);
}

static void no_spin_queues_at_once(void)
{
	fresh();
	shared->sem.no_spin = true;
	machine_run(2, no_spin_cpu, NULL);
	assert_settled();
}

/*
 * Reader/writer lock: starvation
 */

struct hammer_test {
	bool try_only; /* hammer with trylocks, else with down_write() */
	bool read;     /* what the victim wants */
	uint32_t turns;
};

/* CPU 0 never spins, so it must sleep and be woken while all others overtake it as fast as they can. */
static void hammer_cpu(void *arg)
{
	struct hammer_test *test = arg;
	struct rw_semaphore *sem = &shared->sem;

	if (current->cpu == 0) {
		machine_impatient = 1;
		for (uint32_t i = 0; i < test->turns; i++) {
			if (test->read)
				down_read(sem);
			else
				down_write(sem);
			read_section();
			count_done();
			if (test->read)
				up_read(sem);
			else
				up_write(sem);
		}
		shared->step = 1;
		return;
	}
	while (shared->step == 0) {
		if (test->try_only && !down_write_trylock(sem))
			continue;
		if (!test->try_only)
			down_write(sem);
		critical_section();
		count_done();
		up_write(sem);
	}
}

static void run_hammer(struct hammer_test test)
{
	struct hammer_test *arg = machine_zalloc(sizeof(*arg));

	fresh();
	*arg = test;
	machine_run(4, hammer_cpu, arg);
	assert_settled();
}

static void hammering_trylocks_starve_nobody(void)
{
	run_hammer((struct hammer_test){ true, false, 200 });
	run_hammer((struct hammer_test){ true, true, 200 });
}

static void spinning_writers_starve_nobody(void)
{
	run_hammer((struct hammer_test){ false, false, 50 });
	run_hammer((struct hammer_test){ false, true, 50 });
}

/*
 * The hand-off made to happen: whenever the victim is woken, CPU 0 has taken the lock again. When it has waited for
 * longer than the timeout it asks for the hand-off, and then not even CPU 0 gets the lock before it.
 */
static void handoff_cpu(void *arg)
{
	struct rw_semaphore *sem = &shared->sem;
	bool read = *(bool *)arg;

	if (current->cpu == 0) {
		down_write(sem);
		count_done();
		shared->step = 1;
		/* Asleep, so that the victim does not spin. */
		while (!queue_length(sem))
			machine_sleep_ns(100000);
		while (!(sem->count & RWSEM_FLAG_HANDOFF)) {
			/* As up_write() and down_write(), with nobody able to come between. */
			rwsem_wake(sem);
			sched_yield();
		}
		/* The clocks of two host CPUs may differ by a little. */
		ASSERT(emu_clock_ns() + 1000 >= sem->wait_first->timeout_ns, "asked for the hand-off too early");
		shared->step = 2;
		up_write(sem);
		down_write(sem);
		shared->order[shared->nr_order++] = 0;
		count_done();
		up_write(sem);
		return;
	}
	wait_for_step(1);
	if (read)
		down_read(sem);
	else
		down_write(sem);
	ASSERT(shared->step == 2, "got the lock from under its owner");
	ASSERT(!(sem->count & RWSEM_FLAG_HANDOFF), "the hand-off bit is left");
	shared->order[shared->nr_order++] = 1;
	count_done();
	if (read)
		up_read(sem);
	else
		up_write(sem);
}

static void handoff_goes_to_the_first_waiter(void)
{
	for (int i = 0; i < 4; i++) {
		bool *arg = machine_zalloc(sizeof(*arg));

		fresh();
		*arg = i & 1;
		shared->sem.no_spin = i & 2;
		machine_run(2, handoff_cpu, arg);
		ASSERT(shared->order[0] == 1 && shared->order[1] == 0, "CPU %u came first", shared->order[0]);
		assert_settled();
	}
}

/*
 * Misuse
 */

#ifndef EMU_TEST_THREADS

static void up_write_of_a_free_lock(void *arg)
{
	(void)arg;
	up_write(&shared->sem);
}

static void up_write_by_another(void *arg)
{
	(void)arg;
	down_write(&shared->sem);
	machine_enter(1);
	up_write(&shared->sem);
}

static void up_read_of_a_free_lock(void *arg)
{
	(void)arg;
	up_read(&shared->sem);
}

static void up_read_by_the_writer(void *arg)
{
	(void)arg;
	down_write(&shared->sem);
	up_read(&shared->sem);
}

static void up_write_by_a_reader(void *arg)
{
	(void)arg;
	down_read(&shared->sem);
	up_write(&shared->sem);
}

static void downgrade_of_a_free_lock(void *arg)
{
	(void)arg;
	downgrade_write(&shared->sem);
}

static void down_write_twice(void *arg)
{
	(void)arg;
	down_write(&shared->sem);
	down_write(&shared->sem);
}

static void down_read_by_the_writer(void *arg)
{
	(void)arg;
	down_write(&shared->sem);
	down_read(&shared->sem);
}

static void too_many_readers(void *arg)
{
	(void)arg;
	atomic_store(&shared->sem.count, RWSEM_READER_MASK);
	down_read(&shared->sem);
	down_read(&shared->sem);
}

/* Each must end in emu_bug(), whose message is kept off the screen. */
static void misuse_is_caught(void)
{
	static void (*const misuses[])(void *arg) = {
		up_write_of_a_free_lock, up_write_by_another,	  up_read_of_a_free_lock,
		up_read_by_the_writer,	 up_write_by_a_reader,	  downgrade_of_a_free_lock,
		down_write_twice,	 down_read_by_the_writer, too_many_readers,
	};

	for (uint32_t i = 0; i < ARRAY_SIZE(misuses); i++) {
		int out = dup(STDERR_FILENO), status;

		fresh();
		ASSERT(out >= 0 && freopen("/dev/null", "w", stderr), "cannot silence stderr");
		machine->not_started = 1;
		ASSERT(waitpid(machine_fork(0, misuses[i], NULL), &status, 0) > 0, "waitpid");
		ASSERT(dup2(out, STDERR_FILENO) >= 0 && !close(out), "cannot restore stderr");
		ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "misuse %u: status 0x%x", i,
		       (unsigned int)status);
	}
}

#endif

int main(void)
{
	signal(SIGALRM, watchdog);
	machine_init();
	shared = machine_zalloc(sizeof(*shared));

	TEST(unpark_before_park_is_not_lost);
	TEST(park_ping_pong);
	TEST(spinlock_excludes);
	TEST(spinlock_is_fifo);
	TEST(osq_excludes_and_lets_go);
	TEST(rwsem_states);
	TEST(rwsem_excludes_writers);
	TEST(rwsem_excludes_writers_from_readers);
	TEST(rwsem_excludes_with_trylocks_and_downgrade);
	TEST(sleeping_writers_are_fifo);
	TEST(queued_readers_come_in_together);
	TEST(readers_do_not_overtake_a_writer_while_others_read);
	TEST(without_spinning_a_reader_does_not_overtake_a_woken_writer);
	TEST(writers_spin_on_a_running_owner_only);
	TEST(writers_do_not_spin_on_readers);
	TEST(no_spin_queues_at_once);
	TEST(hammering_trylocks_starve_nobody);
	TEST(spinning_writers_starve_nobody);
	TEST(handoff_goes_to_the_first_waiter);
#ifndef EMU_TEST_THREADS
	TEST(misuse_is_caught);
#endif
	return test_report();
}
