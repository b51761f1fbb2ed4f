/* SPDX-License-Identifier: MIT */
/*
 * schedule.c - a schedule from its text: letters, each with how often it comes, as a5b2c.
 *
 * By itself, so that tests/c/fuzz_texts.c has it without the machine that runs schedules.
 */
#include "schedule.h"

#include "../internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int schedule_parse(const char *text, uint8_t *to, uint32_t max)
{
	uint32_t n = 0;

	while (*text) {
		uint32_t value = (uint32_t)(*text - 'a');
		unsigned long times = 1;
		char *end = (char *)text + 1;

		if (value > 25)
			return emu_set_error(
				-EINVAL, "a schedule is made of letters and numbers, as a5b2c; '%.8s' is not", text);
		if (*end >= '0' && *end <= '9')
			times = strtoul(text + 1, &end, 10);
		if (times > max - n)
			return emu_set_error(-EINVAL, "a schedule of more than %u decisions", max);
		memset(to + n, (int)value, times);
		n += (uint32_t)times;
		text = end;
	}
	return (int)n;
}
