/* SPDX-License-Identifier: MIT */
/*
 * pgtable.c - page tables: making, looking, filling by faults, clearing, copying, freeing (see emu/pgtable.h).
 */
#include "internal.h"

#include <errno.h>

static void *table_alloc(void *_Atomic *slot, uint32_t bytes)
{
	void *table = upper_entry_get(slot), *fresh;

	if (likely(table))
		return table;
	fresh = emu_zalloc(bytes, emu_node_id());
	if (bytes == sizeof(struct page_table)) {
		spin_lock_init(&((struct page_table *)fresh)->ptl, EMU_CLASS_PTL);
		if (emu_mm->vmas_in_tables)
			init_rwsem((struct rw_semaphore *)(void *)((struct page_table *)fresh)->extents,
				   EMU_CLASS_EXTENTS);
	}
	if (atomic_compare_exchange_strong_explicit(slot, &table, fresh, memory_order_seq_cst, memory_order_seq_cst))
		return fresh;
	/* Another CPU of this process was first. */
	emu_free(fresh);
	return table;
}

struct page_table *pte_alloc(struct mm_struct *mm, uint64_t addr)
{
	struct upper_table *table = table_alloc(&mm->pgd, sizeof(*table));

	for (uint32_t shift = EMU_PGD_SHIFT; shift > EMU_PMD_SHIFT; shift -= EMU_LEVEL_BITS)
		table = table_alloc(upper_entry(table, addr, shift), sizeof(*table));
	return table_alloc(upper_entry(table, addr, EMU_PMD_SHIFT), sizeof(struct page_table));
}

_Atomic uint64_t *pte_offset_map_lock(struct mm_struct *mm, uint64_t addr, struct page_table **table)
{
	*table = pte_find(mm, addr, NULL);
	if (!*table)
		return NULL;
	spin_lock(&(*table)->ptl);
	return &(*table)->pte[pte_index(addr)];
}

uint32_t set_ptes(struct page_table *table, uint32_t index, uint64_t pte, uint32_t nr)
{
	uint32_t set = 0;

	for (uint32_t i = 0; i < nr; i++, pte += UINT64_C(1) << PTE_PAGE_SHIFT) {
		if (pte_get(table, index + i))
			continue;
		pte_set(table, index + i, pte);
		set++;
	}
	return set;
}

/*
 * Faults
 */

static inline uint64_t page_id(uint64_t file, uint64_t page)
{
	return file << PTE_FILE_SHIFT | (page & PTE_PAGE_MASK) << PTE_PAGE_SHIFT;
}

static uint64_t access_bits(uint32_t vm_flags)
{
	return (vm_flags & VM_ACCESS ? PTE_PRESENT : PTE_PROTNONE) | (vm_flags & VM_EXEC ? PTE_EXEC : 0);
}

/* There is a page of the process's own from now on: fork must copy. */
static void anon_vma_prepare(struct vm_area_struct *vma)
{
	if (!atomic_load_explicit(&vma->anon, memory_order_relaxed))
		atomic_store_explicit(&vma->anon, 1, memory_order_relaxed);
}

/*
 * The pages [*first, *end) of the file, less those that a walker has and those that do not exist, as one run around
 * `page`; empty if page itself is such a one. ptl is held: what is found free is mapped before a walker comes to it.
 */
static int free_pages(const struct address_space *mapping, uint64_t page, uint64_t *first, uint64_t *end)
{
	/* In this order: lock_pages() writes them the other way round. */
	uint64_t taken_end = atomic_load_explicit(&mapping->taken_end, memory_order_seq_cst);
	uint64_t taken_first = atomic_load_explicit(&mapping->taken_first, memory_order_seq_cst);

	if (page >= mapping->nr_pages)
		return -EIO;
	if (*end > mapping->nr_pages)
		*end = mapping->nr_pages;
	if (page >= taken_first && page < taken_end)
		return -EAGAIN;
	if (taken_end && page < taken_first && *end > taken_first)
		*end = taken_first;
	if (page >= taken_end && *first < taken_end)
		*first = taken_end;
	return 0;
}

/* Must the page be read first? Asked once for each page of a fault: what it has slept for is there. */
static bool page_is_missing(const struct address_space *mapping, uint64_t page)
{
	struct task_struct *task = current;

	if (likely(!mapping->cold_permille))
		return false;
	if (task->fault_file != mapping || task->fault_page != page) {
		task->fault_file = mapping;
		task->fault_page = page;
		task->fault_missing = emu_random() % 1000 < mapping->cold_permille;
	}
	return task->fault_missing;
}

