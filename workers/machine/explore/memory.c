/* SPDX-License-Identifier: MIT */
/*
 * memory.c - the arena of the exploring machine: objects whose memory is never used twice, and runs that are undone.
 *
 * The allocator hands out ascending addresses and never takes one back, so whoever uses an object after it was freed is
 * caught at once, however late. 16 bytes at least lie between two objects. A run starts with the memory that setup()
 * left: lines that it writes are kept as they were before (the hooks tell of every store), what it allocates is
 * forgotten. Either takes the time of what the run touched. New objects are filled, so that what a run does cannot
 * depend on the runs before.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define FRESH 0x5a
#define GAP 16u

/* Not logged: what runs before is forgotten by itself. */
void *__real_memset(void *to, int byte, size_t size);

struct saved {
	uint32_t line;
	unsigned char bytes[EMU_CACHELINE];
};

static struct saved *saved;
static uint64_t nr_saved, max_saved;
static struct object *objects;
static uint32_t nr_objects, max_objects, base_objects;
static uint32_t *freed; /* objects of setup() that the run has freed */
static uint32_t nr_freed, max_freed;
static int64_t nr_live, base_live;
static uint32_t first_of_files, end_of_files; /* objects that the design made for the files */

static void *grow(void *old, uint64_t bytes)
{
	void *ptr = realloc(old, bytes);

	if (!ptr) {
		fprintf(stderr, "emu: no memory for the log of a run\n");
		_exit(1);
	}
	return ptr;
}

void memory_save_line(uint32_t line)
{
	x.dirty[line] = x.run;
	/* Of what only this run knows nothing need be kept. */
	if (((uint64_t)line << 6) >= x.base_end && x.heap_start)
		return;
	if (nr_saved == max_saved) {
		max_saved = max_saved ? 2 * max_saved : 1024;
		saved = grow(saved, max_saved * sizeof(*saved));
	}
	saved[nr_saved].line = line;
	memcpy(saved[nr_saved++].bytes, (const void *)(x.base + ((uint64_t)line << 6)), EMU_CACHELINE);
}

static void set_heap(const struct object *o, enum heap_state state)
{
	memset(x.heap + ((o->addr - x.base) >> 4), state, (o->bytes + 15) >> 4);
}

void memory_reset(void)
{
	while (nr_saved) {
		nr_saved--;
		memcpy((void *)(x.base + ((uint64_t)saved[nr_saved].line << 6)), saved[nr_saved].bytes, EMU_CACHELINE);
	}
	while (nr_objects > base_objects)
		set_heap(&objects[--nr_objects], HEAP_NONE);
	while (nr_freed) {
		struct object *o = &objects[freed[--nr_freed]];

		o->is_free = false;
		set_heap(o, HEAP_LIVE);
	}
	x.heap_end = x.base_end;
	nr_live = base_live;
}

/* What is there now is what every run starts with. */
void memory_begin(void)
{
	/* Runs begin on a line of their own. */
	x.heap_end = emu_whole_lines(x.heap_end);
	x.base_end = x.heap_end;
	base_objects = nr_objects;
	base_live = nr_live;
	nr_freed = 0;
	nr_saved = 0;
}

void memory_destroy(void)
{
	free(saved);
	free(objects);
	free(freed);
	saved = NULL;
	objects = NULL;
	freed = NULL;
	nr_saved = max_saved = 0;
	nr_objects = max_objects = base_objects = nr_freed = max_freed = 0;
	nr_live = base_live = 0;
}

