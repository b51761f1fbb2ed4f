/* SPDX-License-Identifier: MIT */
/*
 * hooks.c - what the compiler calls for each access of an instrumented file (-fsanitize=thread), when exploring.
 *
 * Atomic and volatile accesses are scheduling points (atomics.c). Ordinary ones happen at once: if no two of them race,
 * the order of those around them decides what they see; and if two do, that is found here, by happens-before: each
 * 4 bytes know who wrote them last and who has read them since (as in FastTrack, Flanagan and Freund 2009).
 *
 * An epoch is time << 7 | CPU << 4 | mask of the bytes. Time starts at 1, so that no epoch is 0. A CPU's time goes on with
 * what it releases alone (tick()), so mostly an access was made in the same epoch before, and there is nothing to do.
 */
#include "internal.h"

#include <stdio.h>

#define HOOK EMU_EXPORT
#define CALLER ((uintptr_t)__builtin_return_address(0))

static inline uint32_t epoch_of(uint32_t mask)
{
	return x.me->epoch | mask;
}

/* No epoch at all is ordered too. */
static inline bool ordered(uint32_t epoch)
{
	return (int32_t)(epoch >> 7) <= x.me->hb.of[(epoch >> 4) & 7];
}

void report_race(uintptr_t addr, uint32_t size, const char *what, uint32_t other_cpu, const char *other_what)
{
	char name[96], stack[256];

	x.failure.kind = EMU_FOUND_RACE;
	x.race_watch = addr & ~UINT64_C(3);
	address_name(addr, name, sizeof(name));
	stack_text(x.me, stack, sizeof(stack));
	fail(EMU_FOUND_RACE, "data race on %s: %s of %u bytes by CPU%u in %s, not ordered with a %s by CPU%u", name,
	     what, size, x.me->cpu, stack, other_what, other_cpu);
}

void check_heap(uintptr_t addr, uint32_t size, bool is_write)
{
	uint64_t offset = addr - x.base;
	enum heap_state state = x.heap[offset >> 4];
	const struct object *object;
	char name[96], stack[256];

	if (likely(state == HEAP_LIVE && x.heap[(offset + size - 1) >> 4] == HEAP_LIVE))
		return;
	object = object_at(addr);
	address_name(addr, name, sizeof(name));
	stack_text(x.me, stack, sizeof(stack));
	if (object && object->is_free) {
		char freed_in[64];

		function_name(object->freed_pc, freed_in, sizeof(freed_in));
		fail(EMU_FOUND_MEMORY, "use after free: %s of %u bytes in %s by CPU%u in %s; freed by CPU%d in %s",
		     is_write ? "write" : "read", size, name, x.me->cpu, stack, object->freed_by, freed_in);
	}
	fail(EMU_FOUND_MEMORY, "%s of %u bytes beyond any object, at %s, by CPU%u in %s", is_write ? "write" : "read",
	     size, name, x.me->cpu, stack);
}

static inline void heap_access(uintptr_t addr, uint32_t size, bool is_write)
{
	uint64_t offset = addr - x.base;

	if (unlikely(x.heap[offset >> 4] != HEAP_LIVE || x.heap[(offset + size - 1) >> 4] != HEAP_LIVE))
		check_heap(addr, size, is_write);
}

/* Several have read since that are not ordered among each other. */
static __attribute__((noinline)) void add_reader(struct cell *cell, uint32_t epoch)
{
	struct readers *r;

	if (!cell->many) {
		uint32_t cpu = (cell->read >> 4) & 7;

		if (x.nr_readers == x.max_readers)
			return; /* forgets one: a race may be missed, none is made up */
		r = &x.readers[x.nr_readers];
		memset(r, 0, sizeof(*r));
		r->at.of[cpu] = (int32_t)(cell->read >> 7);
		r->mask[cpu] = cell->read & 15;
		cell->read = x.nr_readers++;
		cell->many = true;
	}
	r = &x.readers[cell->read];
	r->at.of[x.me->cpu] = (int32_t)(epoch >> 7);
	r->mask[x.me->cpu] = epoch & 15;
}

