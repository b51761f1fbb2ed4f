/* SPDX-License-Identifier: MIT */
/*
 * pgtable.h - page tables of a process: four levels of 512 entries, as x86-64 and aarch64 have them.
 *
 * A bottom-level table has a lock of its own (as the kernel's split page-table lock) and maps 2 MiB. An upper-level
 * table is never locked: an entry goes from NULL to a table by compare-and-exchange, so that CPUs that share an mm may
 * fault at once, and back to NULL only when no VMA is left in its reach.
 *
 *   a fault             table = pte_alloc(mm, addr); spin_lock(&table->ptl); handle_pte_fault(); spin_unlock()
 *                       or handle_mm_fault(), which does just that
 *   looking             pte_offset_map_lock(), pte_unmap_unlock()
 *   munmap, exit        unmap_page_range() of each VMA, then out of i_mmap, then free_pgd_range()
 *   fork                copy_page_range(), the child's VMA being in i_mmap after its parent's
 *   mprotect            change_protection(), the VMA having its new flags
 *
 * A PTE says which page is there:
 *   bits 0-5    PTE_*; a PTE that is not 0 has PRESENT or PROTNONE
 *   bits 6-11   generation of the file (migration gives pages new places)
 *   bits 12-47  page of the file, or for anonymous memory of the address space
 *   bits 48-63  file, or PTE_NO_FILE. With PTE_ANON: the process's own copy of that page
 *
 * Rules for callers:
 *   - ptl must be held to write a PTE. It may be read without, by whoever keeps the table from being freed.
 *   - The tables of a range are freed when its VMAs are in no index any more. So they are there for whoever has such a
 *     VMA locked: by the mm's lock, by a lock of the VMA, or as a walker, by that of i_mmap.
 *   - Lock order: mmap_lock or the VMA's lock -> i_mmap -> ptl. Of two ptl: the child's, then the parent's.
 */
#ifndef EMU_PGTABLE_H
#define EMU_PGTABLE_H

#include <emu/mm.h>

#define EMU_PTRS_PER_TABLE 512u
#define EMU_PGD_SHIFT 39u /* what an entry of the top level reaches over, as a power of two */
#define EMU_PMD_SHIFT 21u /* an entry of the lowest but one */
#define EMU_LEVEL_BITS 9u
#define EMU_PMD_SIZE (UINT64_C(1) << EMU_PMD_SHIFT) /* what a bottom-level table maps */
#define EMU_PT_SLOT 128u		 /* bytes of a bottom-level table that belong to the mm design */
#define EMU_PT_CPU_BITS 512u		 /* CPU n is bit n modulo this: two may share one */
#define EMU_FAULT_AROUND 16u		 /* pages; the kernel's default of fault_around_bytes is 64 KiB */

#define PTE_PRESENT UINT64_C(0x1)
#define PTE_WRITE UINT64_C(0x2)
#define PTE_EXEC UINT64_C(0x4)
#define PTE_ANON UINT64_C(0x8)
#define PTE_MIGRATION UINT64_C(0x10) /* the page is on its way to another place: a fault waits */
#define PTE_PROTNONE UINT64_C(0x20)  /* there, but mprotect forbids all access */
#define PTE_GENERATION_SHIFT 6
#define PTE_GENERATION_MASK UINT64_C(0x3f)
#define PTE_PAGE_SHIFT 12
#define PTE_PAGE_MASK ((UINT64_C(1) << 36) - 1)
#define PTE_FILE_SHIFT 48
#define PTE_NO_FILE UINT64_C(0xffff)

struct upper_table {
	__cacheline_aligned void *_Atomic entry[EMU_PTRS_PER_TABLE];
};

struct page_table {
	__cacheline_aligned struct qspinlock ptl;
	uint32_t nr_used; /* PTEs that are not 0; under ptl */

	/*
	 * The mm design's, all zero in a new table; but with vmas_in_tables it begins with a struct rw_semaphore, which is
	 * set up with the table.
	 */
	__cacheline_aligned unsigned char extents[EMU_PT_SLOT];

	/* mm->tables_know_cpus: who had a fault in it. Set by the CPU itself, with ptl held. */
	__cacheline_aligned _Atomic uint64_t cpus[EMU_PT_CPU_BITS / 64];

	__cacheline_aligned _Atomic uint64_t pte[EMU_PTRS_PER_TABLE];
};