static uint32_t object_index(uintptr_t addr)
{
	uint32_t low = 0, high = nr_objects;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (objects[middle].addr + objects[middle].bytes <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low < nr_objects && objects[low].addr <= addr ? low : UINT32_MAX;
}

const struct object *object_at(uintptr_t addr)
{
	uint32_t i = object_index(addr);

	return i == UINT32_MAX ? NULL : &objects[i];
}

uint32_t object_number(const struct object *object)
{
	return (uint32_t)(object - objects);
}

static uintptr_t caller(void)
{
	return x.me->depth ? x.me->shadow[(x.me->depth - 1) % SHADOW_DEPTH] : 0;
}

static void *take(size_t size, uint32_t node, int byte)
{
	uint64_t align = size >= EMU_CACHELINE ? EMU_CACHELINE : 16;
	uint64_t at = (x.heap_end + align - 1) & ~(align - 1);
	struct object *o;

	EMU_ASSERT(size && size <= EMU_ALLOC_MAX && node < emu_arena->config.nr_nodes, "emu_alloc(%zu, node %u)", size,
		   node);
	if (at + size + GAP > x.full_span)
		emu_fail("the arena of %llu MiB is full: a scenario should need less",
			 (unsigned long long)(emu_arena->bytes >> 20));
	if (nr_objects == max_objects) {
		max_objects = max_objects ? 2 * max_objects : 256;
		objects = grow(objects, max_objects * sizeof(*objects));
	}
	o = &objects[nr_objects++];
	*o = (struct object){ .addr = x.base + at,
			      .bytes = (uint32_t)size,
			      .cpu = (int8_t)current->cpu,
			      .freed_by = -1,
			      .pc = caller() };
	x.heap_end = (at + size + GAP + 15) & ~UINT64_C(15);
	set_heap(o, HEAP_LIVE);
	nr_live++;
	return __real_memset((void *)o->addr, byte, size);
}

void *emu_alloc(size_t size, uint32_t node)
{
	return take(size, node, FRESH);
}

void *emu_zalloc(size_t size, uint32_t node)
{
	void *ptr = take(size, node, 0);

	if (x.running)
		fresh_written((uintptr_t)ptr, (uint32_t)size);
	return ptr;
}

void emu_free(void *ptr)
{
	uint32_t i;
	struct object *o;

	if (!ptr)
		return;
	i = object_index((uintptr_t)ptr);
	o = i == UINT32_MAX ? NULL : &objects[i];
	if (!o || o->addr != (uintptr_t)ptr) {
		if (x.scenario)
			fail(EMU_FOUND_MEMORY, "emu_free(%p): not from emu_alloc()", ptr);
		EMU_ASSERT(o, "emu_free(%p): not from emu_alloc()", ptr);
	}
	if (o->is_free) {
		char name[96], stack[256], first[64];

		address_name(o->addr, name, sizeof(name));
		stack_text(x.me, stack, sizeof(stack));
		function_name(o->freed_pc, first, sizeof(first));
		fail(EMU_FOUND_MEMORY, "double free of %s by CPU%u in %s; freed before by CPU%d in %s", name,
		     current->cpu, stack, o->freed_by, first);
	}
	if (x.running)
		check_freed(o->addr, o->bytes);
	o->is_free = true;
	o->freed_by = (int8_t)current->cpu;
	o->freed_pc = caller();
	set_heap(o, HEAP_FREED);
	nr_live--;
	if (i < base_objects && x.span) {
		if (nr_freed == max_freed) {
			max_freed = max_freed ? 2 * max_freed : 64;
			freed = grow(freed, max_freed * sizeof(*freed));
		}
		freed[nr_freed++] = i;
	}
}

void emu_pools_init(uint64_t first_offset)
{
	uintptr_t first = (uintptr_t)emu_arena + first_offset;

	x.base = (uintptr_t)emu_arena->cpus;
	x.full_span = (uintptr_t)emu_arena + emu_arena->bytes - x.base;
	x.heap_start = x.heap_end = emu_whole_lines(first - x.base);
	x.base_end = x.heap_start;
	if (!shadows_create())
		emu_fail("no memory for the explorer's tables");
	__real_memset(x.heap, HEAP_LIVE, x.heap_start >> 4);
}

uint32_t emu_object_bytes(const void *ptr)
{
	const struct object *o = object_at((uintptr_t)ptr);

	return o ? o->bytes : 0;
}

int64_t emu_live_objects(void)
{
	return nr_live;
}

int64_t emu_live_bytes(void)
{
	int64_t sum = 0;

	for (uint32_t i = 0; i < nr_objects; i++)
		sum += objects[i].is_free ? 0 : objects[i].bytes;
	return sum;
}

uint64_t emu_bytes_per_vma(void)
{
	return sizeof(struct vm_area_struct);
}

/* What is there now belongs to the files: all but the first `boot` objects. */
void memory_files_done(int64_t boot)
{
	first_of_files = (uint32_t)boot;
	end_of_files = nr_objects;
}

const struct object *leaked_object(bool files_too)
{
	for (uint32_t i = base_objects; i < nr_objects; i++)
		if (!objects[i].is_free)
			return &objects[i];
	for (uint32_t i = first_of_files; i < end_of_files && files_too; i++)
		if (!objects[i].is_free)
			return &objects[i];
	return NULL;
}
