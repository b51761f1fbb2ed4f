/* SPDX-License-Identifier: MIT */
/*
 * bench_sync.c - what the locks cost. Prints one "name<TAB>ns" a line; ns of one operation.
 *
 *   cc -std=gnu11 -O2 -DEMU_MACHINE_NATIVE -Iworkers/include tests/c/bench_sync.c workers/sync/task.c \
 *      workers/sync/osq.c workers/sync/qspinlock.c workers/sync/rwsem.c -pthread
 *
 * Alone: on one CPU, the fastest of several rounds, since whatever disturbs makes it slower. Contended: two processes
 * pinned to two host CPUs, time of the machine per operation (both count), the median of several rounds.
 */
#define _GNU_SOURCE
#include "sync_machine.h"

#define ROUNDS 15u
#define ALONE_OPS 200000u
#define CONTENDED_OPS 300000u
#define LATENCIES 1024u

struct shared {
	__cacheline_aligned _Atomic uint64_t word;
	struct rw_semaphore sem;
	__cacheline_aligned pthread_rwlock_t rwlock;
	__cacheline_aligned pthread_mutex_t mutex;
	__cacheline_aligned uint64_t counter; /* guarded by the lock that is contended for */
	uint64_t latencies_ns[LATENCIES];
	struct emu_hist hist;
};

static struct shared *shared;

static void cas_seq_cst_store(void)
{
	uint64_t zero = 0;

	atomic_compare_exchange_strong(&shared->word, &zero, 1);
	atomic_store(&shared->word, 0);
}

static void cas_release_store(void)
{
	uint64_t zero = 0;

	atomic_compare_exchange_strong_explicit(&shared->word, &zero, 1, memory_order_acquire, memory_order_relaxed);
	atomic_store_explicit(&shared->word, 0, memory_order_release);
}

static void rwsem_write(void)
{
	down_write(&shared->sem);
	up_write(&shared->sem);
}

static void rwsem_read(void)
{
	down_read(&shared->sem);
	up_read(&shared->sem);
}

static void pthread_write(void)
{
	pthread_rwlock_wrlock(&shared->rwlock);
	pthread_rwlock_unlock(&shared->rwlock);
}

static void hist_record(void)
{
	static uint32_t i;

	emu_hist_record(&shared->hist, shared->latencies_ns[i++ % LATENCIES]);
}

static void contended_rwsem(void)
{
	down_write(&shared->sem);
	shared->counter++;
	up_write(&shared->sem);
}

static void contended_mutex(void)
{
	pthread_mutex_lock(&shared->mutex);
	shared->counter++;
	pthread_mutex_unlock(&shared->mutex);
}

/* One function a benchmark, with the operation inlined, so that no call is measured. */
#define LOOP(op, nr_ops)                                \
	static void op##_loop(void *arg)                \
	{                                               \
		(void)arg;                              \
		for (uint32_t i = 0; i < (nr_ops); i++) \
			op();                           \
	}

LOOP(cas_seq_cst_store, ALONE_OPS)
LOOP(cas_release_store, ALONE_OPS)
LOOP(rwsem_write, ALONE_OPS)
LOOP(rwsem_read, ALONE_OPS)
LOOP(pthread_write, ALONE_OPS)
LOOP(hist_record, ALONE_OPS)
LOOP(contended_rwsem, CONTENDED_OPS)
LOOP(contended_mutex, CONTENDED_OPS)

static void alone(const char *name, void (*loop)(void *arg))
{
	double best_ns = 0;

	for (uint32_t i = 0; i < ROUNDS; i++) {
		uint64_t start_ns = machine_clock_ns();
		double ns;

		loop(NULL);
		ns = (double)(machine_clock_ns() - start_ns) / ALONE_OPS;
		if (!i || ns < best_ns)
			best_ns = ns;
	}
	printf("%s\t%.2f\n", name, best_ns);
}

struct contended {
	void (*loop)(void *arg);
	_Atomic uint64_t ns[MACHINE_CPUS];
};

static void contended_cpu(void *arg)
{
	struct contended *contended = arg;
	uint64_t start_ns;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(current->cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
	start_ns = machine_clock_ns();
	contended->loop(NULL);
	contended->ns[current->cpu] = machine_clock_ns() - start_ns;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void two_processes(const char *name, void (*loop)(void *arg))
{
	struct contended *contended = machine_zalloc(sizeof(*contended));
	double ns[ROUNDS];

	contended->loop = loop;
	shared->counter = 0;
	for (uint32_t i = 0; i < ROUNDS; i++) {
		uint64_t longest_ns;

		machine_run(2, contended_cpu, contended);
		longest_ns = contended->ns[0] > contended->ns[1] ? contended->ns[0] : contended->ns[1];
		ns[i] = (double)longest_ns / (2 * CONTENDED_OPS);
	}
	ASSERT(shared->counter == UINT64_C(2) * CONTENDED_OPS * ROUNDS, "the lock does not exclude");
	qsort(ns, ROUNDS, sizeof(ns[0]), compare);
	printf("%s\t%.2f\n", name, ns[ROUNDS / 2]);
}

int main(void)
{
	pthread_mutexattr_t attr;

	machine_init();
	machine_enter(0);
	shared = machine_zalloc(sizeof(*shared));
	init_rwsem(&shared->sem, 1);
	pthread_rwlock_init(&shared->rwlock, NULL);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&shared->mutex, &attr);
	for (uint32_t i = 0; i < LATENCIES; i++)
		shared->latencies_ns[i] = machine_rand() >> (40 + machine_rand() % 20);

	alone("cas_seq_cst_store", cas_seq_cst_store_loop);
	alone("cas_release_store", cas_release_store_loop);
	alone("down_write_up_write", rwsem_write_loop);
	alone("down_read_up_read", rwsem_read_loop);
	alone("pthread_rwlock_wrlock_unlock", pthread_write_loop);
	alone("emu_hist_record", hist_record_loop);
	two_processes("two_processes_rwsem", contended_rwsem_loop);
	two_processes("two_processes_pthread_mutex", contended_mutex_loop);
	return 0;
}