static void read_cell(struct cell *cell, uintptr_t addr, uint32_t mask)
{
	uint32_t epoch = epoch_of(mask);

	if ((cell->read == epoch && !cell->many) || cell->write == epoch)
		return;
	if (unlikely(cell->write && !ordered(cell->write) && (cell->write & mask)))
		report_race(addr, 4, "read", (cell->write >> 4) & 7, "write");
	if (unlikely(cell->loc))
		check_plain_against(&x.locations[cell->loc - 1], addr, 4, false);
	if (!cell->many && ordered(cell->read))
		cell->read = epoch;
	else
		add_reader(cell, epoch);
}

static void write_cell(struct cell *cell, uintptr_t addr, uint32_t mask)
{
	uint32_t epoch = epoch_of(mask);

	if (cell->write == epoch && !cell->read)
		goto done;
	if (unlikely(cell->write && !ordered(cell->write) && (cell->write & mask)))
		report_race(addr, 4, "write", (cell->write >> 4) & 7, "write");
	if (cell->many) {
		struct readers *r = &x.readers[cell->read];

		for (uint32_t cpu = 0; cpu < x.nr_cpus; cpu++)
			if (unlikely(r->at.of[cpu] > x.me->hb.of[cpu] && (r->mask[cpu] & mask) && cpu != x.me->cpu))
				report_race(addr, 4, "write", cpu, "read");
	} else if (unlikely(cell->read && !ordered(cell->read) && (cell->read & mask))) {
		report_race(addr, 4, "write", (cell->read >> 4) & 7, "read");
	}
	cell->write = epoch;
	cell->read = 0;
	cell->many = false;
done:
	if (unlikely(cell->loc)) {
		check_plain_against(&x.locations[cell->loc - 1], addr, 4, true);
		plain_store_to_location(addr & ~UINT64_C(3), 4);
	}
}

/* For each 4 bytes of [addr, addr + size), with the mask of those that are meant. */
#define FOR_EACH_CELL(addr, size, at, mask, body)                                 \
	do {                                                                      \
		uintptr_t end__ = (addr) + (size);                                \
		for (uintptr_t at = (addr) & ~UINT64_C(3); at < end__; at += 4) { \
			uint32_t mask = 15;                                       \
			if (at < (addr))                                          \
				mask &= 15u << ((addr)-at);                       \
			if (at + 4 > end__)                                       \
				mask &= 15u >> (at + 4 - end__);                  \
			body;                                                     \
		}                                                                 \
	} while (0)

/* In the recorded run of a data race: with the ordinary accesses to where it is. What a write leaves is not known yet. */
static void trace_plain(enum op_kind kind, uintptr_t addr, uint32_t size)
{
	struct op op = { .kind = (uint8_t)kind, .order = ORDINARY, .size = (uint8_t)size, .addr = addr };
	uint64_t value = peek(addr, size);

	if (addr < x.race_watch + 4 && addr + size > x.race_watch)
		trace_op(&op, value, value, false);
}

static inline __attribute__((always_inline)) bool read_before(const struct cell *cell, uint32_t epoch)
{
	return cell->run == x.run && ((cell->read == epoch && !cell->many) || cell->write == epoch);
}

static __attribute__((noinline)) void plain_read_slow(uintptr_t addr, uint32_t size)
{
	if (unlikely(x.race_watch))
		trace_plain(OP_READ, addr, size);
	heap_access(addr, size, false);
	FOR_EACH_CELL(addr, size, at, mask, read_cell(cell_at(at - x.base), at, mask));
}

/* The mask of an access within 4 bytes; of each 4 bytes of a larger one. */
static inline __attribute__((always_inline)) uint32_t mask_of(uintptr_t addr, uint32_t size)
{
	return size >= 4 ? 15 : ((1u << size) - 1) << (addr & 3);
}

/*
 * Are the 4 or 8 aligned bytes of an object, with nothing to be looked at but who accessed them last: all of them alike,
 * and ordered before this? What is so takes a few instructions; all else is looked at cell by cell.
 */
static inline __attribute__((always_inline)) bool is_common(const struct cell *cell, const struct cell *last,
							    uint64_t offset)
{
	return likely(!x.race_watch && x.heap[offset >> 4] == HEAP_LIVE && !(cell->special | last->special) &&
		      cell->write == last->write && cell->read == last->read && ordered(cell->write) &&
		      ordered(cell->read));
}

