/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "count.h"

const char *next_word(const char **text, size_t *length)
{
	const char *word = *text + strspn(*text, " \n");

	*length = strcspn(word, " \n");
	*text = word + *length;
	return *length ? word : NULL;
}