static uint64_t file_pte(const struct address_space *mapping, uint64_t page, uint64_t bits)
{
	uint64_t generation = atomic_load_explicit(&mapping->generation, memory_order_seq_cst);

	return page_id(mapping->id, page) | (generation & PTE_GENERATION_MASK) << PTE_GENERATION_SHIFT | bits;
}

static int do_file_fault(struct page_table *table, struct vm_area_struct *vma, uint64_t addr, bool write)
{
	uint32_t at = pte_index(addr), from = at, to = at + 1;
	uint64_t in_vma = (addr - vma->vm_start) >> EMU_PAGE_SHIFT, page = vma->vm_pgoff + in_vma;
	uint64_t bits = access_bits(vma->vm_flags), first, end;
	int err;

	/* The vdso and the like have no page cache: nobody walks them, nothing is around. */
	if (vma->vm_flags & VM_SPECIAL) {
		pte_set(table, at, page_id(vma->vm_file->id, page) | bits);
		return 0;
	}
	if (!write) {
		/* do_fault_around(): within its aligned window, the VMA and the table. */
		uint64_t left = vma_pages(vma) - in_vma;

		from &= ~(EMU_FAULT_AROUND - 1);
		if (at - from > in_vma)
			from = at - (uint32_t)in_vma;
		to = from + EMU_FAULT_AROUND;
		if (to > EMU_PTRS_PER_TABLE)
			to = EMU_PTRS_PER_TABLE;
		if (to - at > left)
			to = at + (uint32_t)left;
	}
	first = page - (at - from);
	end = page + (to - at);
	err = free_pages(vma->vm_file, page, &first, &end);
	if (!err && page_is_missing(vma->vm_file, page))
		err = -EAGAIN;
	if (err)
		return err;
	if (!write) {
		set_ptes(table, at - (uint32_t)(page - first), file_pte(vma->vm_file, first, bits),
			 (uint32_t)(end - first));
	} else if (vma->vm_flags & VM_SHARED) {
		pte_set(table, at, file_pte(vma->vm_file, page, bits | PTE_WRITE));
	} else {
		anon_vma_prepare(vma);
		pte_set(table, at, page_id(vma->vm_file->id, page) | bits | PTE_WRITE | PTE_ANON);
	}
	return 0;
}

static void do_anonymous_page(struct page_table *table, struct vm_area_struct *vma, uint64_t addr, bool write)
{
	uint64_t pte = page_id(PTE_NO_FILE, addr >> EMU_PAGE_SHIFT) | access_bits(vma->vm_flags) | PTE_ANON;

	/* A read maps the page of zeroes, which is nobody's. */
	if (write) {
		anon_vma_prepare(vma);
		pte |= PTE_WRITE;
	}
	pte_set(table, pte_index(addr), pte);
}

/* Written for the first time since it was mapped for reading, or since fork. */
static void do_wp_page(struct page_table *table, struct vm_area_struct *vma, uint32_t index, uint64_t pte)
{
	if (!(vma->vm_flags & VM_SHARED)) {
		anon_vma_prepare(vma);
		pte &= ~(PTE_GENERATION_MASK << PTE_GENERATION_SHIFT);
		pte |= PTE_ANON;
	}
	pte_set(table, index, pte | PTE_WRITE);
}

static int try_pte_fault(struct page_table *table, struct vm_area_struct *vma, uint64_t addr, bool write)
{
	uint32_t index = pte_index(addr);
	uint64_t pte = pte_get(table, index);

	if (!(vma->vm_flags & VM_ACCESS) || (write && !(vma->vm_flags & VM_WRITE)))
		return -EFAULT;
	if (pte & PTE_MIGRATION)
		return -EAGAIN;
	if (!pte && vma->vm_file)
		return do_file_fault(table, vma, addr, write);
	if (!pte)
		do_anonymous_page(table, vma, addr, write);
	else if (write && !(pte & PTE_WRITE))
		do_wp_page(table, vma, index, pte);
	return 0;
}

int handle_pte_fault(struct page_table *table, struct vm_area_struct *vma, uint64_t addr, bool write)
{
	int err = try_pte_fault(table, vma, addr, write);

	/* While the VMA is still what it is. Once the lock is dropped it may go, and the file with it. */
	if (unlikely(err == -EAGAIN))
		atomic_fetch_add_explicit(&vma->vm_file->users, 1, memory_order_relaxed);
	return err;
}

