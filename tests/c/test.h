/* SPDX-License-Identifier: MIT */
/*
 * test.h - what a stand-alone test program in C needs; no dependency beyond the C library.
 *
 *   static void queue_is_fifo(void) { ASSERT(x == 1, "x is %d", x); }
 *   int main(void) { TEST(queue_is_fifo); return test_report(); }
 *
 * ASSERT() prints file:line, the condition and the message, and aborts: a broken lock or tree is not worth
 * going on with. So the last line, "N passed, 0 failed", is printed by programs that got to the end.
 * TESTS="queue deadlock" in the environment runs those alone whose names have one of the words in them.
 * ASSERT() may be used on any thread, TEST() and test_report() on the main one.
 */
#ifndef TEST_H
#define TEST_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned int test_passed;

__attribute__((format(printf, 4, 5), noreturn, unused)) static void
test_assert_failed(const char *file, int line, const char *cond, const char *fmt, ...)
{
	va_list args;

	fflush(stdout);
	fprintf(stderr, "%s:%d: ASSERT(%s) failed", file, line, cond);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

/* The message is optional: ASSERT(cond) or ASSERT(cond, "fmt", ...). */
#define ASSERT(cond, ...)                                                                \
	do {                                                                             \
		if (__builtin_expect(!(cond), 0))                                        \
			test_assert_failed(__FILE__, __LINE__, #cond, ": " __VA_ARGS__); \
	} while (0)

__attribute__((unused)) static int test_wanted(const char *name)
{
	const char *words = getenv("TESTS");
	char word[64];
	int length;

	if (!words)
		return 1;
	for (; sscanf(words, "%63s%n", word, &length) == 1; words += length)
		if (strstr(name, word))
			return 1;
	return 0;
}

#define TEST(fn)                                \
	do {                                    \
		if (!test_wanted(#fn))          \
			break;                  \
		printf("%s ... ", #fn);         \
		fflush(stdout);                 \
		fn();                           \
		printf("ok\n");                 \
		test_passed++;                  \
	} while (0)

/* The last line of output; the program's exit status. */
__attribute__((unused)) static int test_report(void)
{
	printf("%u passed, 0 failed\n", test_passed);
	return test_passed ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