static inline __attribute__((always_inline)) void common_read(uintptr_t addr, uint32_t size)
{
	uint64_t offset = addr - x.base;
	struct cell *cell = cell_at(offset), *last = size == 8 ? cell_at(offset + 4) : cell;

	if (is_common(cell, last, offset))
		cell->read = last->read = epoch_of(15);
	else
		plain_read_slow(addr, size);
}

static __attribute__((noinline)) void common_read4(uintptr_t addr)
{
	common_read(addr, 4);
}

static __attribute__((noinline)) void common_read8(uintptr_t addr)
{
	common_read(addr, 8);
}

static inline __attribute__((always_inline)) void plain_read(uintptr_t addr, uint32_t size)
{
	const struct cell *cell;
	uint32_t epoch;

	if (!in_arena(addr) || !x.running)
		return;
	cell = &x.cells[(addr - x.base) >> 2];
	epoch = epoch_of(mask_of(addr, size));
	if (size <= 8 && !(addr & (size - 1)) && likely(!x.race_watch) && read_before(cell, epoch) &&
	    (size <= 4 || read_before(cell + 1, epoch)))
		return;
	if (size == 8 && !(addr & 7))
		common_read8(addr);
	else if (size == 4 && !(addr & 3))
		common_read4(addr);
	else
		plain_read_slow(addr, size);
}

static void marked_write_point(uintptr_t addr, uint32_t size, const void *pc)
{
	struct op op = { .kind = OP_WRITE,
			 .order = __ATOMIC_RELAXED,
			 .size = (uint8_t)size,
			 .addr = addr & ~UINT64_C(3),
			 .pc = (uintptr_t)pc };

	sched_point(&op);
	op_begins(&op);
	if (unlikely(x.tracing))
		trace_op(&op, peek(op.addr, 8), peek(op.addr, 8), false);
}

static __attribute__((noinline)) void plain_write_slow(uintptr_t addr, uint32_t size)
{
	if (unlikely(!x.running)) {
		for (uintptr_t at = addr; at < addr + size; at = (at | 63) + 1)
			line_save(at);
		return;
	}
	if (unlikely(cell_at(addr - x.base)->marked))
		marked_write_point(addr, size, __builtin_return_address(0));
	if (unlikely(x.race_watch))
		trace_plain(OP_WRITE, addr, size);
	heap_access(addr, size, true);
	for (uintptr_t at = addr; at < addr + size; at = (at | 63) + 1) {
		line_save(at);
		line_changed(at);
	}
	FOR_EACH_CELL(addr, size, at, mask, write_cell(cell_at(at - x.base), at, mask));
}

static inline __attribute__((always_inline)) bool written_before(const struct cell *cell, uint32_t epoch)
{
	return cell->run == x.run && cell->write == epoch && !cell->read && !cell->special;
}

static inline __attribute__((always_inline)) void common_write(uintptr_t addr, uint32_t size)
{
	uint64_t offset = addr - x.base;
	struct cell *cell = cell_at(offset), *last = size == 8 ? cell_at(offset + 4) : cell;

	if (is_common(cell, last, offset)) {
		line_save(addr);
		line_changed(addr);
		cell->write = last->write = epoch_of(15);
		cell->read = last->read = 0;
	} else {
		plain_write_slow(addr, size);
	}
}

static __attribute__((noinline)) void common_write4(uintptr_t addr)
{
	common_write(addr, 4);
}

static __attribute__((noinline)) void common_write8(uintptr_t addr)
{
	common_write(addr, 8);
}

static inline __attribute__((always_inline)) void plain_write(uintptr_t addr, uint32_t size)
{
	const struct cell *cell;
	uint32_t epoch;

	if (!in_arena(addr))
		return;
	cell = &x.cells[(addr - x.base) >> 2];
	epoch = epoch_of(mask_of(addr, size));
	if (size <= 8 && !(addr & (size - 1)) && likely(!x.race_watch && x.running) && written_before(cell, epoch) &&
	    (size <= 4 || written_before(cell + 1, epoch))) {
		line_changed(addr);
		return;
	}
	if (size == 8 && !(addr & 7) && x.running)
		common_write8(addr);
	else if (size == 4 && !(addr & 3) && x.running)
		common_write4(addr);
	else
		plain_write_slow(addr, size);
}