EMU_NOINLINE int handle_mm_fault(struct vm_area_struct *vma, uint64_t addr, bool write)
{
	EMU_CALL_SITE();
	struct page_table *table = pte_alloc(vma->vm_mm, addr);
	int err;

	take_page();
	spin_lock(&table->ptl);
	err = handle_pte_fault(table, vma, addr, write);
	spin_unlock(&table->ptl);
	return err;
}

void wait_on_pages(struct address_space *mapping)
{
	if (current->fault_missing) {
		emu_sleep(mapping->read_ns);
		current->fault_missing = false;
	} else {
		down_read(&mapping->invalidate_lock);
		up_read(&mapping->invalidate_lock);
	}
	current->fault_tried = true;
	put_file(mapping);
}

/*
 * Ranges
 */

struct pte_change {
	/* Called for each PTE that is not 0, with ptl held; gives what it becomes. */
	uint64_t (*fn)(uint64_t pte, const struct pte_change *change);
	bool even_cows;
	uint64_t value;
};

/* Returns how many PTEs were changed. */
static uint64_t change_ptes(struct mm_struct *mm, uint64_t start, uint64_t end, const struct pte_change *change)
{
	uint64_t changed = 0, next;

	for (uint64_t addr = start; addr < end; addr = next) {
		struct page_table *table = pte_find(mm, addr, &next);
		uint32_t to;

		if (!table)
			continue;
		next = (addr | (EMU_PMD_SIZE - 1)) + 1;
		to = next > end ? pte_index(end) : EMU_PTRS_PER_TABLE;
		spin_lock(&table->ptl);
		for (uint32_t i = pte_index(addr); i < to; i++) {
			uint64_t pte = pte_get(table, i), changed_to;

			if (!pte)
				continue;
			changed_to = change->fn(pte, change);
			if (changed_to == pte)
				continue;
			pte_set(table, i, changed_to);
			changed++;
		}
		spin_unlock(&table->ptl);
	}
	return changed;
}

static uint64_t to_nothing(uint64_t pte, const struct pte_change *change)
{
	return pte & PTE_ANON && !change->even_cows ? pte : 0;
}

EMU_NOINLINE uint64_t unmap_page_range(struct mm_struct *mm, uint64_t start, uint64_t end)
{
	EMU_CALL_SITE();

	return change_ptes(mm, start, end, &(struct pte_change){ .fn = to_nothing, .even_cows = true });
}

/* The pages [first, last] of vma's file, as far as vma maps them. */
static uint64_t change_file_ptes(struct vm_area_struct *vma, uint64_t first, uint64_t last,
				 const struct pte_change *change)
{
	uint64_t end = vma->vm_pgoff + vma_pages(vma);

	if (first < vma->vm_pgoff)
		first = vma->vm_pgoff;
	if (last < end)
		end = last + 1;
	if (first >= end)
		return 0;
	return change_ptes(vma->vm_mm, vma->vm_start + ((first - vma->vm_pgoff) << EMU_PAGE_SHIFT),
			   vma->vm_start + ((end - vma->vm_pgoff) << EMU_PAGE_SHIFT), change);
}

uint64_t unmap_file_pages(struct vm_area_struct *vma, uint64_t first, uint64_t last, bool even_cows)
{
	return change_file_ptes(vma, first, last, &(struct pte_change){ .fn = to_nothing, .even_cows = even_cows });
}

static uint64_t to_migration(uint64_t pte, const struct pte_change *change)
{
	(void)change;
	return pte & PTE_ANON ? pte : pte | PTE_MIGRATION;
}

uint64_t set_migration_ptes(struct vm_area_struct *vma, uint64_t first, uint64_t last)
{
	return change_file_ptes(vma, first, last, &(struct pte_change){ .fn = to_migration });
}

static uint64_t to_migrated(uint64_t pte, const struct pte_change *change)
{
	if (!(pte & PTE_MIGRATION))
		return pte;
	pte &= ~(PTE_MIGRATION | PTE_GENERATION_MASK << PTE_GENERATION_SHIFT);
	return pte | change->value;
}

uint64_t remove_migration_ptes(struct vm_area_struct *vma, uint64_t first, uint64_t last, uint32_t generation)
{
	return change_file_ptes(vma, first, last,
				&(struct pte_change){ .fn = to_migrated,
						      .value = (generation & PTE_GENERATION_MASK)
							       << PTE_GENERATION_SHIFT });
}

static uint64_t to_protection(uint64_t pte, const struct pte_change *change)
{
	uint64_t keep = ~(PTE_PRESENT | PTE_PROTNONE | PTE_EXEC);

	if (!(change->value & VM_WRITE))
		keep &= ~PTE_WRITE;
	return (pte & keep) | access_bits((uint32_t)change->value);
}

