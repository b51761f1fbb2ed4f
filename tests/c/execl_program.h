/* SPDX-License-Identifier: MIT */
/*
 * execl_program.h - what exec of a dynamically linked program does to an address space, for tests and benchmarks in C.
 *
 * After x86-64 Debian 12: the kernel maps the binary, ld.so and the stack; ld.so maps the cache, then libc whole and its
 * segments over it, and protects what has been relocated.
 */
#ifndef EXECL_PROGRAM_H
#define EXECL_PROGRAM_H

#include <emu/control.h>

enum { FILE_BIN, FILE_LD, FILE_LIBC, FILE_CACHE, NR_FILES };
enum { LIST_IMAGE, LIST_LOAD, LIST_EXECL, LIST_EXIT, NR_LISTS };

#define EXECL_CALLS 64u
#define EXECL_BIN UINT64_C(0x555500000000)
#define EXECL_LIBC UINT64_C(0x7f0000000000)
#define EXECL_CACHE UINT64_C(0x7f0001000000)
#define EXECL_LD UINT64_C(0x7f1000000000)
#define EXECL_STACK UINT64_C(0x7ffc00000000)

/* addr, len and offset in pages */
#define EXECL_MAP(base, page, pages, prot_, file, off)                                                             \
	{ .op = EMU_CALL_MMAP, .prot = (prot_), .flags = EMU_MAP_PRIVATE | EMU_MAP_FIXED, .arg = (file),           \
	  .addr = (base) + (page)*EMU_PAGE_SIZE, .len = (pages)*EMU_PAGE_SIZE, .offset = (off)*EMU_PAGE_SIZE,      \
	  .expect = EMU_NO_EXPECT }
#define EXECL_ANON(base, page, pages, flags_)                                                                      \
	{ .op = EMU_CALL_MMAP, .prot = EMU_PROT_READ | EMU_PROT_WRITE,                                             \
	  .flags = EMU_MAP_PRIVATE | EMU_MAP_ANONYMOUS | (flags_), .arg = -1,                                      \
	  .addr = (base) + (page)*EMU_PAGE_SIZE, .len = (pages)*EMU_PAGE_SIZE, .expect = EMU_NO_EXPECT }
#define EXECL_PROTECT(base, page, pages)                                                                           \
	{ .op = EMU_CALL_MPROTECT, .prot = EMU_PROT_READ, .addr = (base) + (page)*EMU_PAGE_SIZE,                   \
	  .len = (pages)*EMU_PAGE_SIZE, .expect = EMU_NO_EXPECT }

#define EXECL_RX (EMU_PROT_READ | EMU_PROT_EXEC)
#define EXECL_RW (EMU_PROT_READ | EMU_PROT_WRITE)

static const struct emu_call execl_image[] = {
	EXECL_MAP(EXECL_BIN, 0, 6, EMU_PROT_READ, FILE_BIN, 0),
	EXECL_MAP(EXECL_BIN, 6, 10, EXECL_RX, FILE_BIN, 6),
	EXECL_MAP(EXECL_BIN, 16, 4, EMU_PROT_READ, FILE_BIN, 16),
	EXECL_MAP(EXECL_BIN, 20, 4, EXECL_RW, FILE_BIN, 19),
	EXECL_ANON(EXECL_BIN, 24, 1, EMU_MAP_FIXED | EMU_MAP_BRK),
	EXECL_MAP(EXECL_LD, 0, 1, EMU_PROT_READ, FILE_LD, 0),
	EXECL_MAP(EXECL_LD, 1, 40, EXECL_RX, FILE_LD, 1),
	EXECL_MAP(EXECL_LD, 41, 10, EMU_PROT_READ, FILE_LD, 41),
	EXECL_MAP(EXECL_LD, 51, 4, EXECL_RW, FILE_LD, 50),
	EXECL_ANON(EXECL_STACK, 0, 33, EMU_MAP_FIXED | EMU_MAP_GROWSDOWN),
};

static const struct emu_call execl_user[] = {
	{ .op = EMU_CALL_BRK, .expect = EMU_NO_EXPECT },
	EXECL_ANON(0, 0, 2, 0),
	EXECL_MAP(EXECL_CACHE, 0, 8, EMU_PROT_READ, FILE_CACHE, 0),
	EXECL_MAP(EXECL_LIBC, 0, 480, EMU_PROT_READ, FILE_LIBC, 0),
	EXECL_MAP(EXECL_LIBC, 38, 340, EXECL_RX, FILE_LIBC, 38),
	EXECL_MAP(EXECL_LIBC, 378, 80, EMU_PROT_READ, FILE_LIBC, 378),
	EXECL_MAP(EXECL_LIBC, 458, 6, EXECL_RW, FILE_LIBC, 457),
	EXECL_ANON(EXECL_LIBC, 464, 16, EMU_MAP_FIXED),
	EXECL_ANON(0, 0, 3, 0),
	EXECL_PROTECT(EXECL_LIBC, 458, 4),
	EXECL_PROTECT(EXECL_BIN, 20, 1),
	EXECL_PROTECT(EXECL_LD, 51, 2),
	{ .op = EMU_CALL_MUNMAP, .addr = EXECL_CACHE, .len = 8 * EMU_PAGE_SIZE, .expect = EMU_NO_EXPECT },
};

/* Files and lists; 0 or the first error. LIST_LOAD leaves three processes a CPU, as a shell that runs the loop does. */
static inline int execl_add(uint64_t work_ns)
{
	static const char *const names[NR_FILES] = { "bin", "ld.so", "libc.so", "ld.so.cache" };
	const struct emu_call fork_call = { .op = EMU_CALL_FORK }, exit_call = { .op = EMU_CALL_EXIT };
	const struct emu_call exits[3] = { exit_call, exit_call, exit_call };
	struct emu_call execl[1 + ARRAY_SIZE(execl_user)], load[ARRAY_SIZE(execl) + 2];
	int err = 0;

	for (uint32_t i = 0; i < NR_FILES && err >= 0; i++)
		err = emu_file_add(names[i], 512);
	execl[0] = (struct emu_call){
		.op = EMU_CALL_EXEC, .arg = LIST_IMAGE, .addr = UINT64_C(0x7f8000000000), .work_ns = work_ns
	};
	for (uint32_t i = 0; i < ARRAY_SIZE(execl_user); i++)
		execl[i + 1] = execl_user[i];
	for (uint32_t i = 0; i < ARRAY_SIZE(execl); i++)
		load[i] = execl[i];
	load[ARRAY_SIZE(execl)] = load[ARRAY_SIZE(execl) + 1] = fork_call;
	if (err >= 0)
		err = emu_list_add(execl_image, ARRAY_SIZE(execl_image));
	if (err >= 0)
		err = emu_list_add(load, ARRAY_SIZE(load));
	if (err >= 0)
		err = emu_list_add(execl, ARRAY_SIZE(execl));
	if (err >= 0)
		err = emu_list_add(exits, ARRAY_SIZE(exits));
	return err < 0 ? err : emu_boot();
}

#endif
