/* SPDX-License-Identifier: MIT */
/*
 * hooks.c - what the compiler calls for each access of an instrumented file (-fsanitize=thread).
 *
 * Outside the modelled part of the arena, and outside a phase, an access costs one comparison. Inside it costs
 * access_ps of virtual time when the CPU has the line, else what directory.c says. One host thread runs all CPUs, so
 * that what is atomic there needs no atomic instruction here.
 *
 * Reads and writes are points of order only if they are atomic or volatile: other ones are ordered by those around
 * them, or are data races.
 */
#include "virtual.h"

#include <string.h>

#define HOOK EMU_EXPORT

/* Callers are instrumented code alone. */
#define FOR_EACH_SIZE(X) X(1) X(2) X(4) X(8) X(16)

static inline __attribute__((always_inline)) bool outside(uintptr_t addr, uint64_t *offset)
{
	*offset = addr - vm.base;
	return *offset >= vm.span;
}

static inline uint32_t line_of(uint64_t offset)
{
	return (uint32_t)(offset >> 6);
}

static inline __attribute__((always_inline)) void tick(void)
{
	vm.accesses++;
	vm.clock += vm.access_ps;
}

static inline __attribute__((always_inline)) bool has_line(uint32_t line)
{
	return vm.tags[tag_set(line)] == tag_of(line, &vm.lines[line]);
}

static inline __attribute__((always_inline)) void read_line(uint64_t offset)
{
	uint32_t line = line_of(offset);

	tick();
	if (unlikely(!has_line(line) || vm.clock >= vm.horizon))
		line_read(offset);
}

static inline __attribute__((always_inline)) bool is_mine(uint32_t line)
{
	struct line *l = &vm.lines[line];

	return l->owner == vm.cpu + 1 && !l->sharer && has_line(line);
}

static inline __attribute__((always_inline)) void write_line(uint64_t offset)
{
	uint32_t line = line_of(offset);

	tick();
	if (likely((line == vm.last_write || is_mine(line)) && vm.clock < vm.horizon))
		vm.last_write = line;
	else
		line_store(offset);
}

static inline __attribute__((always_inline)) void hook_read(void *addr)
{
	uint64_t offset;

	if (!outside((uintptr_t)addr, &offset))
		read_line(offset);
}

static inline __attribute__((always_inline)) void hook_write(void *addr)
{
	uint64_t offset;

	if (!outside((uintptr_t)addr, &offset))
		write_line(offset);
}

/* Each line that [addr, addr + size) touches is one access for every 16 bytes of it. */
static void range(uintptr_t addr, size_t size, void (*access)(uint64_t offset))
{
	uintptr_t end = addr + size;
	uint64_t offset;

	for (; addr < end; addr = (addr | 15) + 1)
		if (!outside(addr, &offset))
			access(offset);
}

static void range_read_line(uint64_t offset)
{
	read_line(offset);
}

static void range_write_line(uint64_t offset)
{
	write_line(offset);
}