EMU_NOINLINE uint64_t change_protection(struct mm_struct *mm, uint64_t start, uint64_t end, uint32_t vm_flags)
{
	EMU_CALL_SITE();

	return change_ptes(mm, start, end, &(struct pte_change){ .fn = to_protection, .value = vm_flags });
}

EMU_NOINLINE void flush_tlb_range(struct mm_struct *mm, uint64_t start, uint64_t end)
{
	EMU_CALL_SITE();

	if (!mm->tables_know_cpus) {
		emu_tlb_flush(mm, mm->cpumask, emu_nr_cpus());
		return;
	}
	for (uint64_t at = start, next; at < end; at = next) {
		struct page_table *table = pte_find(mm, at, &next);

		if (!table)
			continue;
		next = (at | (EMU_PMD_SIZE - 1)) + 1;
		emu_tlb_flush(mm, table->cpus, EMU_PT_CPU_BITS);
	}
}

EMU_NOINLINE void copy_page_range(struct vm_area_struct *child, struct vm_area_struct *parent)
{
	EMU_CALL_SITE();
	uint64_t end = parent->vm_end, next;

	if (!atomic_load_explicit(&parent->anon, memory_order_relaxed))
		return;
	anon_vma_prepare(child);
	for (uint64_t addr = parent->vm_start; addr < end; addr = next) {
		struct page_table *from = pte_find(parent->vm_mm, addr, &next), *to;
		uint32_t last;

		if (!from)
			continue;
		next = (addr | (EMU_PMD_SIZE - 1)) + 1;
		last = next > end ? pte_index(end) : EMU_PTRS_PER_TABLE;
		to = pte_alloc(child->vm_mm, addr);
		spin_lock(&to->ptl);
		spin_lock(&from->ptl);
		for (uint32_t i = pte_index(addr); i < last; i++) {
			uint64_t pte = pte_get(from, i);

			if (!pte)
				continue;
			if (pte & PTE_WRITE && !(parent->vm_flags & VM_SHARED)) {
				pte &= ~PTE_WRITE;
				pte_set(from, i, pte);
			}
			pte_set(to, i, pte);
		}
		spin_unlock(&from->ptl);
		spin_unlock(&to->ptl);
	}
}

/*
 * Freeing
 */

struct freed_range {
	uint64_t start, end, floor, ceiling;
};

/* The table in `slot`, whose entries reach over 1 << shift bytes each and whose first is for address base. */
static void free_tables(void *_Atomic *slot, uint64_t base, uint32_t shift, const struct freed_range *range)
{
	uint64_t step = UINT64_C(1) << shift, reach = step * EMU_PTRS_PER_TABLE;
	void *table = upper_entry_get(slot);

	if (!table)
		return;
	for (uint64_t addr = range->start > base ? range->start & ~(step - 1) : base;
	     shift >= EMU_PMD_SHIFT && addr < range->end && addr - base < reach; addr += step)
		free_tables(upper_entry(table, addr, shift), addr, shift - EMU_LEVEL_BITS, range);
	/* The top stays for free_pgd(). */
	if (shift == EMU_PGD_SHIFT || base < range->floor || base + reach > range->ceiling)
		return;
	atomic_store_explicit(slot, NULL, memory_order_seq_cst);
	if (shift < EMU_PMD_SHIFT)
		EMU_ASSERT(!((struct page_table *)table)->nr_used, "%u PTEs from %#llx on are left",
			   ((struct page_table *)table)->nr_used, (unsigned long long)base);
	/* Faults that hold no lock may still look at it. */
	emu_free_rcu(table);
}

void free_pgd_range(struct mm_struct *mm, uint64_t start, uint64_t end, uint64_t floor, uint64_t ceiling)
{
	if (!upper_entry_get(&mm->pgd))
		return;
	emu_page_tables_lock(mm);
	free_tables(&mm->pgd, 0, EMU_PGD_SHIFT, &(struct freed_range){ start, end, floor, ceiling });
	emu_page_tables_unlock(mm);
}

void free_pgd(struct mm_struct *mm)
{
	struct upper_table *table = upper_entry_get(&mm->pgd);

	if (!table)
		return;
#ifdef EMU_CHECKED
	for (uint32_t i = 0; i < EMU_PTRS_PER_TABLE; i++)
		EMU_ASSERT(!upper_entry_get(&table->entry[i]), "tables of entry %u are left", i);
#endif
	atomic_store_explicit(&mm->pgd, NULL, memory_order_seq_cst);
	emu_free(table);
}
