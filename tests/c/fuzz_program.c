/* SPDX-License-Identifier: MIT */
/*
 * fuzz_program.c - libFuzzer: what Python hands over of a workload, with any bytes in the place of its numbers.
 *
 * An input becomes files, background entries, uses, call lists and the parameters of a design. The core must refuse
 * what it cannot use, run the rest on one CPU and be left with nothing: an assertion or a sanitizer says if not.
 * Only lengths and times are cut, so that no input takes seconds. EMU_DESIGNS is a folder of built designs.
 */
#include <emu/control.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA_BYTES (UINT64_C(24) << 20)
#define CALLS_MAX 64u
#define LISTS_MAX 4u
#define PAGES_MAX 64u
#define CPUS 3u

static const uint32_t node_of_cpu[CPUS] = { 0, 1, 1 };
static const uint8_t *input;
static size_t left;

/* The next bytes of the input, then zeros. */
static uint64_t take(size_t bytes)
{
	uint64_t value = 0;

	if (bytes > left)
		bytes = left;
	memcpy(&value, input, bytes);
	input += bytes;
	left -= bytes;
	return value;
}

/* Near the others for the most part, so that calls meet; else anything. */
static uint64_t address(void)
{
	uint64_t kind = take(1);

	if (kind == 255)
		return take(8);
	if (kind > 250)
		return EMU_TASK_SIZE - take(1) * EMU_PAGE_SIZE;
	return UINT64_C(0x10000000) + (kind & 63) * EMU_PAGE_SIZE + (kind & 64 ? UINT64_C(0x1ff000) : 0);
}

static struct emu_call call(void)
{
	struct emu_call c = { .op = (uint32_t)take(1) % (EMU_CALL_NR + 1), .prot = (uint32_t)take(1) };
	bool is_long = c.op == EMU_CALL_MMAP || c.op == EMU_CALL_MUNMAP || c.op == EMU_CALL_MPROTECT;

	c.flags = (uint32_t)take(4);
	if (c.op == EMU_CALL_MMAP && take(1) & 1) /* as a workload has them */
		c.flags = 0x02 | (c.flags & (EMU_MAP_FIXED | EMU_MAP_TOUCH));
	c.arg = (int8_t)take(1);
	c.addr = address();
	c.len = take(1) * EMU_PAGE_SIZE;
	if (is_long && c.len == 255 * EMU_PAGE_SIZE)
		c.len = take(8);
	c.offset = take(1) & 15 ? (take(1) & 63) * EMU_PAGE_SIZE : take(8);
	c.expect = take(1) & 1 ? c.addr : EMU_NO_EXPECT;
	c.work_ns = take(1);
	c.stride = take(1) & 7 ? 0 : take(1) & 1 ? EMU_FROM_LAST : take(8);
	c.times = !(take(1) & 15);
	c.first_use = (uint32_t)take(1) & 7;
	c.nr_uses = (uint16_t)take(1) & 7;
	c.followers = (uint16_t)take(2);
	if (c.op == EMU_CALL_PACE)
		c.len &= 0xfff;
	/* Each page is a fault. */
	if (!is_long && c.op != EMU_CALL_PACE && c.len > PAGES_MAX * EMU_PAGE_SIZE)
		c.len = PAGES_MAX * EMU_PAGE_SIZE;
	return c;
}

static struct emu_background background(void)
{
	struct emu_background b = { .kind = (uint32_t)take(1) & 3, .per = (uint32_t)take(1) & 3 };

	memset(b.name, 'x', take(1) % (sizeof(b.name) + 1));
	b.lines = (uint32_t)take(1);
	b.hold_ns = (uint32_t)take(1);
	b.inner = (int32_t)take(1) - 128;
	return b;
}

/* All that can be told of a workload; lists that were taken. */
static uint32_t describe(void)
{
	static const uint64_t pages[] = { 1, 16, 63, EMU_TASK_SIZE / EMU_PAGE_SIZE, UINT64_C(1) << 52, UINT64_MAX };
	uint32_t lists = 0;

	for (uint32_t i = 0; i < 4; i++)
		emu_file_add("f", pages[take(1) % (sizeof(pages) / sizeof(pages[0]))]);
	for (uint64_t n = take(1) % 5; n; n--) {
		struct emu_background b = background();

		emu_background_add(&b);
	}
	for (uint64_t n = take(1) % 9; n; n--)
		emu_use_add(&(struct emu_use){ (uint32_t)take(1), (int8_t)take(1), take(2) });
	for (uint64_t n = take(1) % (LISTS_MAX + 1); n; n--) {
		struct emu_call calls[CALLS_MAX];
		uint32_t nr = (uint32_t)take(1) % (CALLS_MAX / 2);

		for (uint32_t i = 0; i < nr; i++)
			calls[i] = call();
		lists += emu_list_add(calls, nr) >= 0;
	}
	return lists;
}

static void run(uint32_t lists)
{
	struct emu_call exit = { .op = EMU_CALL_EXIT, .arg = -1, .expect = EMU_NO_EXPECT };
	int drain = emu_list_add(&exit, 1);
	char maps[256];
	uint32_t failed;

	if (drain < 0 || emu_boot())
		return;
	emu_cpu_attach(0);
	for (uint32_t i = 0; i < lists; i++)
		if (emu_list_run(i, &failed) == -ENOMEM)
			return; /* of the arena: what a full one is left with is no business of anybody */
	emu_maps(maps, take(1));
	while (!emu_list_run((uint32_t)drain, &failed))
		;
	if (emu_check_drained() && !strstr(emu_error(), "full")) {
		fprintf(stderr, "not drained: %s\n", emu_error());
		abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const rmaps[] = { "single", "btree", "numa-trees", "dynamic" };
	static const char *const mms[] = { "mmap-lock-maple", "mmap-sem-rbtree", "per-vma-lock", "pt-extents" };
	static void *base;
	struct emu_config config = { .bytes = sizeof(config), .nr_nodes = 2, .nr_files = 6, .nr_lists = LISTS_MAX + 1,
				     .nr_calls = LISTS_MAX * CALLS_MAX, .nr_backgrounds = 4, .nr_uses = 8,
				     .nr_background_classes = 16, .seed = 1, .nr_cpus = CPUS,
				     .node_of_cpu = node_of_cpu };
	char path[512];

	input = data;
	left = size;
	if (!base)
		base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		abort();
	config.strict = (uint32_t)take(1) & 1;
	config.share_mm = (uint32_t)take(1) & 1;
	snprintf(path, sizeof(path), "%s/rmap/%s.so", getenv("EMU_DESIGNS") ?: "designs", rmaps[take(1) & 3]);
	if (emu_design_load(0, path, take(1) & 1 ? "batch=exit+fork+exec" : NULL))
		abort();
	snprintf(path, sizeof(path), "%s/mm/%s.so", getenv("EMU_DESIGNS") ?: "designs", mms[take(1) & 3]);
	if (emu_design_load(1, path, NULL) || emu_arena_format(base, ARENA_BYTES, &config)) {
		fprintf(stderr, "%s\n", emu_error());
		abort();
	}
	run(describe());
	emu_design_unload();
	/* Gives the pages back, so that the next input finds zeros. */
	madvise(base, ARENA_BYTES, MADV_REMOVE);
	return 0;
}
