/* SPDX-License-Identifier: MIT */
/*
 * machine.h - what the machine gives to the code that runs on it.
 *
 * Everything above this header (locks, trees, the small mm, the designs) is plain C11 and is compiled twice from the
 * same files: once for the native engine and once for the virtual one. This is the only header that knows which.
 *
 * Rules for callers:
 *   - Shared words are _Atomic objects or are guarded by a lock. Nothing else is ordered.
 *   - Pointers into the arena are valid on every CPU (one fixed address). Pointers to a stack are not: another CPU may
 *     be another process.
 *   - Everything that waits goes through emu_futex_wait(), emu_spin_wait() or smp_cond_load_acquire(): a loop of one's
 *     own would never let another CPU run on the virtual engine.
 *   - Time comes from emu_clock_ns() and random numbers from emu_random(), nowhere else.
 */
#ifndef EMU_MACHINE_H
#define EMU_MACHINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(EMU_MACHINE_NATIVE) == defined(EMU_MACHINE_VIRTUAL)
#error "compile with exactly one of -DEMU_MACHINE_NATIVE and -DEMU_MACHINE_VIRTUAL"
#endif

#define EMU_CACHELINE 64
#define EMU_PAGE_SHIFT 12
#define EMU_PAGE_SIZE (UINT64_C(1) << EMU_PAGE_SHIFT)

#define __cacheline_aligned _Alignas(EMU_CACHELINE)
#define EMU_EXPORT __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
/* A function that shows up as a call site: it must keep a frame of its own in every build. */
#define EMU_NOINLINE __attribute__((noinline))
/* Of a lock's fast path: call sites are named after who asks for the lock, whatever the compiler thinks of its size. */
#define EMU_ALWAYS_INLINE inline __attribute__((always_inline))

/* A load or store that may race with another CPU's on purpose; no order, no tearing. */
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, val) (*(volatile __typeof__(x) *)&(x) = (val))

#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/*
 * A broken invariant: prints CPU, time, seed, place and message, then aborts. On in every build.
 */
