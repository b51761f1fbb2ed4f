/* SPDX-License-Identifier: MIT */
/*
 * breaks: memory
 *
 * numa-locks that frees nothing when a file goes.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/numa-locks.c"
#include "derive.h"

DERIVED(numa_locks, "leaks-files", .destroy = NULL);
