/* SPDX-License-Identifier: MIT */
/*
 * count.h - how many words a text has, and the sum of their lengths. Part of what the workload `make` builds.
 */
#include <stddef.h>

const char *next_word(const char **text, size_t *length);
size_t sum_of_lengths(const char *text, size_t *words);