void fresh_written(uintptr_t addr, uint32_t size)
{
	uint32_t epoch = epoch_of(15);

	for (uint64_t at = (addr - x.base) >> 2, end = (addr + size - x.base + 3) >> 2; at < end; at++)
		x.cells[at] = (struct cell){ .run = x.run, .write = epoch };
}

void check_freed(uintptr_t addr, uint32_t size)
{
	for (uint64_t at = (addr - x.base) >> 2, end = (addr + size - x.base) >> 2; at < end; at++) {
		struct cell *cell = &x.cells[at];

		if (cell->run == x.run && (cell->loc || (cell->write && !ordered(cell->write)) || cell->many ||
					   (cell->read && !ordered(cell->read))))
			write_cell(cell, x.base + (at << 2), 15);
	}
	/* Nothing that this CPU has done with the object before is good for what it does to it from here on. */
	tick();
}

static void volatile_read(uintptr_t addr, uint32_t size, uintptr_t pc)
{
	if (in_arena(addr) && x.running)
		volatile_load_point(addr, size, pc);
}

static void volatile_write(uintptr_t addr, uint32_t size, uintptr_t pc)
{
	if (!in_arena(addr))
		return;
	if (x.running)
		volatile_store_point(addr, size, pc);
	else
		line_save(addr);
}

#define FOR_EACH_SIZE(X) X(1) X(2) X(4) X(8) X(16)

#define PLAIN(size)                                                  \
	HOOK void __tsan_read##size(void *addr);                     \
	HOOK void __tsan_write##size(void *addr);                    \
	HOOK void __tsan_read_write##size(void *addr);               \
	HOOK void __tsan_unaligned_read##size(void *addr);           \
	HOOK void __tsan_unaligned_write##size(void *addr);          \
	HOOK void __tsan_unaligned_read_write##size(void *addr);     \
	HOOK void __tsan_volatile_read##size(void *addr);            \
	HOOK void __tsan_volatile_write##size(void *addr);           \
	HOOK void __tsan_unaligned_volatile_read##size(void *addr);  \
	HOOK void __tsan_unaligned_volatile_write##size(void *addr); \
	void __tsan_read##size(void *addr)                           \
	{                                                            \
		plain_read((uintptr_t)addr, size);                   \
	}                                                            \
	void __tsan_write##size(void *addr)                          \
	{                                                            \
		plain_write((uintptr_t)addr, size);                  \
	}                                                            \
	void __tsan_read_write##size(void *addr)                     \
	{                                                            \
		plain_read((uintptr_t)addr, size);                   \
		plain_write((uintptr_t)addr, size);                  \
	}                                                            \
	void __tsan_unaligned_read##size(void *addr)                 \
	{                                                            \
		plain_read((uintptr_t)addr, size);                   \
	}                                                            \
	void __tsan_unaligned_write##size(void *addr)                \
	{                                                            \
		plain_write((uintptr_t)addr, size);                  \
	}                                                            \
	void __tsan_unaligned_read_write##size(void *addr)           \
	{                                                            \
		plain_read((uintptr_t)addr, size);                   \
		plain_write((uintptr_t)addr, size);                  \
	}                                                            \
	void __tsan_volatile_read##size(void *addr)                  \
	{                                                            \
		volatile_read((uintptr_t)addr, size, CALLER);        \
	}                                                            \
	void __tsan_volatile_write##size(void *addr)                 \
	{                                                            \
		volatile_write((uintptr_t)addr, size, CALLER);       \
	}                                                            \
	void __tsan_unaligned_volatile_read##size(void *addr)        \
	{                                                            \
		volatile_read((uintptr_t)addr, size, CALLER);        \
	}                                                            \
	void __tsan_unaligned_volatile_write##size(void *addr)       \
	{                                                            \
		volatile_write((uintptr_t)addr, size, CALLER);       \
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
	plain_read((uintptr_t)addr, (uint32_t)size);
}

void __tsan_write_range(void *addr, size_t size)
{
	plain_write((uintptr_t)addr, (uint32_t)size);
}

void __tsan_vptr_update(void **vptr, void *value)
{
	(void)value;
	plain_write((uintptr_t)vptr, sizeof(*vptr));
}

