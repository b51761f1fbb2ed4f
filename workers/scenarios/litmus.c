/* SPDX-License-Identifier: MIT */
/*
 * litmus.c - small programs whose outcomes C11 fixes; they try the explorer rather than a design.
 *
 * Names end in the order of the accesses that matter: rlx, ra (release and acquire), sc, fence.
 */
#include <emu/scenario.h>

struct words {
	__cacheline_aligned _Atomic uint32_t x;
	__cacheline_aligned _Atomic uint32_t y;
	__cacheline_aligned _Atomic uint32_t turn;
	__cacheline_aligned uint32_t data; /* ordinary */
	__cacheline_aligned uint32_t marked[2]; /* volatile */
	__cacheline_aligned uint64_t r[4];
};

static struct words *w;

static void setup(void)
{
	w = emu_zalloc(sizeof(*w), 0);
}

#define STORE(word, value, order) atomic_store_explicit(&w->word, value, memory_order_##order)
#define LOAD(word, order) atomic_load_explicit(&w->word, memory_order_##order)

/* Each CPU has told its register by now. */
#define REGISTER(n, value) emu_outcome(n, value)

/* Message passing: x is the message, y says that it is there. */
#define MESSAGE_PASSING(name, store_order, load_order)    \
	static void name(uint32_t cpu)                    \
	{                                                 \
		if (!cpu) {                               \
			STORE(x, 1, relaxed);             \
			STORE(y, 1, store_order);         \
		} else {                                  \
			REGISTER(0, LOAD(y, load_order)); \
			REGISTER(1, LOAD(x, relaxed));    \
		}                                         \
	}
MESSAGE_PASSING(mp_rlx, relaxed, relaxed)
MESSAGE_PASSING(mp_ra, release, acquire)

/* The other way round: a release keeps back what comes before it, not what comes after. */
static void mp_late(uint32_t cpu)
{
	if (!cpu) {
		STORE(x, 1, release);
		STORE(y, 1, relaxed);
	} else {
		REGISTER(0, LOAD(y, acquire));
		REGISTER(1, LOAD(x, acquire));
	}
}

/* As mp_rlx in C11's eyes or the kernel's; volatile loads have no history here. */
static void mp_volatile(uint32_t cpu)
{
	if (!cpu) {
		WRITE_ONCE(w->marked[0], 1);
		WRITE_ONCE(w->marked[1], 1);
	} else {
		REGISTER(0, READ_ONCE(w->marked[1]));
		REGISTER(1, READ_ONCE(w->marked[0]));
	}
}

/* A message behind the release: in C11 the same CPU's next store continues it, in C++20 no longer. */
static void mp_sequence(uint32_t cpu)
{
	if (!cpu) {
		w->data = 42;
		STORE(y, 1, release);
		STORE(y, 2, relaxed);
	} else if (LOAD(y, acquire)) {
		EMU_ASSERT(w->data == 42, "the message is %u", w->data);
	}
}

static void mp_sequence_rmw(uint32_t cpu)
{
	if (!cpu) {
		w->data = 42;
		STORE(y, 1, release);
		atomic_fetch_add_explicit(&w->y, 1, memory_order_relaxed);
	} else if (LOAD(y, acquire)) {
		EMU_ASSERT(w->data == 42, "the message is %u", w->data);
	}
}

/* Two writers of two words: C11 has the first store of each come last too, but not in the order of execution. */
static void two_writers(uint32_t cpu)
{
	if (!cpu) {
		STORE(x, 1, relaxed);
		STORE(y, 2, relaxed);
	} else {
		STORE(y, 1, relaxed);
		STORE(x, 2, relaxed);
	}
}

static void two_written(void)
{
	REGISTER(0, LOAD(x, relaxed));
	REGISTER(1, LOAD(y, relaxed));
}

static void mp_fence(uint32_t cpu)
{
	if (!cpu) {
		STORE(x, 1, relaxed);
		atomic_thread_fence(memory_order_release);
		STORE(y, 1, relaxed);
	} else {
		REGISTER(0, LOAD(y, relaxed));
		atomic_thread_fence(memory_order_acquire);
		REGISTER(1, LOAD(x, relaxed));
	}
}

/* With an ordinary message: a data race unless it is ordered. */
static void mp_data_ra(uint32_t cpu)
{
	if (!cpu) {
		w->data = 42;
		STORE(y, 1, release);
	} else if (LOAD(y, acquire)) {
		EMU_ASSERT(w->data == 42, "the message is %u", w->data);
	}
}