#define PLAIN(size)                                                                                \
	HOOK void __tsan_read##size(void *addr);                                                   \
	HOOK void __tsan_write##size(void *addr);                                                  \
	HOOK void __tsan_read_write##size(void *addr);                                             \
	HOOK void __tsan_unaligned_read##size(void *addr);                                         \
	HOOK void __tsan_unaligned_write##size(void *addr);                                        \
	HOOK void __tsan_unaligned_read_write##size(void *addr);                                   \
	HOOK void __tsan_volatile_read##size(void *addr);                                          \
	HOOK void __tsan_volatile_write##size(void *addr);                                         \
	HOOK void __tsan_unaligned_volatile_read##size(void *addr);                                \
	HOOK void __tsan_unaligned_volatile_write##size(void *addr);                               \
	void __tsan_read##size(void *addr)                                                         \
	{                                                                                          \
		hook_read(addr);                                                                   \
	}                                                                                          \
	void __tsan_write##size(void *addr)                                                        \
	{                                                                                          \
		hook_write(addr);                                                                  \
	}                                                                                          \
	void __tsan_read_write##size(void *addr)                                                   \
	{                                                                                          \
		hook_read(addr);                                                                   \
		hook_write(addr);                                                                  \
	}                                                                                          \
	void __tsan_unaligned_read##size(void *addr)                                               \
	{                                                                                          \
		range_unaligned(addr, size, hook_read);                                            \
	}                                                                                          \
	void __tsan_unaligned_write##size(void *addr)                                              \
	{                                                                                          \
		range_unaligned(addr, size, hook_write);                                           \
	}                                                                                          \
	void __tsan_unaligned_read_write##size(void *addr)                                         \
	{                                                                                          \
		range_unaligned(addr, size, hook_read);                                            \
		range_unaligned(addr, size, hook_write);                                           \
	}                                                                                          \
	void __tsan_volatile_read##size(void *addr)                                                \
	{                                                                                          \
		volatile_read(addr);                                                               \
	}                                                                                          \
	void __tsan_volatile_write##size(void *addr)                                               \
	{                                                                                          \
		volatile_write(addr);                                                              \
	}                                                                                          \
	void __tsan_unaligned_volatile_read##size(void *addr)                                      \
	{                                                                                          \
		volatile_read(addr);                                                               \
	}                                                                                          \
	void __tsan_unaligned_volatile_write##size(void *addr)                                     \
	{                                                                                          \
		volatile_write(addr);                                                              \
	}

static inline __attribute__((always_inline)) void range_unaligned(void *addr, uintptr_t size, void (*access)(void *))
{
	uintptr_t first = (uintptr_t)addr, last = first + size - 1;

	access(addr);
	if (unlikely((first ^ last) >> 6))
		access((void *)last);
}

/* A look that may race: in order, and what a CPU that waits next watches. */
static inline __attribute__((always_inline)) void ordered_read(uint64_t offset)
{
	uint32_t line = line_of(offset);

	sync_point(line, has_line(line));
	read_line(offset);
	watch(line);
}

static void volatile_read(void *addr)
{
	uint64_t offset;

	if (!outside((uintptr_t)addr, &offset))
		ordered_read(offset);
}

static void volatile_write(void *addr)
{
	uint64_t offset;

	if (outside((uintptr_t)addr, &offset))
		return;
	sync_point(line_of(offset), is_mine(line_of(offset)));
	write_line(offset);
}

FOR_EACH_SIZE(PLAIN)

HOOK void __tsan_init(void);
HOOK void __tsan_read_range(void *addr, size_t size);
HOOK void __tsan_write_range(void *addr, size_t size);
HOOK void __tsan_vptr_update(void **vptr, void *value);
HOOK void __tsan_vptr_read(void **vptr);
HOOK void __tsan_func_entry(void *caller);
HOOK void __tsan_func_exit(void);
HOOK void __tsan_atomic_thread_fence(int order);
HOOK void __tsan_atomic_signal_fence(int order);

void __tsan_init(void)
{
}

void __tsan_read_range(void *addr, size_t size)
{
	range((uintptr_t)addr, size, range_read_line);
}

void __tsan_write_range(void *addr, size_t size)
{
	range((uintptr_t)addr, size, range_write_line);
}

void __tsan_vptr_update(void **vptr, void *value)
{
	(void)value;
	hook_write(vptr);
}

void __tsan_vptr_read(void **vptr)
{
	hook_read(vptr);
}

/* Kept is a place in the function that is entered; `caller` is the one in the function that it was called from. */
void __tsan_func_entry(void *caller)
{
	(void)caller;
	vm.shadow[vm.depth++ % SHADOW_DEPTH] = (struct frame){ (uintptr_t)__builtin_return_address(0), 0 };
}

void __tsan_func_exit(void)
{
	vm.depth--;
}

void __tsan_atomic_thread_fence(int order)
{
	if (vm.span && order == __ATOMIC_SEQ_CST)
		drain_stores();
}

void __tsan_atomic_signal_fence(int order)
{
	(void)order;
}