void __tsan_vptr_read(void **vptr)
{
	plain_read((uintptr_t)vptr, sizeof(*vptr));
}

/* Kept is a place in the function that is entered; `caller` is the one in the function that it was called from. */
void __tsan_func_entry(void *caller)
{
	struct xcpu *me = x.me;

	(void)caller;
	me->shadow[me->depth++ % SHADOW_DEPTH] = CALLER;
}

void __tsan_func_exit(void)
{
	x.me->depth--;
}

void __tsan_atomic_thread_fence(int order)
{
	if (x.running)
		atomic_fence(order, CALLER);
}

void __tsan_atomic_signal_fence(int order)
{
	(void)order;
}

/* memcpy() and its like, of any file of this library or of a design. */
void *__real_memcpy(void *to, const void *from, size_t size);
void *__real_memmove(void *to, const void *from, size_t size);
void *__real_memset(void *to, int byte, size_t size);
HOOK void *__wrap_memcpy(void *to, const void *from, size_t size);
HOOK void *__wrap_memmove(void *to, const void *from, size_t size);
HOOK void *__wrap_memset(void *to, int byte, size_t size);
HOOK void *__tsan_memcpy(void *to, const void *from, size_t size);
HOOK void *__tsan_memmove(void *to, const void *from, size_t size);
HOOK void *__tsan_memset(void *to, int byte, size_t size);

void *__tsan_memcpy(void *to, const void *from, size_t size)
{
	if (size) {
		plain_read((uintptr_t)from, (uint32_t)size);
		plain_write((uintptr_t)to, (uint32_t)size);
	}
	return __real_memcpy(to, from, size);
}

void *__tsan_memmove(void *to, const void *from, size_t size)
{
	if (size) {
		plain_read((uintptr_t)from, (uint32_t)size);
		plain_write((uintptr_t)to, (uint32_t)size);
	}
	return __real_memmove(to, from, size);
}

void *__tsan_memset(void *to, int byte, size_t size)
{
	if (size)
		plain_write((uintptr_t)to, (uint32_t)size);
	return __real_memset(to, byte, size);
}

void *__wrap_memcpy(void *to, const void *from, size_t size)
{
	return __tsan_memcpy(to, from, size);
}

void *__wrap_memmove(void *to, const void *from, size_t size)
{
	return __tsan_memmove(to, from, size);
}

void *__wrap_memset(void *to, int byte, size_t size)
{
	return __tsan_memset(to, byte, size);
}

/* Outside the arena, or while nobody else runs, an atomic access is an ordinary one that is logged. */
static inline bool simple(uintptr_t addr, bool is_write)
{
	if (!in_arena(addr))
		return true;
	if (likely(x.running))
		return false;
	if (is_write)
		line_save(addr);
	return true;
}

