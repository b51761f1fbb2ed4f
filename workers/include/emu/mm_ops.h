/* SPDX-License-Identifier: MIT */
/*
 * mm_ops.h - what an mm design is: how a process's VMAs are indexed and locked.
 *
 * A design is one C file that ends with `const struct mm_ops emu_mm_ops = { ... };`.
 */
#ifndef EMU_MM_OPS_H
#define EMU_MM_OPS_H

#include <emu/rmap.h>

#define EMU_MM_VERSION 1u

struct mm_ops {
	const char *name;
	uint32_t version; /* EMU_MM_VERSION */
	uint32_t machine; /* EMU_MACHINE_ID */
	uint32_t size;	  /* bytes used of mm->index, at most EMU_MM_SLOT */
	const struct emu_param *params;

	/* A new mm; nobody else knows it. Required. */
	void (*init)(struct mm_struct *mm);
	/* The mm is empty and nobody else knows it. Not required. */
	void (*destroy)(struct mm_struct *mm);

	/* Exclude every other change of this mm's VMAs. All hooks below are called with this held. Required. */
	void (*write_lock)(struct mm_struct *mm);
	void (*write_unlock)(struct mm_struct *mm);

	/* Keep this mm's VMAs as they are while a page fault looks at them; find is called with this held. Required. */
	void (*read_lock)(struct mm_struct *mm);
	void (*read_unlock)(struct mm_struct *mm);

	/* The first VMA that ends after addr, or NULL; *prev, if prev is not NULL, is the one before it or NULL. Required. */
	struct vm_area_struct *(*find)(struct mm_struct *mm, uint64_t addr, struct vm_area_struct **prev);

	/* Add, take out. The range of `vma` is free / is vma's own. Required. */
	void (*link)(struct mm_struct *mm, struct vm_area_struct *vma);
	void (*unlink)(struct mm_struct *mm, struct vm_area_struct *vma);

	/* vma's bounds change to these; its order among the VMAs does not. Required. */
	void (*resize)(struct mm_struct *mm, struct vm_area_struct *vma, uint64_t start, uint64_t end);

	/* The highest free range of len bytes in [low, high): its address, or -ENOMEM. Required. */
	int64_t (*free_area)(struct mm_struct *mm, uint64_t len, uint64_t low, uint64_t high);
};

#define mm_private(mm, type) ((type *)(void *)(mm)->index)

#endif