/* memcpy() and its like, of any file of this library or of a design (see virtual.h). */
void *__real_memcpy(void *to, const void *from, size_t size);
void *__real_memmove(void *to, const void *from, size_t size);
void *__real_memset(void *to, int byte, size_t size);
HOOK void *__wrap_memcpy(void *to, const void *from, size_t size);
HOOK void *__wrap_memmove(void *to, const void *from, size_t size);
HOOK void *__wrap_memset(void *to, int byte, size_t size);
HOOK void *__tsan_memcpy(void *to, const void *from, size_t size);
HOOK void *__tsan_memmove(void *to, const void *from, size_t size);
HOOK void *__tsan_memset(void *to, int byte, size_t size);

void *__wrap_memcpy(void *to, const void *from, size_t size)
{
	if (vm.span) {
		range((uintptr_t)from, size, range_read_line);
		range((uintptr_t)to, size, range_write_line);
	}
	return __real_memcpy(to, from, size);
}

void *__wrap_memmove(void *to, const void *from, size_t size)
{
	if (vm.span) {
		range((uintptr_t)from, size, range_read_line);
		range((uintptr_t)to, size, range_write_line);
	}
	return __real_memmove(to, from, size);
}

void *__wrap_memset(void *to, int byte, size_t size)
{
	if (vm.span)
		range((uintptr_t)to, size, range_write_line);
	return __real_memset(to, byte, size);
}

void *__tsan_memcpy(void *to, const void *from, size_t size)
{
	return __wrap_memcpy(to, from, size);
}

void *__tsan_memmove(void *to, const void *from, size_t size)
{
	return __wrap_memmove(to, from, size);
}

void *__tsan_memset(void *to, int byte, size_t size)
{
	return __wrap_memset(to, byte, size);
}

/* An atomic store goes through the store buffer, but for a sequentially consistent one, which waits until it is out. */
static inline __attribute__((always_inline)) void atomic_write(const volatile void *addr, int order)
{
	uint64_t offset;

	if (outside((uintptr_t)addr, &offset))
		return;
	sync_point(line_of(offset), is_mine(line_of(offset)));
	write_line(offset);
	if (order == __ATOMIC_SEQ_CST)
		drain_stores();
}

static inline __attribute__((always_inline)) bool modify_begin(const volatile void *addr, uint64_t *offset)
{
	uint32_t line;

	if (outside((uintptr_t)addr, offset))
		return false;
	line = line_of(*offset);
	drain_stores();
	sync_point(line, is_mine(line));
	tick();
	vm.clock += vm.cost.atomic_ps;
	return true;
}

static inline __attribute__((always_inline)) void modify_take(uint64_t offset, enum modify how)
{
	uint32_t line = line_of(offset);

	if (unlikely(vm.clock >= vm.horizon) || !is_mine(line))
		line_modify(offset, how);
	watch(line);
}

static inline __attribute__((always_inline)) void atomic_modify(const volatile void *addr)
{
	uint64_t offset;

	if (modify_begin(addr, &offset))
		modify_take(offset, MODIFY_ANY_ORDER);
}