#define ATOMIC(bits, type)                                                                                            \
	HOOK type __tsan_atomic##bits##_load(const volatile type *addr, int order);                                   \
	HOOK void __tsan_atomic##bits##_store(volatile type *addr, type value, int order);                            \
	HOOK type __tsan_atomic##bits##_exchange(volatile type *addr, type value, int order);                         \
	HOOK type __tsan_atomic##bits##_compare_exchange_val(volatile type *addr, type expected, type value,          \
							     int order, int failed);                                  \
	HOOK int __tsan_atomic##bits##_compare_exchange_strong(volatile type *addr, type *expected, type value,       \
							       int order, int failed);                                \
	HOOK int __tsan_atomic##bits##_compare_exchange_weak(volatile type *addr, type *expected, type value,         \
							     int order, int failed);                                  \
	static inline __attribute__((always_inline))                                                                  \
	type exchange##bits(volatile type *addr, type expected, type value, int order, int failed, uintptr_t pc)      \
	{                                                                                                             \
		type old;                                                                                             \
                                                                                                                      \
		if (simple((uintptr_t)addr, true)) {                                                                  \
			old = *addr;                                                                                  \
			if (old == expected)                                                                          \
				*addr = value;                                                                        \
			return old;                                                                                   \
		}                                                                                                     \
		old = (type)atomic_modify_begin((uintptr_t)addr, sizeof(type), order, pc);                            \
		if (old == expected)                                                                                  \
			atomic_modify_end((uintptr_t)addr, sizeof(type), (uint64_t)old, (uint64_t)value, order, pc);  \
		else                                                                                                  \
			atomic_modify_fails((uintptr_t)addr, sizeof(type), (uint64_t)old, failed, pc);                \
		return old;                                                                                           \
	}                                                                                                             \
	type __tsan_atomic##bits##_load(const volatile type *addr, int order)                                         \
	{                                                                                                             \
		if (simple((uintptr_t)addr, false))                                                                   \
			return *addr;                                                                                 \
		return (type)atomic_load_value((uintptr_t)addr, sizeof(type), order, CALLER);                         \
	}                                                                                                             \
	void __tsan_atomic##bits##_store(volatile type *addr, type value, int order)                                  \
	{                                                                                                             \
		if (simple((uintptr_t)addr, true))                                                                    \
			*addr = value;                                                                                \
		else                                                                                                  \
			atomic_store_value((uintptr_t)addr, sizeof(type), (uint64_t)value, order, CALLER);            \
	}                                                                                                             \
	type __tsan_atomic##bits##_exchange(volatile type *addr, type value, int order)                               \
	{                                                                                                             \
		type old;                                                                                             \
                                                                                                                      \
		if (simple((uintptr_t)addr, true)) {                                                                  \
			old = *addr;                                                                                  \
			*addr = value;                                                                                \
			return old;                                                                                   \
		}                                                                                                     \
		old = (type)atomic_modify_begin((uintptr_t)addr, sizeof(type), order, CALLER);                        \
		atomic_modify_end((uintptr_t)addr, sizeof(type), (uint64_t)old, (uint64_t)value, order, CALLER);      \
		return old;                                                                                           \
	}                                                                                                             \
	type __tsan_atomic##bits##_compare_exchange_val(volatile type *addr, type expected, type value, int order,    \
							int failed)                                                   \
	{                                                                                                             \
		return exchange##bits(addr, expected, value, order, failed, CALLER);                                  \
	}                                                                                                             \
	int __tsan_atomic##bits##_compare_exchange_strong(volatile type *addr, type *expected, type value, int order, \
							  int failed)                                                 \
	{                                                                                                             \
		type old = exchange##bits(addr, *expected, value, order, failed, CALLER);                             \
		int done = old == *expected;                                                                          \
                                                                                                                      \
		*expected = old;                                                                                      \
		return done;                                                                                          \
	}                                                                                                             \
	int __tsan_atomic##bits##_compare_exchange_weak(volatile type *addr, type *expected, type value, int order,   \
							int failed)                                                   \
	{                                                                                                             \
		type old = exchange##bits(addr, *expected, value, order, failed, CALLER);                             \
		int done = old == *expected;                                                                          \
                                                                                                                      \
		*expected = old;                                                                                      \
		return done;                                                                                          \
	}                                                                                                             \
	FETCH(bits, type, add, old + value)                                                                           \
	FETCH(bits, type, sub, old - value)                                                                           \
	FETCH(bits, type, and, old &value)                                                                            \
	FETCH(bits, type, or, old | value)                                                                            \
	FETCH(bits, type, xor, old ^ value)                                                                           \
	FETCH(bits, type, nand, ~(old & value))

#define FETCH(bits, type, name, result)                                                                          \
	HOOK type __tsan_atomic##bits##_fetch_##name(volatile type *addr, type value, int order);                \
	type __tsan_atomic##bits##_fetch_##name(volatile type *addr, type value, int order)                      \
	{                                                                                                        \
		type old;                                                                                        \
                                                                                                                 \
		if (simple((uintptr_t)addr, true)) {                                                             \
			old = *addr;                                                                             \
			*addr = (type)(result);                                                                  \
			return old;                                                                              \
		}                                                                                                \
		old = (type)atomic_modify_begin((uintptr_t)addr, sizeof(type), order, CALLER);                   \
		atomic_modify_end((uintptr_t)addr, sizeof(type), (uint64_t)old, (uint64_t)(type)(result), order, \
				  CALLER);                                                                       \
		return old;                                                                                      \
	}

/* Unsigned: C's signed arithmetic would not wrap. No atomics of 16 bytes: a design that has some does not load. */
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
