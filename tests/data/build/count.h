/* SPDX-License-Identifier: MIT */
/* count: how many words a file has, and their lengths' sum. */
#include <stddef.h>

const char *next_word(const char **text, size_t *length);
size_t sum_of_lengths(const char *text, size_t *words);
