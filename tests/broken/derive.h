/* SPDX-License-Identifier: MIT */
/*
 * derive.h - a design that is another one but for some hooks. What is broken on purpose stays small:
 *
 *   #define emu_rmap_ops good_rmap_ops
 *   #include "../../workers/designs/rmap/single.c"
 *   #include "derive.h"
 *   static bool wrong_mapped(struct address_space *mapping) { return false; }
 *   DERIVED(single, "never-mapped", .mapped = wrong_mapped);
 *
 * The prefix is that of the good one's functions and the name of its struct.
 */
#ifndef DERIVE_H
#define DERIVE_H

#undef emu_rmap_ops

#pragma GCC diagnostic ignored "-Woverride-init"
#pragma GCC diagnostic ignored "-Wunused-const-variable"

#define DERIVED(prefix, name_, ...)                      \
	EMU_EXPORT const struct rmap_ops emu_rmap_ops = { \
		.name = name_,                           \
		.version = EMU_RMAP_VERSION,             \
		.machine = EMU_MACHINE_ID,               \
		.size = sizeof(struct prefix),           \
		.init = prefix##_init,                   \
		.insert = prefix##_insert,               \
		.remove = prefix##_remove,               \
		.prepare = prefix##_prepare,             \
		.complete = prefix##_complete,           \
		.walk = prefix##_walk,                   \
		.mapped = prefix##_mapped,               \
		__VA_ARGS__                              \
	}

#endif
