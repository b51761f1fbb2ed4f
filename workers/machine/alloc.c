/* SPDX-License-Identifier: MIT */
/*
 * alloc.c - arena memory: slabs per NUMA node, free lists per CPU.
 *
 * The arena's tail is divided evenly among the nodes into chunks of 64 KiB. A chunk holds objects of one size class
 * and starts with a header that names class and node, so that emu_free() needs only the pointer. A CPU keeps free
 * objects of its own node; what it has too many of, and every object of another node, goes to that node's pool.
 * With EMU_CHECKED a free object is filled with 0x6b and checked when it is handed out again, which catches writes
 * after free and double frees.
 */
#include "internal.h"

#include <string.h>

#define CHUNK_MAGIC 0x6368756eu /* "chun" */
#define CACHE_BATCH 16u
#define CACHE_MAX 64u
#define POISON 0x6b
#define FRESH 0x5a
/* Kept for emu_measure_memory(): 1 KiB for each of its VMAs with its share of an index. Designs take less than half. */
#define SPARE_CHUNKS 8u

struct chunk {
	uint32_t magic;
	uint32_t size_class; /* EMU_SIZE_CLASSES: one large object */
	uint32_t node;
	uint32_t nr_chunks;
	struct chunk *next_large; /* while free */
};

/* Multiples of a cache line from 64 up, so that no two objects share a line. */
static const uint32_t class_bytes[EMU_SIZE_CLASSES] = {
	32,  64,  128, 192,  256,  320,	 384,  448,  512,  640,	 768,  1024,
	1280, 1536, 2048, 2560, 3072, 4096, 4352, 5120, 6144, 8192, 10240, 16320, 32704,
};

static struct chunk *chunk_of(const void *ptr)
{
	uint64_t offset = (uint64_t)((const char *)ptr - (char *)emu_arena);
	struct chunk *chunk = (struct chunk *)((char *)emu_arena + (offset & ~(EMU_CHUNK_BYTES - 1)));

	EMU_ASSERT(offset < emu_arena->bytes && chunk->magic == CHUNK_MAGIC, "%p is not from emu_alloc()", ptr);
	return chunk;
}

static void poison(void *ptr, uint32_t bytes)
{
#ifdef EMU_CHECKED
	/* The first word links the free list. */
	memset((char *)ptr + sizeof(void *), POISON, bytes - sizeof(void *));
#else
	(void)ptr;
	(void)bytes;
#endif
}

static void unpoison(void *ptr, uint32_t bytes)
{
#ifdef EMU_CHECKED
	const unsigned char *byte = ptr;

	for (uint32_t i = sizeof(void *); i < bytes; i++)
		EMU_ASSERT(byte[i] == POISON, "%p was written at byte %u after it was freed", ptr, i);
	/* Differs from a free object even where the caller writes only a part. */
	memset(ptr, FRESH, bytes);
#else
	(void)ptr;
	(void)bytes;
#endif
}

static void not_free_yet(const void *ptr, uint32_t bytes)
{
#ifdef EMU_CHECKED
	const unsigned char *byte = ptr;
	uint32_t i = sizeof(void *);

	while (i < bytes && byte[i] == POISON)
		i++;
	EMU_ASSERT(i < bytes, "%p is freed twice", ptr);
#else
	(void)ptr;
	(void)bytes;
#endif
}

static void push(struct emu_free_list *list, void *ptr)
{
	*(void **)ptr = list->first;
	list->first = ptr;
	list->count++;
}

static void *pop(struct emu_free_list *list)
{
	void *ptr = list->first;

	if (ptr) {
		list->first = *(void **)ptr;
		list->count--;
	}
	return ptr;
}

_Noreturn static void arena_is_full(void)
{
	emu_fail("the arena of %llu MiB is full; --arena-size gives more",
		 (unsigned long long)(emu_arena->bytes >> 20));
}

/* nr chunks in a row of the node; NULL: it has no more. Pool locks are not held. */
static struct chunk *chunks_take(uint32_t node, uint32_t nr, uint32_t size_class)
{
	struct emu_pool *pool = &emu_arena->pools[node];
	struct chunk *chunk = NULL;

