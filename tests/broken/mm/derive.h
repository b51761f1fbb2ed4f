/* SPDX-License-Identifier: MIT */
/*
 * derive.h - an mm design that is a good one but for some hooks. What is broken on purpose stays small:
 *
 *   #define emu_mm_ops good_mm_ops
 *   #include "../../../workers/designs/mm/mmap-lock-maple.c"
 *   #include "derive.h"
 *   static int wrong_fault(...) { ... }
 *   DERIVED("never-faults", MAPLE_HOOKS, .fault = wrong_fault);
 */
#ifndef DERIVE_H
#define DERIVE_H

#undef emu_mm_ops

#pragma GCC diagnostic ignored "-Woverride-init"
#pragma GCC diagnostic ignored "-Wunused-const-variable"

#define MAPLE_HOOKS                                                                                                    \
	.version = EMU_MM_VERSION, .machine = EMU_MACHINE_ID, .size = sizeof(struct mm_maple), .init = mmap_lock_init, \
	.lock = mm_maple_lock, .unlock = mm_maple_unlock, .find = mm_maple_find, .link = mm_maple_link,                \
	.change = mm_maple_change, .fault = mm_maple_fault

#define DERIVED(name_, hooks, ...) EMU_EXPORT const struct mm_ops emu_mm_ops = { .name = name_, hooks, __VA_ARGS__ }

#endif
