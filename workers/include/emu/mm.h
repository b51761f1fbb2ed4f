/* SPDX-License-Identifier: MIT */
/*
 * mm.h - the small mm: files, address spaces of processes, and the system calls on them.
 *
 * Structure and names follow the kernel's (mm/vma.c, mm/mmap.c, kernel/fork.c, fs/exec.c); the code is our own. Addresses
 * and lengths are bytes, page offsets are pages. System calls return 0 or an address, or -errno.
 *
 * Lock order: mmap_lock (the mm design's) -> i_mmap lock (the rmap design's) -> page-table lock. A walker does not take
 * the first, but before the second invalidate_lock, which whoever faults waits for with nothing held.
 */
#ifndef EMU_MM_H
#define EMU_MM_H

#include <emu/btree.h>
#include <emu/interval_tree.h>
#include <emu/rwsem.h>

/* Protection and mapping flags of a call, with the values of Linux on x86-64 and aarch64. */
#define EMU_PROT_READ 0x1u
#define EMU_PROT_WRITE 0x2u
#define EMU_PROT_EXEC 0x4u
#define EMU_MAP_SHARED 0x01u
#define EMU_MAP_PRIVATE 0x02u
#define EMU_MAP_FIXED 0x10u
#define EMU_MAP_ANONYMOUS 0x20u
#define EMU_MAP_GROWSDOWN 0x100u
#define EMU_MAP_NORESERVE 0x4000u
#define EMU_MAP_STACK 0x20000u
#define EMU_MAP_FIXED_NOREPLACE 0x100000u
/* Ours, for what the kernel maps by itself during exec. */
#define EMU_MAP_SPECIAL 0x10000000u /* vdso, vvar: never merged */
#define EMU_MAP_BRK 0x20000000u	    /* the end of this mapping is where the heap starts (start_brk) */
/* Ours, of calls: afterwards the program uses the files mapped by exec, fork or mmap, the first page of each mapping (a
 * fault, with what it brings along), or every 16th page; writes where it may, else reads. */
#define EMU_MAP_TOUCH 0x40000000u
#define EMU_MAP_TOUCH_ALL 0x80000000u

/* vm_flags */
#define VM_READ 0x1u
#define VM_WRITE 0x2u
#define VM_EXEC 0x4u
#define VM_ACCESS (VM_READ | VM_WRITE | VM_EXEC)
#define VM_SHARED 0x8u
#define VM_GROWSDOWN 0x100u
#define VM_SPECIAL 0x4000u
/* Private and writable at some time, so that it may have pages of its own. Stays when mprotect takes writing away
 * (RELRO), which keeps such a range from merging with its read-only neighbour. */
#define VM_ACCOUNT 0x100000u

/* MAP_NORESERVE's: counts for nothing in the commit limit, so never VM_ACCOUNT. Room for a heap, as malloc takes it. */
#define VM_NORESERVE 0x200000u

/* MAP_STACK's, since Linux 6.7: keeps a thread's stack apart from the mappings beside it. */
#define VM_NOHUGEPAGE 0x40000000u

#define EMU_STACK_GUARD_GAP (UINT64_C(256) << EMU_PAGE_SHIFT) /* the kernel's default, 1 MiB */
#define EMU_TASK_SIZE UINT64_C(0x7ffffffff000)
#define EMU_RMAP_SLOT 256u /* bytes of an address_space that belong to the rmap design */
#define EMU_MM_SLOT 256u   /* bytes of an mm_struct that belong to the mm design */
#define EMU_VMA_SLOT 64u   /* bytes of a vm_area_struct that belong to the mm design */

/* A file's page cache, and who maps it. */
struct address_space {
	/* Constant after the load phase, but for generation: that is written as taken_* are. */
	uint32_t id;
	_Atomic uint32_t generation; /* times that pages of this file were migrated */
	uint64_t nr_pages;
	/* Of a thousand faults so many find that their page is not in the page cache; how long a read of it takes. */
	uint32_t cold_permille;
	uint64_t read_ns;

	/*
	 * The pages [taken_first, taken_end) are a walker's: no fault maps one of them, or finds it in the page cache.
	 * Stands for their folio locks. Written under invalidate_lock; a fault looks with ptl held.
	 */
	_Atomic uint64_t taken_first, taken_end;
	char name[96];

	/* Faults that sleep for a page and keep the file meanwhile, holding no lock: the kernel's f_count. */
	__cacheline_aligned _Atomic uint32_t users;
	struct rw_semaphore invalidate_lock; /* a walker holds it for writing; a fault that meets one waits for it */

	/* The rmap design's: trees and locks, or a pointer to them. */
	__cacheline_aligned unsigned char i_mmap[EMU_RMAP_SLOT];
};

struct vm_area_struct {
	/* The mm design's lock must be held for writing to change these (and the i_mmap lock too, where a walker looks:
	 * vm_start, vm_end, vm_pgoff). */
	__cacheline_aligned uint64_t vm_start;
	uint64_t vm_end; /* first byte after */
	struct mm_struct *vm_mm;
	uint32_t vm_flags;
	uint32_t i_mmap_index; /* the rmap design's: in which tree this VMA is */
	union {
		struct {
			struct rb_node vm_rb;
			/* Of the subtree below vm_rb: lowest start, highest end, largest gap between two VMAs. */
			uint64_t rb_subtree_start, rb_subtree_end, rb_subtree_gap;
		};
		struct vm_area_struct *detached_next; /* out of the index: the next to be unlinked and freed */
	};