/* Has this CPU the table among its own? */
static inline bool table_is_known(struct page_table *table)
{
	uint32_t bit = current->cpu % EMU_PT_CPU_BITS;

	return atomic_load_explicit(&table->cpus[bit / 64], memory_order_relaxed) >> bit % 64 & 1;
}

static inline void table_set_known(struct page_table *table)
{
	uint32_t bit = current->cpu % EMU_PT_CPU_BITS;

	if (!table_is_known(table))
		atomic_fetch_or_explicit(&table->cpus[bit / 64], UINT64_C(1) << bit % 64, memory_order_relaxed);
}

static inline uint32_t pte_index(uint64_t addr)
{
	return (uint32_t)(addr >> EMU_PAGE_SHIFT) % EMU_PTRS_PER_TABLE;
}

static inline uint64_t pte_page(uint64_t pte)
{
	return pte >> PTE_PAGE_SHIFT & PTE_PAGE_MASK;
}

static inline uint64_t pte_file(uint64_t pte)
{
	return pte >> PTE_FILE_SHIFT;
}

/* What the hardware asks: may the page be used without a fault? */
static inline bool pte_allows(uint64_t pte, bool write)
{
	uint64_t wanted = PTE_PRESENT | (write ? PTE_WRITE : 0);

	return (pte & (wanted | PTE_MIGRATION)) == wanted;
}

static inline uint64_t pte_generation(uint64_t pte)
{
	return pte >> PTE_GENERATION_SHIFT & PTE_GENERATION_MASK;
}

/* Relaxed: it is ptl that orders, or nothing needs to. */
static inline uint64_t pte_get(const struct page_table *table, uint32_t index)
{
	return atomic_load_explicit(&table->pte[index], memory_order_relaxed);
}

/* ptl is held. */
static inline void pte_set(struct page_table *table, uint32_t index, uint64_t pte)
{
	table->nr_used += (pte != 0) - (pte_get(table, index) != 0);
	atomic_store_explicit(&table->pte[index], pte, memory_order_relaxed);
}

static inline void *_Atomic *upper_entry(struct upper_table *table, uint64_t addr, uint32_t shift)
{
	return &table->entry[(addr >> shift) % EMU_PTRS_PER_TABLE];
}

/*
 * Sequentially consistent, as what installs a table is: a walker first says which pages it takes (walk.c) and then looks
 * for tables; a fault first installs the table and then asks which pages are taken. One of them must see the other.
 */
static inline void *upper_entry_get(void *_Atomic *entry)
{
	return atomic_load_explicit(entry, memory_order_seq_cst);
}

/*
 * The bottom-level table of addr. find: NULL where there is none, and then, if next is not NULL, *next is the first
 * address after addr that may have one. alloc: makes what is missing, on the caller's node.
 */
static inline struct page_table *pte_find(struct mm_struct *mm, uint64_t addr, uint64_t *next)
{
	void *table = upper_entry_get(&mm->pgd);
	uint32_t shift = EMU_PGD_SHIFT + EMU_LEVEL_BITS;

	while (table && shift > EMU_PMD_SHIFT) {
		shift -= EMU_LEVEL_BITS;
		table = upper_entry_get(upper_entry(table, addr, shift));
	}
	if (!table && next)
		*next = (addr | ((UINT64_C(1) << shift) - 1)) + 1;
	return table;
}

/*
 * The first table that reaches into [*addr, end), *addr being the first address in it afterwards; NULL: there is none. For
 * ranges that may be long and empty: it goes along an upper table instead of down from the top each time.
 */
static inline struct page_table *pte_find_from(struct mm_struct *mm, uint64_t *addr, uint64_t end)
{
	while (*addr < end) {
		void *table = upper_entry_get(&mm->pgd);
		uint32_t shift = EMU_PGD_SHIFT + EMU_LEVEL_BITS;

		if (!table)
			break;
		while (table && shift > EMU_PMD_SHIFT) {
			struct upper_table *upper = table;

			shift -= EMU_LEVEL_BITS;
			while (!(table = upper_entry_get(upper_entry(upper, *addr, shift)))) {
				*addr = (*addr | ((UINT64_C(1) << shift) - 1)) + 1;
				if (*addr >= end || !((*addr >> shift) % EMU_PTRS_PER_TABLE))
					break;
			}
		}
		if (table)
			return table;
	}
	return NULL;
}