	emu_raw_lock(&pool->locked);
	for (struct chunk **link = (struct chunk **)&pool->large; *link; link = &(*link)->next_large) {
		if ((*link)->nr_chunks == nr) {
			chunk = *link;
			*link = chunk->next_large;
			break;
		}
	}
	if (!chunk && pool->next_chunk + nr * EMU_CHUNK_BYTES <= pool->end_chunk) {
		chunk = (struct chunk *)((char *)emu_arena + pool->next_chunk);
		pool->next_chunk += nr * EMU_CHUNK_BYTES;
	}
	emu_raw_unlock(&pool->locked);
	if (chunk)
		*chunk = (struct chunk){ CHUNK_MAGIC, size_class, node, nr, NULL };
	return chunk;
}

/* Fills `list`, which the caller owns, with objects of the node, if it has any. */
static void refill_from(struct emu_free_list *list, uint32_t node, uint32_t size_class)
{
	struct emu_pool *pool = &emu_arena->pools[node];
	uint32_t bytes = class_bytes[size_class];
	struct chunk *chunk;

	emu_raw_lock(&pool->locked);
	for (uint32_t i = 0; i < CACHE_BATCH && pool->free[size_class].first; i++)
		push(list, pop(&pool->free[size_class]));
	emu_raw_unlock(&pool->locked);
	if (list->first)
		return;

	chunk = chunks_take(node, 1, size_class);
	if (!chunk)
		return;
	/* From the end down, so that the list hands them out in order of address. */
	for (uint64_t n = (EMU_CHUNK_BYTES - EMU_CACHELINE) / bytes; n-- > 0;) {
		void *ptr = (char *)chunk + EMU_CACHELINE + n * bytes;

		poison(ptr, bytes);
		push(list, ptr);
	}
}

/*
 * With objects of the node or, when it has no more, of the next that has: first those that were freed there, which
 * may be this CPU's own from before.
 */
static void refill(struct emu_free_list *list, uint32_t node, uint32_t size_class)
{
	uint32_t nr_nodes = emu_arena->config.nr_nodes;

	for (uint32_t i = 0; i < nr_nodes && !list->first; i++)
		refill_from(list, (node + i) % nr_nodes, size_class);
	if (!list->first)
		arena_is_full();
}

static struct chunk *large_take(uint32_t node, uint32_t nr)
{
	uint32_t nr_nodes = emu_arena->config.nr_nodes;

	for (uint32_t i = 0; i < nr_nodes; i++) {
		struct chunk *chunk = chunks_take((node + i) % nr_nodes, nr, EMU_SIZE_CLASSES);

		if (chunk)
			return chunk;
	}
	arena_is_full();
}

static uint32_t class_for(size_t size)
{
	uint32_t c = 0;

	while (c < EMU_SIZE_CLASSES && class_bytes[c] < size)
		c++;
	return c;
}

void *emu_alloc(size_t size, uint32_t node)
{
	struct emu_cpu *cpu = emu_this_cpu();
	uint32_t c = class_for(size);
	void *ptr;

	EMU_ASSERT(size && size <= EMU_ALLOC_MAX && node < emu_arena->config.nr_nodes, "emu_alloc(%zu, node %u)", size,
		   node);
	cpu->live_objects++;
	if (c == EMU_SIZE_CLASSES) {
		uint32_t nr = (uint32_t)((size + EMU_CACHELINE + EMU_CHUNK_BYTES - 1) / EMU_CHUNK_BYTES);

		cpu->live_bytes += (int64_t)(nr * EMU_CHUNK_BYTES);
		return (char *)large_take(node, nr) + EMU_CACHELINE;
	}
	cpu->live_bytes += class_bytes[c];
	if (likely(node == cpu->task.node)) {
		if (unlikely(!cpu->cache[c].first))
			refill(&cpu->cache[c], node, c);
		ptr = pop(&cpu->cache[c]);
	} else {
		struct emu_pool *pool = &emu_arena->pools[node];

		emu_raw_lock(&pool->locked);
		ptr = pop(&pool->free[c]);
		emu_raw_unlock(&pool->locked);
		if (!ptr) {
			struct emu_free_list fresh = { NULL, 0 };

			refill(&fresh, node, c);
			ptr = pop(&fresh);
			emu_raw_lock(&pool->locked);
			while (fresh.first)
				push(&pool->free[c], pop(&fresh));
			emu_raw_unlock(&pool->locked);
		}
	}
	unpoison(ptr, class_bytes[c]);
	return ptr;
}