	/* The i_mmap lock of vm_file must be held when using `shared`, but for the VMA's own mm to read it. */
	union {
		__cacheline_aligned struct interval_tree_node shared; /* start, last: in pages of the file */
		struct btree_item shared_item;			      /* the same, for designs that keep a B-tree */
	};
	struct address_space *vm_file; /* NULL: anonymous. VM_SPECIAL: only names the mapping, not in i_mmap */
	uint64_t vm_pgoff;
	_Atomic uint32_t anon; /* it has or had pages of its own (the kernel's anon_vma); set by faults, never cleared */

	/* The mm design's, all zero in a new VMA: a lock of the VMA's own, on a line of its own. */
	__cacheline_aligned unsigned char lock[EMU_VMA_SLOT];
};

struct mm_struct {
	/* Constant once the image is loaded. */
	__cacheline_aligned uint64_t mmap_base; /* mappings without an address are placed below, top down */
	uint64_t start_brk;
	/* Changes with the end of the heap locked. */
	_Atomic uint64_t brk;

	/*
	 * The mm design's, constant after init: each CPU has page tables of its own (RadixVM), so that what a CPU has not
	 * touched by a fault of its own it has no translation of. Modelled by one bit a CPU and bottom-level table.
	 */
	bool tables_know_cpus;

	/* Tasks that run in it; the last one tears it down. */
	__cacheline_aligned _Atomic uint32_t mm_users;

	/* Page tables, see pgtable.h; NULL until the first fault. */
	__cacheline_aligned void *_Atomic pgd;
	/* The machine's list of all address spaces, while walkers are checked. */
	struct mm_struct *next_mm, *prev_mm;
	uint32_t listed_cpu;

	/* The mm design's: index and lock. */
	__cacheline_aligned unsigned char index[EMU_MM_SLOT];

	/* CPUs that may have translations of it: a bit each. Set by the CPU itself, and cleared unless tasks share it. */
	__cacheline_aligned _Atomic uint64_t cpumask[];
};

/*
 * What the i_mmap lock is held over in one go: `vma` and, where a merge or split moves a border, `adj_next` change their
 * bounds between prepare and complete; `insert` (the new half of a split) joins, `remove` leaves. All map one file.
 */
struct vma_prepare {
	struct vm_area_struct *vma;
	struct vm_area_struct *adj_next;
	struct vm_area_struct *insert;
	struct vm_area_struct *remove;
	struct vm_area_struct *remove2; /* prev, changed VMA and next became one: next goes too */
	struct address_space *mapping;
};

static inline uint64_t vma_pages(const struct vm_area_struct *vma)
{
	return (vma->vm_end - vma->vm_start) >> EMU_PAGE_SHIFT;
}

/* Where the room below a VMA ends: stacks keep a guard gap. */
static inline uint64_t vm_start_gap(const struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_GROWSDOWN))
		return vma->vm_start;
	return vma->vm_start > EMU_STACK_GUARD_GAP ? vma->vm_start - EMU_STACK_GUARD_GAP : 0;
}

/* The file in whose i_mmap this VMA is, or NULL. */
static inline struct address_space *vma_mapping(const struct vm_area_struct *vma)
{
	return vma->vm_flags & VM_SPECIAL ? NULL : vma->vm_file;
}

/* The key of a file VMA in i_mmap. Designs call it before they (re-)insert a VMA. */
static inline void vma_set_interval(struct vm_area_struct *vma)
{
	vma->shared.start = vma->vm_pgoff;
	vma->shared.last = vma->vm_pgoff + vma_pages(vma) - 1;
}

#define vma_of(node) container_of(node, struct vm_area_struct, shared)

static inline void vma_set_item(struct vm_area_struct *vma)
{
	vma->shared_item.start = vma->vm_pgoff;
	vma->shared_item.last = vma->vm_pgoff + vma_pages(vma) - 1;
}

#define vma_of_item(item) container_of(item, struct vm_area_struct, shared_item)

/* System calls, on current->mm. */
EMU_EXPORT int64_t emu_sys_mmap(uint64_t addr, uint64_t len, uint32_t prot, uint32_t flags, struct address_space *file,
				uint64_t offset);
EMU_EXPORT int64_t emu_sys_munmap(uint64_t addr, uint64_t len);
EMU_EXPORT int64_t emu_sys_mprotect(uint64_t addr, uint64_t len, uint32_t prot);
EMU_EXPORT int64_t emu_sys_brk(uint64_t brk); /* the new or, where that cannot be, the old break */
/* The pages of [addr, addr + len) go, what is mapped stays. */
EMU_EXPORT int64_t emu_sys_madvise_dontneed(uint64_t addr, uint64_t len);
/* A page fault of the current task. 0; -EFAULT: not allowed or not mapped; -EIO: beyond the end of the file. */
EMU_EXPORT int64_t emu_sys_fault(uint64_t addr, bool write);

/* A copy of `oldmm` with its VMAs linked just after their parents' in i_mmap. */
EMU_EXPORT struct mm_struct *dup_mmap(struct mm_struct *oldmm);
/* A new, empty mm becomes the current task's; the old one, if any, loses a user. */
EMU_EXPORT void exec_mmap(uint64_t mmap_base);
/* The current task runs in mm from now on (NULL: in none); users are counted by mmget() and mmput(). */
EMU_EXPORT void switch_mm(struct mm_struct *mm);
/* One more task, one less. Without users everything is unmapped and the mm freed. */
static inline void mmget(struct mm_struct *mm)
{
	atomic_fetch_add_explicit(&mm->mm_users, 1, memory_order_relaxed);
}
EMU_EXPORT void mmput(struct mm_struct *mm);
/* Links a new file VMA into its file's i_mmap. */
EMU_EXPORT void vma_link_file(struct vm_area_struct *vma);

#endif