EMU_EXPORT struct page_table *pte_alloc(struct mm_struct *mm, uint64_t addr);

/* The PTE of addr with its table's lock held, or NULL where there is no table. */
EMU_EXPORT _Atomic uint64_t *pte_offset_map_lock(struct mm_struct *mm, uint64_t addr, struct page_table **table);
static inline void pte_unmap_unlock(struct page_table *table)
{
	spin_unlock(&table->ptl);
}

/*
 * Consecutive pages, the first being `pte`, at the nr PTEs from index on that are 0; others stay. Returns how many were.
 * ptl is held.
 */
EMU_EXPORT uint32_t set_ptes(struct page_table *table, uint32_t index, uint64_t pte, uint32_t nr);

/*
 * A fault of this kind at addr, inside vma, which nobody changes meanwhile. With ptl of addr's table held
 * (handle_pte_fault), or not (handle_mm_fault). 0: the page is there.
 *   -EFAULT  the VMA does not allow it (SIGSEGV)
 *   -EIO     the file ends before (SIGBUS)
 *   -EAGAIN  a walker has the page, or it must be read into the page cache first. The file is kept by a reference: let
 *            go of everything, wait_on_pages(vma's file), which drops it, and find the VMA again
 * A read maps up to EMU_FAULT_AROUND pages of a file. Of vma, only `anon` is written.
 */
/* To get and clear a page takes the time, and locks of the rest of the kernel, that the program says. Before ptl is taken. handle_mm_fault() does it itself. */
EMU_EXPORT void emu_fault_uses(void);
static inline void take_page(void)
{
	if (unlikely(current->fault_call))
		emu_fault_uses();
	if (current->fault_work_ns)
		emu_compute(current->fault_work_ns);
}
EMU_EXPORT int handle_pte_fault(struct page_table *table, struct vm_area_struct *vma, uint64_t addr, bool write);
EMU_EXPORT int handle_mm_fault(struct vm_area_struct *vma, uint64_t addr, bool write);
EMU_EXPORT void wait_on_pages(struct address_space *mapping);
/* For who will not wait: the reference that came with -EAGAIN. */
static inline void put_file(struct address_space *file)
{
	atomic_fetch_sub_explicit(&file->users, 1, memory_order_release);
}

/* Clears the PTEs of [start, end); returns how many were not 0. */
EMU_EXPORT uint64_t unmap_page_range(struct mm_struct *mm, uint64_t start, uint64_t end);

/*
 * What walkers do to the pages [first, last] of the VMA's file: clear their PTEs, private copies too if even_cows;
 * put migration entries in their place; put pages of this generation in the place of those. Returns how many PTEs.
 */
EMU_EXPORT uint64_t unmap_file_pages(struct vm_area_struct *vma, uint64_t first, uint64_t last, bool even_cows);
EMU_EXPORT uint64_t set_migration_ptes(struct vm_area_struct *vma, uint64_t first, uint64_t last);
EMU_EXPORT uint64_t remove_migration_ptes(struct vm_area_struct *vma, uint64_t first, uint64_t last,
					  uint32_t generation);

/*
 * Protections of what is mapped in [start, end), which has vm_flags from now on. Writing comes back by a fault. Returns
 * how many PTEs were changed.
 */
EMU_EXPORT uint64_t change_protection(struct mm_struct *mm, uint64_t start, uint64_t end, uint32_t vm_flags);

/* Other CPUs forget what PTEs of [start, end), which is VMAs' own, said until now. */
EMU_EXPORT void flush_tlb_range(struct mm_struct *mm, uint64_t start, uint64_t end);

/*
 * The child's PTEs from the parent's; both lose writing where they share. As in the kernel, nothing is copied of a VMA
 * that never had a page of its own: its faults bring the pages back. Both mms are locked for writing.
 */
EMU_EXPORT void copy_page_range(struct vm_area_struct *child, struct vm_area_struct *parent);

/*
 * Frees the tables of [start, end), whose PTEs are 0 and whose VMAs are in no index, as far as their reach lies in
 * [floor, ceiling): between the VMAs that stay. UINT64_MAX: none above. free_pgd: the top, of an mm that goes.
 */
EMU_EXPORT void free_pgd_range(struct mm_struct *mm, uint64_t start, uint64_t end, uint64_t floor, uint64_t ceiling);
EMU_EXPORT void free_pgd(struct mm_struct *mm);

#endif