#define ATOMIC(bits, type)                                                                                    \
	HOOK type __tsan_atomic##bits##_load(const volatile type *addr, int order);                           \
	HOOK void __tsan_atomic##bits##_store(volatile type *addr, type value, int order);                    \
	HOOK type __tsan_atomic##bits##_exchange(volatile type *addr, type value, int order);                 \
	HOOK type __tsan_atomic##bits##_compare_exchange_val(volatile type *addr, type expected, type value,  \
							     int order, int failed);                          \
	HOOK int __tsan_atomic##bits##_compare_exchange_strong(volatile type *addr, type *expected,           \
							       type value, int order, int failed);            \
	HOOK int __tsan_atomic##bits##_compare_exchange_weak(volatile type *addr, type *expected, type value, \
							     int order, int failed);                          \
	type __tsan_atomic##bits##_load(const volatile type *addr, int order)                                 \
	{                                                                                                     \
		uint64_t offset;                                                                              \
                                                                                                              \
		(void)order;                                                                                  \
		if (!outside((uintptr_t)addr, &offset))                                                       \
			ordered_read(offset);                                                                 \
		return *addr;                                                                                 \
	}                                                                                                     \
	void __tsan_atomic##bits##_store(volatile type *addr, type value, int order)                          \
	{                                                                                                     \
		atomic_write(addr, order);                                                                    \
		*addr = value;                                                                                \
	}                                                                                                     \
	type __tsan_atomic##bits##_exchange(volatile type *addr, type value, int order)                       \
	{                                                                                                     \
		type old;                                                                                     \
                                                                                                              \
		(void)order;                                                                                  \
		atomic_modify(addr);                                                                          \
		old = *addr;                                                                                  \
		*addr = value;                                                                                \
		return old;                                                                                   \
	}                                                                                                     \
	type __tsan_atomic##bits##_compare_exchange_val(volatile type *addr, type expected, type value,       \
							int order, int failed)                                \
	{                                                                                                     \
		uint64_t offset;                                                                              \
		type old;                                                                                     \
		bool inside = modify_begin(addr, &offset);                                                    \
                                                                                                              \
		(void)order;                                                                                  \
		(void)failed;                                                                                 \
		if (inside)                                                                                   \
			modify_take(offset, *addr == expected ? MODIFY_SUCCEEDS : MODIFY_FAILS);              \
		if (inside && *addr != expected) {                                                            \
			line_arrives(line_of(offset));                                                        \
			/* The word may be what was expected by now. */                                       \
			if (*addr == expected)                                                                \
				modify_take(offset, MODIFY_SUCCEEDS);                                         \
		}                                                                                             \
		old = *addr;                                                                                  \
		if (old == expected)                                                                          \
			*addr = value;                                                                        \
		return old;                                                                                   \
	}                                                                                                     \
	int __tsan_atomic##bits##_compare_exchange_strong(volatile type *addr, type *expected, type value,    \
							  int order, int failed)                              \
	{                                                                                                     \
		type old = __tsan_atomic##bits##_compare_exchange_val(addr, *expected, value, order, failed); \
		int done = old == *expected;                                                                  \
                                                                                                              \
		*expected = old;                                                                              \
		return done;                                                                                  \
	}                                                                                                     \
	int __tsan_atomic##bits##_compare_exchange_weak(volatile type *addr, type *expected, type value,      \
							int order, int failed)                                \
	{                                                                                                     \
		return __tsan_atomic##bits##_compare_exchange_strong(addr, expected, value, order, failed);   \
	}                                                                                                     \
	FETCH(bits, type, add, old + value)                                                                   \
	FETCH(bits, type, sub, old - value)                                                                   \
	FETCH(bits, type, and, old & value)                                                                   \
	FETCH(bits, type, or, old | value)                                                                    \
	FETCH(bits, type, xor, old ^ value)                                                                   \
	FETCH(bits, type, nand, ~(old & value))

#define FETCH(bits, type, name, result)                                                        \
	HOOK type __tsan_atomic##bits##_fetch_##name(volatile type *addr, type value, int order); \
	type __tsan_atomic##bits##_fetch_##name(volatile type *addr, type value, int order)    \
	{                                                                                      \
		type old;                                                                      \
                                                                                               \
		(void)order;                                                                   \
		atomic_modify(addr);                                                           \
		old = *addr;                                                                   \
		*addr = (type)(result);                                                        \
		return old;                                                                    \
	}

/* Unsigned: C's signed arithmetic would not wrap. The caller's registers do not know the difference. */
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
ATOMIC(128, unsigned __int128)

uint32_t machine_load(_Atomic uint32_t *word)
{
	return __tsan_atomic32_load((const volatile uint32_t *)(void *)word, __ATOMIC_ACQUIRE);
}

void machine_store(_Atomic uint32_t *word, uint32_t value)
{
	__tsan_atomic32_store((volatile uint32_t *)(void *)word, value, __ATOMIC_RELAXED);
}
