/* SPDX-License-Identifier: MIT */
/*
 * malloc-threads.c - threads that allocate and free blocks of many sizes: malloc-threads THREADS ROUNDS.
 *
 * Each thread gets a heap of its own from malloc, which grows and shrinks by mprotect and munmap; blocks above 128 KiB
 * are mappings of their own. Threads run one after the other, so that each run makes the same calls.
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS 64
#define MAX_THREADS 64

static struct thread {
	pthread_t id;
	sem_t turn;
	unsigned int rounds, seed;
	struct thread *next;
} threads[MAX_THREADS];

/* From 16 bytes to 512 KiB, each power of two as often as the next. */
static size_t next_size(unsigned int *seed)
{
	unsigned int random = *seed = *seed * 1103515245 + 12345;

	return ((size_t)16 << (random >> 16) % 16) + (random >> 8) % 16;
}

static void *allocate(void *arg)
{
	struct thread *self = arg;
	void *blocks[BLOCKS] = { NULL };

	for (unsigned int round = 0; round < self->rounds; round++) {
		sem_wait(&self->turn);
		for (int i = 0; i < BLOCKS; i++) {
			size_t size = next_size(&self->seed);

			free(blocks[i]);
			blocks[i] = malloc(size);
			if (!blocks[i])
				abort();
			memset(blocks[i], i, size);
		}
		sem_post(&self->next->turn);
	}
	for (int i = 0; i < BLOCKS; i++)
		free(blocks[i]);
	return NULL;
}

int main(int argc, char **argv)
{
	int nr = argc > 1 ? atoi(argv[1]) : 0;
	int rounds = argc > 2 ? atoi(argv[2]) : 0;

	if (nr < 1 || nr > MAX_THREADS || rounds < 1) {
		fprintf(stderr, "malloc-threads THREADS ROUNDS; at most %d threads\n", MAX_THREADS);
		return 2;
	}
	for (int i = 0; i < nr; i++) {
		threads[i] = (struct thread){ .rounds = rounds, .seed = i, .next = &threads[(i + 1) % nr] };
		sem_init(&threads[i].turn, 0, i == 0);
	}
	for (int i = 0; i < nr; i++)
		if (pthread_create(&threads[i].id, NULL, allocate, &threads[i]))
			return 1;
	for (int i = 0; i < nr; i++)
		pthread_join(threads[i].id, NULL);
	return 0;
}
