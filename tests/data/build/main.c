/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "count.h"

int main(int argc, char **argv)
{
	size_t words, length = sum_of_lengths(argc > 1 ? argv[1] : "", &words);

	printf("%zu words, %zu letters\n", words, length);
	return 0;
}