EMU_EXPORT _Noreturn void emu_bug(const char *file, int line, const char *expr, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* A message, like printf, comes with every assertion. */
#define EMU_ASSERT(cond, ...)                                               \
	do {                                                                \
		if (unlikely(!(cond)))                                      \
			emu_bug(__FILE__, __LINE__, #cond, __VA_ARGS__); \
	} while (0)

/*
 * The task that runs on this CPU. A task never changes its CPU. Native: one OS process (or thread, in tests) a CPU, so
 * the pointer is thread-local. Virtual: the running fiber's.
 */
struct task_struct;
#ifdef EMU_MACHINE_NATIVE
extern EMU_EXPORT _Thread_local struct task_struct *emu_current __attribute__((tls_model("initial-exec")));
#define EMU_MACHINE_ID 1u
#define EMU_CPUS_AT_ONCE true /* the machine's own code runs on several CPUs at a time */
/*
 * One hold of a lock in so many is timed: two looks at the clock cost a lock. A prime, so that of locks that a program takes
 * in turn each has its turn.
 */
#define EMU_HOLD_SAMPLE 17u
static inline void emu_waited(uint32_t class_id, uint64_t wait_ns)
{
	(void)class_id;
	(void)wait_ns;
}
#else
extern EMU_EXPORT struct task_struct *emu_current;
#define EMU_MACHINE_ID 2u
#define EMU_CPUS_AT_ONCE false
#define EMU_HOLD_SAMPLE 1u /* looking at the clock takes no virtual time */
/* A wait for a lock of the class has just ended: for the trace. */
EMU_EXPORT void emu_waited(uint32_t class_id, uint64_t wait_ns);
#endif
#define current emu_current

/*
 * This CPU's number and NUMA node (0-based), and how many of each this machine has; how many tasks run on it. A task keeps
 * its CPU, but others may run there between any two of its instructions where tasks outnumber CPUs: per-CPU data is changed
 * by read-modify-writes or between emu_preempt_disable() and emu_preempt_enable().
 */
EMU_EXPORT uint32_t emu_cpu_id(void);
EMU_EXPORT uint32_t emu_node_id(void);
EMU_EXPORT uint32_t emu_nr_cpus(void);
EMU_EXPORT uint32_t emu_nr_tasks(void);
EMU_EXPORT uint32_t emu_nr_nodes(void);
EMU_EXPORT uint32_t emu_cpu_to_node(uint32_t cpu);

/*
 * Nanoseconds since the machine started. Native: the TSC where Linux trusts it, else CLOCK_MONOTONIC_RAW. Virtual: looking
 * takes no time, so that a loop that waits for the clock must compute.
 */
EMU_EXPORT uint64_t emu_clock_ns(void);

/* The next number of this CPU's own stream, which depends on the seed and the CPU alone. */
EMU_EXPORT uint64_t emu_random(void);

/*
 * Arena memory, at least 16-byte aligned (cache-line aligned from 64 bytes up), not zeroed, homed on `node`.
 * Never fails: exhaustion ends the cell with a message that names the option that gives more (see emu_fail()).
 * emu_free() may be called on any CPU; NULL is a no-op.
 */
#define EMU_ALLOC_MAX (UINT64_C(4) << 20) /* bytes of an object: a line for each of 65,535 CPUs */
EMU_EXPORT void *emu_alloc(size_t size, uint32_t node);
EMU_EXPORT void *emu_zalloc(size_t size, uint32_t node);
EMU_EXPORT void emu_free(void *ptr);

/*
 * futex(2) without the private flag. wait: sleeps while *word == expected; returns after a wake, a change or
 * spuriously: callers loop. wake: wakes up to n sleepers of the word and returns how many.
 * While a CPU sleeps here its task counts as not running (task_running() is false).
 */
EMU_EXPORT void emu_futex_wait(_Atomic uint32_t *word, uint32_t expected);
EMU_EXPORT uint32_t emu_futex_wake(_Atomic uint32_t *word, uint32_t n);

/*
 * One turn of a spin loop that watches the line of `addr`. Native: a pause, and a yield to the host's scheduler when
 * there are more emulated than host CPUs. Virtual: the fiber is parked until somebody writes the line.
 */
EMU_EXPORT void emu_spin_wait(const volatile void *addr);
/* Likewise, of a loop that ends at that time: the fiber is not parked for longer. UINT64_MAX: it never does. */
EMU_EXPORT void emu_spin_wait_until(const volatile void *addr, uint64_t until_ns);
/* Likewise for a word that the virtual machine does not model, and so cannot watch: it lets a microsecond pass. */
EMU_EXPORT void emu_wait_unwatched(void);

/*
 * Should the running task give up its CPU instead of spinning on? As in the kernel, ends optimistic spinning. Native:
 * true once a CPU of an oversubscribed host has spun for long, since the owner then may wait for this very CPU. Virtual:
 * its time slice is over, another task waits for the CPU, and it may not be preempted just now.
 */
EMU_EXPORT bool emu_need_resched(void);

/*
 * Between these two the task keeps its CPU; they nest, and it must not sleep. Spinlocks and osq_lock() have them inside.
 * Native: nothing, since a CPU has one task.
 */
#ifdef EMU_MACHINE_NATIVE
static inline void emu_preempt_disable(void)
{
}

static inline void emu_preempt_enable(void)
{
}
#else
EMU_EXPORT void emu_preempt_disable(void);
EMU_EXPORT void emu_preempt_enable(void);
#endif

/* Computes for about `ns` nanoseconds of CPU time (native: a calibrated loop, not a wait for the clock). */
EMU_EXPORT void emu_compute(uint64_t ns);

/* Off the CPU for so many nanoseconds at least, holding no lock: a device is at work. Outside sections of RCU. */
EMU_EXPORT void emu_sleep(uint64_t ns);

/* The waiting of this task since it last said so was for a lock of this class. For lock_stat_contended(). */
#ifdef EMU_MACHINE_NATIVE
static inline void emu_waited_for(uint32_t class_id)
{
	(void)class_id;
}
#else
EMU_EXPORT void emu_waited_for(uint32_t class_id);
#endif

/*
 * Makes other CPUs forget their translations of an address space; returns when they have. CPU n is one of them if bit
 * n % nr_bits of `cpus` is set and the task that it runs is in mm: of tasks that share it, those in the run queue do not
 * count. Native: nothing to do and nothing charged, as emulated page tables have no TLB. Virtual: an interrupt to each: the
 * sender's cost for each, and the way there and back; the others lose the time that they spend in the interrupt.
 */
struct mm_struct;
EMU_EXPORT void emu_tlb_flush(const struct mm_struct *mm, const _Atomic uint64_t *cpus, uint32_t nr_bits);

/*
 * Ends the cell with an operating failure (not a bug): one line to the coordinator, exit of this CPU. Like printf.
 */
EMU_EXPORT _Noreturn void emu_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * Extra time for a lock or tree line that comes from another emulated node (--numa-penalty on); a single predictable
 * branch otherwise. `last` belongs to the holder of whatever lock guards the line: 0 = nobody yet, else node + 1.
 */
extern EMU_EXPORT bool emu_numa_penalty;
EMU_EXPORT void emu_line_moved_slow(uint32_t *last);
static inline void emu_line_moved(uint32_t *last)
{
	if (unlikely(emu_numa_penalty))
		emu_line_moved_slow(last);
}

/*
 * Waits until `cond`, an expression of VAL (the word's latest value), holds; returns that value. Acquire.
 */
#define smp_cond_load_acquire(ptr, cond)                                              \
	({                                                                            \
		__typeof__(ptr) __p = (ptr);                                          \
		__typeof__(atomic_load_explicit(__p, memory_order_relaxed)) VAL;      \
		for (;;) {                                                            \
			VAL = atomic_load_explicit(__p, memory_order_acquire);        \
			if (cond)                                                     \
				break;                                                \
			emu_spin_wait(__p);                                           \
		}                                                                     \
		VAL;                                                                  \
	})

#endif
