/* SPDX-License-Identifier: MIT */
/*
 * execl.c - replaces itself by itself, as UnixBench's execl does: execl N.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* UnixBench's has as much bss. */
static volatile char bss[8 * 1024];

int main(int argc, char **argv)
{
	int left = argc > 1 ? atoi(argv[1]) : 0;
	char text[16];

	bss[0] = 1;
	if (left <= 0)
		return 0;
	snprintf(text, sizeof(text), "%d", left - 1);
	execl(argv[0], argv[0], text, (char *)0);
	perror(argv[0]);
	return 1;
}