void *emu_zalloc(size_t size, uint32_t node)
{
	return memset(emu_alloc(size, node), 0, size);
}

void emu_free(void *ptr)
{
	struct emu_cpu *cpu = emu_this_cpu();
	struct emu_pool *pool;
	struct chunk *chunk;
	uint32_t c;

	if (!ptr)
		return;
	chunk = chunk_of(ptr);
	c = chunk->size_class;
	pool = &emu_arena->pools[chunk->node];
	cpu->live_objects--;
	if (c == EMU_SIZE_CLASSES) {
		cpu->live_bytes -= (int64_t)(chunk->nr_chunks * EMU_CHUNK_BYTES);
		emu_raw_lock(&pool->locked);
		chunk->next_large = pool->large;
		pool->large = chunk;
		emu_raw_unlock(&pool->locked);
		return;
	}
	cpu->live_bytes -= class_bytes[c];
	not_free_yet(ptr, class_bytes[c]);
	poison(ptr, class_bytes[c]);
	if (chunk->node != cpu->task.node) {
		emu_raw_lock(&pool->locked);
		push(&pool->free[c], ptr);
		emu_raw_unlock(&pool->locked);
		return;
	}
	push(&cpu->cache[c], ptr);
	if (cpu->cache[c].count > CACHE_MAX) {
		emu_raw_lock(&pool->locked);
		while (cpu->cache[c].count > CACHE_MAX / 2)
			push(&pool->free[c], pop(&cpu->cache[c]));
		emu_raw_unlock(&pool->locked);
	}
}

void emu_pools_init(uint64_t first_offset)
{
	uint32_t nr_nodes = emu_arena->config.nr_nodes;
	uint64_t first = (first_offset + EMU_CHUNK_BYTES - 1) / EMU_CHUNK_BYTES;
	uint64_t share = (emu_arena->bytes / EMU_CHUNK_BYTES - first) / nr_nodes;
	uint64_t spare = SPARE_CHUNKS;

	for (uint32_t n = 0; n < nr_nodes; n++) {
		struct emu_pool *pool = &emu_arena->pools[n];
		int32_t host = emu_arena->config.host_node_of_node ? emu_arena->config.host_node_of_node[n] : -1;

		pool->next_chunk = (first + n * share) * EMU_CHUNK_BYTES;
		pool->end_chunk = pool->next_chunk + share * EMU_CHUNK_BYTES;
		if (host >= 0)
			emu_machine_bind((char *)emu_arena + pool->next_chunk, share * EMU_CHUNK_BYTES, host);
	}
	if (share / 2 < spare)
		spare = share / 2;
	emu_arena->spare_bytes = spare * EMU_CHUNK_BYTES;
	emu_arena->pools[nr_nodes - 1].end_chunk -= emu_arena->spare_bytes;
}

uint32_t emu_object_bytes(const void *ptr)
{
	uint64_t offset = (uint64_t)((const char *)ptr - (char *)emu_arena);
	struct chunk *chunk = (struct chunk *)((char *)emu_arena + (offset & ~(EMU_CHUNK_BYTES - 1)));

	if ((char *)chunk <= (char *)emu_arena || chunk->magic != CHUNK_MAGIC)
		return 0;
	return chunk->size_class < EMU_SIZE_CLASSES ? class_bytes[chunk->size_class] : EMU_CHUNK_BYTES;
}

uint32_t emu_object_offset(const void *ptr)
{
	uint64_t in_chunk = (uint64_t)((const char *)ptr - (char *)emu_arena) & (EMU_CHUNK_BYTES - 1);

	return (uint32_t)(in_chunk - EMU_CACHELINE) % emu_object_bytes(ptr);
}

int64_t emu_live_objects(void)
{
	int64_t sum = 0;

	for (uint32_t i = 0; i < emu_arena->config.nr_cpus; i++)
		sum += emu_arena->cpus[i].live_objects;
	return sum;
}

int64_t emu_live_bytes(void)
{
	int64_t sum = 0;

	for (uint32_t i = 0; i < emu_arena->config.nr_cpus; i++)
		sum += emu_arena->cpus[i].live_bytes;
	return sum;
}

