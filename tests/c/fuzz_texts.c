/* SPDX-License-Identifier: MIT */
/*
 * fuzz_texts.c - libFuzzer: the texts that C reads. The first byte says which: a design's parameters, a schedule of
 * `emu check --schedule`, a program of `emu check --program`. EMU_DESIGNS is a folder of built designs.
 */
#include "../../workers/machine/explore/schedule.h"

#include <emu/control.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DECISIONS_MAX 4096u

uint32_t emu_program_parse(const char *text);

static void schedule(const char *text)
{
	static uint8_t decisions[DECISIONS_MAX];
	int n = schedule_parse(text, decisions, DECISIONS_MAX);

	if (n != -EINVAL && (n < 0 || n > (int)DECISIONS_MAX))
		abort();
	for (int i = 0; i < n; i++)
		if (decisions[i] > 25)
			abort();
}

static void program(const char *text)
{
	if (emu_program_parse(text) > strlen(text))
		abort();
}

static void parameters(const char *text)
{
	static const char *const designs[] = { "numa-locks", "outer-percpu", "dynamic", "exclude" };
	char path[512], told[4096];

	snprintf(path, sizeof(path), "%s/rmap/%s.so", getenv("EMU_DESIGNS") ?: "designs",
		 designs[(unsigned char)text[0] & 3]);
	if (!emu_design_load(0, path, text[0] ? text + 1 : NULL) && emu_design_params(0, told, sizeof(told)) <= 0)
		abort();
	emu_design_unload();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	void (*const readers[])(const char *) = { parameters, schedule, program };
	char *text;

	if (!size)
		return 0;
	/* Of its own length, so that the sanitizer sees a step beyond the end. */
	text = strndup((const char *)data + 1, size - 1);
	readers[data[0] % 3](text);
	free(text);
	return 0;
}
