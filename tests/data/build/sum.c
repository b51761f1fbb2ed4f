/* SPDX-License-Identifier: MIT */
#include "count.h"

size_t sum_of_lengths(const char *text, size_t *words)
{
	size_t length, sum = 0;

	for (*words = 0; next_word(&text, &length); (*words)++)
		sum += length;
	return sum;
}