static void mp_data_rlx(uint32_t cpu)
{
	if (!cpu) {
		w->data = 42;
		STORE(y, 1, relaxed);
	} else if (LOAD(y, relaxed)) {
		EMU_ASSERT(w->data == 42, "the message is %u", w->data);
	}
}

/* Store buffering. */
#define STORE_BUFFERING(name, order, fence)          \
	static void name(uint32_t cpu)               \
	{                                            \
		if (!cpu) {                          \
			STORE(x, 1, order);          \
			fence;                       \
			REGISTER(0, LOAD(y, order)); \
		} else {                             \
			STORE(y, 1, order);          \
			fence;                       \
			REGISTER(1, LOAD(x, order)); \
		}                                    \
	}
STORE_BUFFERING(sb_rlx, relaxed, )
STORE_BUFFERING(sb_sc, seq_cst, )
STORE_BUFFERING(sb_fence, relaxed, atomic_thread_fence(memory_order_seq_cst))

static void sb_ra(uint32_t cpu)
{
	if (!cpu) {
		STORE(x, 1, release);
		REGISTER(0, LOAD(y, acquire));
	} else {
		STORE(y, 1, release);
		REGISTER(1, LOAD(x, acquire));
	}
}

/* Coherence: two reads of one word never go back. */
static void corr(uint32_t cpu)
{
	if (!cpu) {
		STORE(x, 1, relaxed);
		STORE(x, 2, relaxed);
	} else {
		REGISTER(0, LOAD(x, relaxed));
		REGISTER(1, LOAD(x, relaxed));
	}
}

/* Independent reads of independent writes: two readers disagree on the order, or not. */
#define IRIW(name, store_order, load_order)               \
	static void name(uint32_t cpu)                    \
	{                                                 \
		switch (cpu) {                            \
		case 0:                                   \
			STORE(x, 1, store_order);         \
			break;                            \
		case 1:                                   \
			STORE(y, 1, store_order);         \
			break;                            \
		case 2:                                   \
			REGISTER(0, LOAD(x, load_order)); \
			REGISTER(1, LOAD(y, load_order)); \
			break;                            \
		default:                                  \
			REGISTER(2, LOAD(y, load_order)); \
			REGISTER(3, LOAD(x, load_order)); \
		}                                         \
	}
IRIW(iriw_ra, release, acquire)
IRIW(iriw_sc, seq_cst, seq_cst)

/* Mutual exclusion by words alone: whoever is in says so in data, an ordinary word. */
#define DEKKER(name, order, fence)           \
	static void name(uint32_t cpu)       \
	{                                    \
		if (!cpu) {                  \
			STORE(x, 1, order);  \
			fence;               \
			if (!LOAD(y, order)) \
				w->data++;   \
		} else {                     \
			STORE(y, 1, order);  \
			fence;               \
			if (!LOAD(x, order)) \
				w->data++;   \
		}                            \
	}
DEKKER(dekker_rlx, relaxed, )
DEKKER(dekker_fence, relaxed, atomic_thread_fence(memory_order_seq_cst))
DEKKER(dekker_sc, seq_cst, )

#define PETERSON(name, store_order, load_order)                                             \
	static void name(uint32_t cpu)                                                      \
	{                                                                                   \
		_Atomic uint32_t *mine = cpu ? &w->y : &w->x, *other = cpu ? &w->x : &w->y; \
                                                                                            \
		atomic_store_explicit(mine, 1, memory_order_##store_order);                 \
		atomic_store_explicit(&w->turn, !cpu, memory_order_##store_order);          \
		while (atomic_load_explicit(other, memory_order_##load_order) &&            \
		       atomic_load_explicit(&w->turn, memory_order_##load_order) == !cpu)   \
			emu_spin_wait(other);                                               \
		w->data++;                                                                  \
		atomic_store_explicit(mine, 0, memory_order_release);                       \
	}
PETERSON(peterson_sc, seq_cst, seq_cst)
PETERSON(peterson_ra, release, acquire)

static void two_entered(void)
{
	EMU_ASSERT(w->data == 2, "%u of 2 increments", w->data);
}

/* A spinlock by exchange. */
#define SPINLOCK(name, lock_order, unlock_order)                                      \
	static void name(uint32_t cpu)                                                \
	{                                                                             \
		(void)cpu;                                                            \
		while (atomic_exchange_explicit(&w->x, 1, memory_order_##lock_order)) \
			emu_spin_wait(&w->x);                                         \
		w->data++;                                                            \
		STORE(x, 0, unlock_order);                                            \
	}
SPINLOCK(spinlock, acquire, release)
SPINLOCK(spinlock_rlx, acquire, relaxed)

/* The queue lock of Mellor-Crummey and Scott, a node a CPU. */
struct mcs_node {
	__cacheline_aligned struct mcs_node *_Atomic next;
	_Atomic uint32_t locked;
};

static struct {
	__cacheline_aligned struct mcs_node *_Atomic tail;
	struct mcs_node nodes[EMU_EXPLORE_CPUS];
} * mcs;

static void mcs_setup(void)
{
	setup();
	mcs = emu_zalloc(sizeof(*mcs), 0);
}

static void mcs_lock(uint32_t cpu)
{
	struct mcs_node *node = &mcs->nodes[cpu], *prev, *next, *self = node;

	atomic_store_explicit(&node->next, NULL, memory_order_relaxed);
	atomic_store_explicit(&node->locked, 1, memory_order_relaxed);
	prev = atomic_exchange_explicit(&mcs->tail, node, memory_order_acq_rel);
	if (prev) {
		atomic_store_explicit(&prev->next, node, memory_order_release);
		smp_cond_load_acquire(&node->locked, !VAL);
	}
	w->data++;
	next = atomic_load_explicit(&node->next, memory_order_acquire);
	if (!next) {
		if (atomic_compare_exchange_strong_explicit(&mcs->tail, &self, NULL, memory_order_release,
							    memory_order_relaxed))
			return;
		next = smp_cond_load_acquire(&node->next, VAL);
	}
	atomic_store_explicit(&next->locked, 0, memory_order_release);
}

/* A sequence lock over two words; the writer's and readers' are relaxed accesses between fences. */
static void seqlock(uint32_t cpu)
{
	uint32_t begin, a, b;

	if (!cpu) {
		STORE(turn, 1, relaxed);
		atomic_thread_fence(memory_order_release);
		STORE(x, 1, relaxed);
		STORE(y, 1, relaxed);
		STORE(turn, 2, release);
		return;
	}
	begin = LOAD(turn, acquire);
	a = LOAD(x, relaxed);
	b = LOAD(y, relaxed);
	atomic_thread_fence(memory_order_acquire);
	if (begin & 1 || LOAD(turn, relaxed) != begin)
		return;
	EMU_ASSERT(a == b, "half of it: %u and %u at %u", a, b, begin);
	REGISTER(0, 1 + a);
}

static void seqlock_rlx(uint32_t cpu)
{
	uint32_t begin, a, b;

	if (!cpu) {
		STORE(turn, 1, relaxed);
		STORE(x, 1, relaxed);
		STORE(y, 1, relaxed);
		STORE(turn, 2, relaxed);
		return;
	}
	begin = LOAD(turn, relaxed);
	a = LOAD(x, relaxed);
	b = LOAD(y, relaxed);
	if (begin & 1 || LOAD(turn, relaxed) != begin)
		return;
	EMU_ASSERT(a == b, "half of it: %u and %u at %u", a, b, begin);
}

/* A pointer is published as RCU does it, and followed. */
static struct {
	_Atomic(uint32_t *) pointer;
} * rcu;

static void rcu_setup(void)
{
	setup();
	rcu = emu_zalloc(sizeof(*rcu), 0);
}

static void rcu_publish(uint32_t cpu)
{
	uint32_t *object;

	if (!cpu) {
		object = emu_alloc(sizeof(*object), 0);
		*object = 42;
		atomic_store_explicit(&rcu->pointer, object, memory_order_release);
		return;
	}
	object = atomic_load_explicit(&rcu->pointer, memory_order_acquire);
	REGISTER(0, object ? *object : 0);
}

static void rcu_end(void)
{
	emu_free(atomic_load_explicit(&rcu->pointer, memory_order_relaxed));
}

/* Classes of orders: (n k)! / (k!)^n of them. */
#define TURNS(k)                                 \
	static void turns_##k(uint32_t cpu)      \
	{                                        \
		(void)cpu;                       \
		for (int i = 0; i < (k); i++) {  \
			emu_plain_lock(&w->x);   \
			w->data++;               \
			emu_plain_unlock(&w->x); \
		}                                \
	}
TURNS(1)
TURNS(2)
TURNS(3)

#define LITMUS(NAME, CPUS, SETUP, CPU, CHECK, HELP)                                                                   \
	{                                                                                                             \
		.name = NAME, .help = HELP, .nr_cpus = CPUS, .kind = EMU_SCENARIO_LITMUS, .setup = SETUP, .cpu = CPU, \
		.check = CHECK                                                                                        \
	}

const struct emu_scenario emu_litmus_scenarios[] = {
	LITMUS("mp-rlx", 2, setup, mp_rlx, NULL, "message passing, relaxed"),
	LITMUS("mp-ra", 2, setup, mp_ra, NULL, "message passing, release and acquire"),
	LITMUS("mp-fence", 2, setup, mp_fence, NULL, "message passing, fences"),
	LITMUS("mp-data-ra", 2, setup, mp_data_ra, NULL, "message passing of an ordinary word"),
	LITMUS("mp-data-rlx", 2, setup, mp_data_rlx, NULL, "the same, relaxed: a data race"),
	LITMUS("mp-late", 2, setup, mp_late, NULL, "a store after the release store"),
	LITMUS("mp-volatile", 2, setup, mp_volatile, NULL, "message passing, volatile"),
	LITMUS("mp-sequence", 2, setup, mp_sequence, NULL, "a store of the same CPU after the release store, of one word"),
	LITMUS("mp-sequence-rmw", 2, setup, mp_sequence_rmw, NULL, "the same with a read-modify-write"),
	LITMUS("2+2w", 2, setup, two_writers, two_written, "two writers of two words"),
	LITMUS("sb-rlx", 2, setup, sb_rlx, NULL, "store buffering, relaxed"),
	LITMUS("sb-ra", 2, setup, sb_ra, NULL, "store buffering, release and acquire"),
	LITMUS("sb-sc", 2, setup, sb_sc, NULL, "store buffering, sequentially consistent"),
	LITMUS("sb-fence", 2, setup, sb_fence, NULL, "store buffering, fences"),
	LITMUS("corr", 2, setup, corr, NULL, "two reads of one word"),
	LITMUS("iriw-ra", 4, setup, iriw_ra, NULL, "independent reads of independent writes, release and acquire"),
	LITMUS("iriw-sc", 4, setup, iriw_sc, NULL, "the same, sequentially consistent"),
	LITMUS("dekker-rlx", 2, setup, dekker_rlx, NULL, "Dekker's entry, relaxed: both get in"),
	LITMUS("dekker-fence", 2, setup, dekker_fence, NULL, "Dekker's entry with fences"),
	LITMUS("dekker-sc", 2, setup, dekker_sc, NULL, "Dekker's entry, sequentially consistent"),
	LITMUS("peterson-sc", 2, setup, peterson_sc, two_entered, "Peterson's lock"),
	LITMUS("peterson-ra", 2, setup, peterson_ra, two_entered, "Peterson's lock without sequential consistency"),
	LITMUS("spinlock", 2, setup, spinlock, two_entered, "a spinlock by exchange"),
	LITMUS("spinlock-rlx", 2, setup, spinlock_rlx, two_entered, "the same with a relaxed unlock"),
	LITMUS("mcs", 2, mcs_setup, mcs_lock, two_entered, "an MCS lock"),
	LITMUS("seqlock", 2, setup, seqlock, NULL, "a sequence lock"),
	LITMUS("seqlock-rlx", 2, setup, seqlock_rlx, NULL, "the same without fences"),
	LITMUS("rcu-publish", 2, rcu_setup, rcu_publish, rcu_end, "a pointer that is published"),
	LITMUS("turns-2x2", 2, setup, turns_2, NULL, "2 CPUs take a lock twice: 6 orders"),
	LITMUS("turns-3x2", 3, setup, turns_2, NULL, "3 CPUs take a lock twice: 90 orders"),
	LITMUS("turns-4x1", 4, setup, turns_1, NULL, "4 CPUs take a lock once: 24 orders"),
	LITMUS("turns-4x2", 4, setup, turns_2, NULL, "4 CPUs take a lock twice: 2520 orders"),
	LITMUS("turns-2x3", 2, setup, turns_3, NULL, "2 CPUs take a lock three times: 20 orders"),
	{ 0 },
};
