/* SPDX-License-Identifier: MIT */
/*
 * program.c - runs the system calls of a program on a CPU.
 *
 * Fork and exit nest: the child takes the CPU at once and gives it back when it exits, so that a call list is one
 * sequence. Latencies are taken around each call.
 */
#include "internal.h"
#include "../mm/background.h"
#include "../mm/internal.h"
#include "../mm/micro.h"
#include "program.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const op_names[EMU_LAT_NR] = { "iteration", "exec",	   "fork", "exit",  "mmap",
						  "munmap",    "mprotect", "brk",  "fault", "walk", "micro" };
static const char *const call_names[EMU_CALL_NR] = { "exec",	 "fork", "exit", "mmap", "munmap",
						     "mprotect", "brk",	 "fault", "fault_next", "dontneed", "pass",
						     "clone", "thread_exit", "work", "pace", "barrier",
						     "line_write", "line_fetch_add", "line_cmpxchg",
						     "line_ping_pong", "rwsem_write", "rwsem_read",
						     "rwsem_mixed" };

static const uint32_t latency_op[EMU_CALL_NR] = {
	[EMU_CALL_EXEC] = EMU_LAT_EXEC,		[EMU_CALL_FORK] = EMU_LAT_FORK,	    [EMU_CALL_EXIT] = EMU_LAT_EXIT,
	[EMU_CALL_MMAP] = EMU_LAT_MMAP,		[EMU_CALL_MUNMAP] = EMU_LAT_MUNMAP, [EMU_CALL_MPROTECT] = EMU_LAT_MPROTECT,
	[EMU_CALL_BRK] = EMU_LAT_BRK,		[EMU_CALL_FAULT] = EMU_LAT_NR, /* each fault by itself */
	[EMU_CALL_FAULT_NEXT] = EMU_LAT_NR,	[EMU_CALL_DONTNEED] = EMU_LAT_NR,   [EMU_CALL_PASS] = EMU_LAT_NR,
	[EMU_CALL_CLONE] = EMU_LAT_NR,		[EMU_CALL_THREAD_EXIT] = EMU_LAT_NR,
	[EMU_CALL_BARRIER] = EMU_LAT_NR,	[EMU_CALL_WORK] = EMU_LAT_NR,
	[EMU_CALL_PACE] = EMU_LAT_NR,		[EMU_CALL_LINE_WRITE] = EMU_LAT_MICRO,
	[EMU_CALL_LINE_FETCH_ADD] = EMU_LAT_MICRO, [EMU_CALL_LINE_CMPXCHG] = EMU_LAT_MICRO,
	[EMU_CALL_LINE_PING_PONG] = EMU_LAT_MICRO, [EMU_CALL_RWSEM_WRITE] = EMU_LAT_MICRO,
	[EMU_CALL_RWSEM_READ] = EMU_LAT_MICRO,	[EMU_CALL_RWSEM_MIXED] = EMU_LAT_MICRO,
};

const char *emu_op_name(uint32_t op)
{
	return op < EMU_LAT_NR ? op_names[op] : "?";
}

const char *emu_call_name(uint32_t op)
{
	return op < EMU_CALL_NR ? call_names[op] : "?";
}

/* In no system call, or nowhere in it that matters: grace periods do not wait. */
static void compute(uint64_t ns)
{
	uint64_t rcu = emu_rcu_sleep();

	emu_compute(ns);
	emu_rcu_wake(rcu);
}

/* Varies by the configured share either way, so that CPUs do not march in step. */
static uint64_t with_jitter(uint64_t ns)
{
	uint64_t jitter = ns * emu_arena->config.work_jitter_permille / 1000;

	return jitter ? ns + emu_random() % (2 * jitter + 1) - jitter : ns;
}

/* Without what was computed inside locks already. */
static uint64_t work_left(uint64_t ns)
{
	uint64_t ahead = current->work_ahead_ns < ns ? current->work_ahead_ns : ns;

	current->work_ahead_ns -= ahead;
	return ns - ahead;
}

static void work(uint64_t ns)
{
	ns = work_left(ns);
	if (ns)
		compute(with_jitter(ns));
}

/* Each CPU begins at another place between two uses, or all would come at once where times is below one. */
uint64_t emu_uses_until(uint32_t use, uint32_t cpu, uint64_t occasions)
{
	return (occasions * emu_arena->uses[use].times_ppm + cpu * UINT64_C(617) % 1000 * 1000) / 1000000;
}

/* The call's work, and evenly spread over it what it uses of the rest of the kernel. */
static void kernel_work(const struct emu_call *call, uint64_t work_ns)
{
	uint32_t cpu = emu_task_number();
	uint64_t *occasions = emu_arena->occasions + (uint64_t)cpu * emu_arena->nr_uses + call->first_use;
	uint64_t nr = 0, slice;

	for (uint32_t i = 0; i < call->nr_uses; i++)
		nr += emu_uses_until(call->first_use + i, cpu, occasions[i] + 1) -
		      emu_uses_until(call->first_use + i, cpu, occasions[i]);
	work_ns = work_left(work_ns);
	slice = work_ns ? with_jitter(work_ns) / (nr + 1) : 0;
	for (uint32_t i = 0; i < call->nr_uses; i++) {
		const struct emu_use *use = &emu_arena->uses[call->first_use + i];
		int32_t inner = emu_arena->backgrounds[use->entry].inner;
		uint64_t until = emu_uses_until(call->first_use + i, cpu, occasions[i] + 1);
		uint64_t done = emu_uses_until(call->first_use + i, cpu, occasions[i]++);

		for (; done < until; done++) {
			if (slice)
				compute(slice);
			background_use(emu_background_of(use->entry, use->file),
				       inner < 0 ? NULL : emu_background_of((uint32_t)inner, use->file));
		}
	}
	if (slice)
		compute(slice);
}

/* By a fault, amid what it takes a page with: its call's uses are for each page. Nothing here sleeps. */
void emu_fault_uses(void)
{
	kernel_work(current->fault_call, 0);
}

void emu_locked_work(void)
{
	uint64_t ns = with_jitter(emu_this_cpu()->locked_ns);

	if (ns)
		emu_compute(ns);
}

static struct address_space *file_of(const struct emu_call *call)
{
	return call->arg < 0 ? NULL : emu_file_named((uint32_t)call->arg);
}

/* Strict: is anything mapped in [addr, addr + len)? */
static bool anything_mapped(const struct emu_call *call)
{
	struct mm_struct *mm = current->mm;
	struct mm_range range = { .start = call->addr, .end = call->addr + call->len, .read = true };
	bool found;

	emu_mm->lock(mm, &range);
	found = emu_mm->find(mm, range.start, range.end, NULL) != NULL;
	emu_mm->unlock(mm, &range);
	return found;
}

/* The work of these is the rest of the kernel's; of other calls the program's own before them. */
static bool work_is_in_kernel(uint32_t op)
{
	return op == EMU_CALL_EXEC || op == EMU_CALL_FORK || op == EMU_CALL_EXIT || op == EMU_CALL_CLONE ||
	       op == EMU_CALL_THREAD_EXIT;
}

/* Theirs is the kernel's for each page that is not there. */
static bool is_fault(uint32_t op)
{
	return op == EMU_CALL_FAULT || op == EMU_CALL_FAULT_NEXT;
}

/*
 * batch=exit+fork+exec. A loader maps a library whole and then maps its segments over that, each in a call of its own.
 * Here they are one call, of an interface that is not there: first and last VMA are what they would have come to, but
 * that a later mprotect of a part (RELRO) finds that part to be a VMA already.
 */
static bool is_within(const struct emu_call *call, uint64_t start, uint64_t end)
{
	return call->addr >= start && call->len <= end - start && call->addr - start <= end - start - call->len;
}

/* Where the mapping goes; 0: not known before. */
static uint64_t place_of(const struct emu_call *call)
{
	if (call->flags & (EMU_MAP_FIXED | EMU_MAP_FIXED_NOREPLACE))
		return call->addr;
	return call->expect == EMU_NO_EXPECT ? 0 : call->expect;
}

void emu_program_find_groups(struct emu_call *calls, uint32_t n)
{
	for (uint32_t i = 0, next; i < n; i = next) {
		uint64_t start = place_of(&calls[i]), end = start + page_align(calls[i].len);

		next = i + 1;
		if (calls[i].op != EMU_CALL_MMAP || calls[i].arg < 0 || calls[i].flags & EMU_MAP_SPECIAL || !start)
			continue;
		while (next < n && is_within(&calls[next], start, end) &&
		       (calls[next].op == EMU_CALL_MUNMAP ||
			(calls[next].op == EMU_CALL_MMAP && calls[next].flags & EMU_MAP_FIXED &&
			 !(calls[next].flags & EMU_MAP_SPECIAL))))
			next++;
		calls[i].followers = next - i - 1;
	}
}

struct segments {
	struct map_segment segment[MAP_SEGMENTS_MAX];
	uint32_t n;
};

static bool segments_insert(struct segments *s, uint32_t at, struct map_segment segment)
{
	if (s->n == MAP_SEGMENTS_MAX)
		return false;
	memmove(&s->segment[at + 1], &s->segment[at], (s->n - at) * sizeof(segment));
	s->segment[at] = segment;
	s->n++;
	return true;
}

/* A border at addr, if that is inside a segment. */
static bool segments_cut(struct segments *s, uint64_t addr)
{
	for (uint32_t i = 0; i < s->n; i++) {
		struct map_segment upper = s->segment[i];

		if (addr <= upper.start || addr >= upper.end)
			continue;
		upper.pgoff += (addr - upper.start) >> EMU_PAGE_SHIFT;
		upper.start = s->segment[i].end = addr;
		return segments_insert(s, i + 1, upper);
	}
	return true;
}

static bool segments_apply(struct segments *s, const struct emu_call *call)
{
	uint64_t start = place_of(call), end = call->addr + page_align(call->len);
	uint32_t at = 0, kept = 0;

	if (call->op == EMU_CALL_MUNMAP)
		start = call->addr;
	else
		end = start + page_align(call->len);
	if (!segments_cut(s, start) || !segments_cut(s, end))
		return false;
	for (uint32_t i = 0; i < s->n; i++)
		if (s->segment[i].end <= start || s->segment[i].start >= end)
			s->segment[kept++] = s->segment[i];
	s->n = kept;
	while (at < s->n && s->segment[at].start < start)
		at++;
	return call->op == EMU_CALL_MUNMAP ||
	       segments_insert(s, at,
			       (struct map_segment){ start, end, calc_vm_flags(call->prot, call->flags), file_of(call),
						     call->offset >> EMU_PAGE_SHIFT });
}

/* `call` with its followers. `later`, up to `end`: what the program calls after it. -ESTALE: one by one, then. */
static int64_t map_at_once(struct emu_cpu *cpu, const struct emu_call *call, const struct emu_call *later,
			   const struct emu_call *end)
{
	uint64_t start = place_of(call), brk = 0;
	struct segments s = { .n = 0 };
	int64_t ret;

	for (const struct emu_call *c = call; c <= call + call->followers; c++) {
		if (!segments_apply(&s, c))
			return -ESTALE;
		if (c->flags & EMU_MAP_BRK)
			brk = place_of(c) + page_align(c->len);
	}
	for (; later < end && later->op > EMU_CALL_EXIT; later++) /* no exec, fork, exit */
		if (later->op == EMU_CALL_MPROTECT && is_within(later, start, start + page_align(call->len)) &&
		    (!segments_cut(&s, later->addr) || !segments_cut(&s, later->addr + page_align(later->len))))
			return -ESTALE;
	ret = emu_map_segments(start, page_align(call->len), call->addr, call->flags, s.segment, s.n, brk);
	if (ret >= 0) {
		cpu->first_done = call + 1;
		cpu->last_done = call + call->followers;
	}
	return ret;
}

static int64_t run_call(const struct emu_call *call, const struct emu_call *end, bool strict);

/* A call, after which the program goes on from `later` to `end`; or nothing, if an earlier one has done it. */
static int64_t run_or_skip(const struct emu_call *call, const struct emu_call *later, const struct emu_call *end,
			   bool strict, bool *skipped)
{
	struct emu_cpu *cpu = emu_this_cpu();
	int64_t ret = -ESTALE;

	*skipped = call >= cpu->first_done && call <= cpu->last_done;
	if (unlikely(*skipped))
		return 0;
	if (emu_batch == EMU_BATCH_EXEC && call->followers && !call->stride && !call->times && current->mm) {
		cpu->first_done = cpu->last_done = NULL;
		ret = map_at_once(cpu, call, later, end);
	}
	return ret == -ESTALE ? run_call(call, end, strict) : ret;
}

/* What the kernel maps while it executes a new image. */
static EMU_NOINLINE int64_t load_elf_binary(const struct emu_call *call, const struct emu_call *end, bool strict)
{
	EMU_CALL_SITE();
	const struct emu_list *list = &emu_arena->lists[call->arg];

	exec_mmap(call->addr);
	for (uint32_t i = 0; i < list->nr; i++) {
		bool skipped;
		int64_t ret = run_or_skip(&list->calls[i], call + 1, end, strict, &skipped);

		if (ret < 0)
			return ret;
	}
	return 0;
}

/* As the hardware does. Page tables that are taken away stay until nobody can be looking. */
static bool page_is_there(uint64_t addr, bool write)
{
	struct page_table *table;
	bool there;

	rcu_read_lock();
	table = pte_find(current->mm, addr, NULL);
	there = table && pte_allows(pte_get(table, pte_index(addr)), write) &&
		(!current->mm->tables_know_cpus || table_is_known(table));
	rcu_read_unlock();
	return there;
}

/* Only what the page tables do not allow is a fault. */
static int64_t touch(struct emu_cpu *cpu, uint64_t addr, bool write)
{
	uint64_t start_ns;
	int64_t err;

	if (page_is_there(addr, write))
		return 0;
	start_ns = emu_clock_ns();
	err = emu_sys_fault(addr, write);
	if (!err && cpu->in_phase && emu_arena->phase_record) {
		cpu->faults++;
		emu_hist_record(&cpu->counter->hists[EMU_LAT_FAULT], emu_clock_ns() - start_ns);
	}
	return err;
}

static int64_t touch_range(struct emu_cpu *cpu, const struct emu_call *call)
{
	int64_t err = 0;

	for (uint64_t addr = call->addr & ~(EMU_PAGE_SIZE - 1); addr < call->addr + call->len && !err;
	     addr += EMU_PAGE_SIZE)
		err = touch(cpu, addr, call->prot & EMU_PROT_WRITE);
	return err;
}

/* The pages lie in the order of their addresses; what is there already, as a fault for reading brings more, is no fault. */
static int64_t touch_next(struct emu_cpu *cpu, const struct emu_call *call)
{
	bool write = call->prot & EMU_PROT_WRITE;

	/* How far it was in another range says nothing of this one, which may be shorter. */
	if (cpu->fault_range != call->addr || cpu->next_fault >= call->len)
		cpu->next_fault = 0;
	cpu->fault_range = call->addr;
	for (uint64_t n = 0; n <= call->len; n += EMU_PAGE_SIZE) {
		uint64_t addr = call->addr + cpu->next_fault;

		cpu->next_fault += EMU_PAGE_SIZE;
		if (cpu->next_fault >= call->len) {
			int64_t err = emu_sys_madvise_dontneed(call->addr, call->len);

			if (err)
				return err;
			cpu->next_fault = 0;
		}
		if (!page_is_there(addr, write))
			return touch(cpu, addr, write);
	}
	return -EFAULT;
}

/* EMU_MAP_TOUCH: the mappings of files in [start, end). */
static int64_t touch_mappings(struct emu_cpu *cpu, uint64_t start, uint64_t end, bool all)
{
	const struct mm_ops *mm_ops = emu_mm;

	while (start < end) {
		struct mm_range range = { .start = start, .end = end, .read = true };
		uint64_t from, to = 0;
		bool write = false;
		struct vm_area_struct *vma;
		int64_t err = 0;

		mm_ops->lock(current->mm, &range);
		vma = mm_ops->find(current->mm, start, end, NULL);
		from = vma ? vma->vm_start : end;
		start = vma ? vma->vm_end : end;
		if (vma && vma_mapping(vma) && vma->vm_flags & VM_ACCESS && vma->vm_pgoff < vma->vm_file->nr_pages) {
			to = from + ((vma->vm_file->nr_pages - vma->vm_pgoff) << EMU_PAGE_SHIFT);
			to = to < start ? to : start;
			write = vma->vm_flags & VM_WRITE;
		}
		mm_ops->unlock(current->mm, &range);
		if (from >= end)
			break;
		for (uint64_t addr = from; addr < to && !err; addr += EMU_FAULT_AROUND * EMU_PAGE_SIZE) {
			err = touch(cpu, addr, write);
			if (!all)
				break;
		}
		if (err)
			return err;
	}
	return 0;
}

/* Without jitter: CPUs that keep pace meet again each time. */
static void pace(uint64_t ns)
{
	compute(ns - (emu_clock_ns() - emu_arena->phase.start_ns) % ns);
}

/* 1: nobody is there to play with. */
static int64_t run_micro(struct emu_cpu *cpu, uint32_t op)
{
	struct emu_micro *micro = emu_arena->micro;
	uint64_t rcu;
	bool goes_on;

	switch (op) {
	case EMU_CALL_LINE_WRITE:
		emu_line_write(micro);
		return 0;
	case EMU_CALL_LINE_FETCH_ADD:
		emu_line_fetch_add(micro);
		cpu->added++;
		return 0;
	case EMU_CALL_LINE_CMPXCHG:
		emu_line_cmpxchg(micro);
		cpu->added++;
		return 0;
	case EMU_CALL_LINE_PING_PONG:
		/* Outside a phase no other CPU runs. */
		if (!cpu->in_phase)
			return 0;
		cpu->in_ping_pong = true;
		/* The partner may be waiting for a grace period. Without processes nobody is, and the line is all there is. */
		rcu = current->mm ? emu_rcu_sleep() : 0;
		goes_on = emu_line_ping_pong(micro, &cpu->ping_pong_turn);
		emu_rcu_wake(rcu);
		return !goes_on;
	case EMU_CALL_RWSEM_READ:
		emu_rwsem_read(micro);
		return 0;
	case EMU_CALL_RWSEM_MIXED:
		if (emu_random() & 1) {
			emu_rwsem_read(micro);
			return 0;
		}
		break;
	}
	emu_rwsem_write(micro);
	cpu->written++;
	return 0;
}

/* share_mm: one more thread of task 0's process, as soon as there is one. */
static int64_t join_process(void)
{
	struct emu_arena *arena = emu_arena;

	while (!atomic_load_explicit(&arena->shared_ready, memory_order_acquire))
		emu_futex_wait(&arena->shared_ready, 0);
	if (!arena->shared_mm)
		return emu_set_error(-ESRCH, "CPU 0 has not made the process that all threads share");
	mmget(arena->shared_mm);
	switch_mm(arena->shared_mm);
	return 0;
}

static int64_t exec(const struct emu_call *call, const struct emu_call *end, bool strict)
{
	struct emu_arena *arena = emu_arena;
	int64_t ret;

	if (!arena->config.share_mm || !emu_this_cpu()->in_phase)
		return load_elf_binary(call, end, strict);
	if (current->nr)
		return join_process();
	ret = load_elf_binary(call, end, strict);
	arena->shared_mm = ret ? NULL : current->mm;
	atomic_store_explicit(&arena->shared_ready, 1, memory_order_release);
	emu_futex_wake(&arena->shared_ready, emu_nr_tasks());
	return ret;
}

/* The call with this task's addresses. False: it is about the latest mapping, and there is none. */
static bool resolve(struct emu_call *call)
{
	struct emu_cpu *cpu = emu_this_cpu();

	if (call->times)
		call->len *= emu_nr_tasks();
	if (call->stride != EMU_FROM_LAST)
		call->addr += call->stride * cpu->task.nr;
	else if (cpu->last_mmap)
		call->addr += cpu->last_mmap;
	else
		return false;
	return true;
}

/* As exit_mm(): a moment with mmap_lock for reading, in designs that have one. The task goes on as another thread. */
static EMU_NOINLINE void thread_exit_mm(void)
{
	EMU_CALL_SITE();
	struct mm_range nothing = { .read = true };

	emu_mm->lock(current->mm, &nothing);
	emu_mm->unlock(current->mm, &nothing);
	mmput(current->mm);
}

/* Programs wait for each other: in no system call. 1: that has ended. */
static int64_t meet(struct emu_cpu *cpu, uint32_t op)
{
	uint64_t rcu = emu_rcu_sleep();
	bool goes_on = true;

	if (op == EMU_CALL_PASS)
		cpu->last_mmap = emu_pass(emu_arena->meeting, cpu->last_mmap);
	else
		goes_on = emu_barrier(emu_arena->meeting);
	emu_rcu_wake(rcu);
	return !goes_on;
}

/* `end`: of the list that the call is in. */
static int64_t run_call(const struct emu_call *call, const struct emu_call *end, bool strict)
{
	struct emu_cpu *cpu = emu_this_cpu();
	struct emu_call own;
	int64_t ret = 0;

	if (unlikely(call->stride || call->times)) {
		own = *call;
		if (!resolve(&own))
			return 0;
		call = &own;
	}

	if (unlikely(!current->mm && call->op != EMU_CALL_EXEC && call->op < EMU_CALL_WORK))
		return emu_set_error(-ESRCH, "%s without a process: exec comes first", call_names[call->op]);
	if (call->nr_uses && !work_is_in_kernel(call->op) && !is_fault(call->op))
		kernel_work(call, 0);
	switch ((enum emu_call_op)call->op) {
	case EMU_CALL_EXEC:
		return exec(call, end, strict);
	case EMU_CALL_FORK:
		if (cpu->nr_parents == EMU_MM_STACK)
			return emu_set_error(-EAGAIN, "more than %u processes wait for a child on this CPU", EMU_MM_STACK);
		cpu->parents[cpu->nr_parents++] = current->mm;
		switch_mm(dup_mmap(current->mm));
		return 0;
	case EMU_CALL_EXIT: {
		struct mm_struct *mm = current->mm;

		switch_mm(cpu->nr_parents ? cpu->parents[--cpu->nr_parents] : NULL);
		mmput(mm);
		return 0;
	}
	case EMU_CALL_MMAP:
		ret = emu_sys_mmap(call->addr, call->len, call->prot, call->flags, file_of(call), call->offset);
		cpu->last_mmap = ret < 0 ? 0 : (uint64_t)ret;
		break;
	case EMU_CALL_MUNMAP:
		if (strict && !anything_mapped(call))
			return emu_set_error(-EINVAL, "munmap(%#llx, %llu): nothing is mapped there",
					     (unsigned long long)call->addr, (unsigned long long)call->len);
		ret = emu_sys_munmap(call->addr, call->len);
		break;
	case EMU_CALL_MPROTECT:
		ret = emu_sys_mprotect(call->addr, call->len, call->prot);
		break;
	case EMU_CALL_BRK:
		ret = emu_sys_brk(call->addr);
		break;
	case EMU_CALL_FAULT:
		ret = touch_range(cpu, call);
		break;
	case EMU_CALL_FAULT_NEXT:
		ret = touch_next(cpu, call);
		break;
	case EMU_CALL_DONTNEED:
		ret = emu_sys_madvise_dontneed(call->addr, call->len);
		break;
	case EMU_CALL_CLONE:
		mmget(current->mm);
		break;
	case EMU_CALL_THREAD_EXIT:
		thread_exit_mm();
		break;
	case EMU_CALL_PASS:
	case EMU_CALL_BARRIER:
		return cpu->in_phase ? meet(cpu, call->op) : 0;
	case EMU_CALL_PACE:
		pace(call->len);
		return 0;
	case EMU_CALL_LINE_WRITE:
	case EMU_CALL_LINE_FETCH_ADD:
	case EMU_CALL_LINE_CMPXCHG:
	case EMU_CALL_LINE_PING_PONG:
	case EMU_CALL_RWSEM_WRITE:
	case EMU_CALL_RWSEM_READ:
	case EMU_CALL_RWSEM_MIXED:
		return run_micro(cpu, call->op);
	case EMU_CALL_WORK:
	case EMU_CALL_NR:
		return 0;
	}
	if (ret < 0)
		return emu_set_error((int)ret, "%s(%#llx, %llu): %s", call_names[call->op],
				     (unsigned long long)call->addr, (unsigned long long)call->len,
				     strerror((int)-ret));
	if (strict && call->expect != EMU_NO_EXPECT && call->expect != (uint64_t)ret)
		return emu_set_error(-ESTALE, "%s(%#llx, %llu) returned %#llx, the recording has %#llx",
				     call_names[call->op], (unsigned long long)call->addr,
				     (unsigned long long)call->len, (unsigned long long)ret,
				     (unsigned long long)call->expect);
	return ret;
}

int emu_program_run(uint32_t list_nr, bool record, uint32_t *failed)
{
	struct emu_cpu *cpu = emu_this_cpu();
	const struct emu_list *list = &emu_arena->lists[list_nr];
	bool strict = emu_arena->config.strict;

	atomic_store_explicit(&cpu->state.list, list_nr, memory_order_relaxed);
	for (uint32_t i = 0; i < list->nr; i++) {
		const struct emu_call *call = &list->calls[i];
		uint32_t op = latency_op[call->op];
		uint64_t start_ns;
		bool skipped;
		int64_t ret;

		/* The coordinator looks here when this CPU is gone. */
		atomic_store_explicit(&cpu->state.index, i, memory_order_relaxed);
		atomic_store_explicit(&cpu->state.op, call->op, memory_order_relaxed);
		if (unlikely(cpu->walk_due_ns != UINT64_MAX) && cpu->walk_due_ns <= emu_clock_ns()) {
			ret = emu_walkers_run(cpu);
			if (ret) {
				*failed = i;
				return (int)ret;
			}
		}
		cpu->task.fault_work_ns = is_fault(call->op) ? call->work_ns : 0;
		cpu->locked_ns = call->locked_ns;
		cpu->task.fault_call = is_fault(call->op) && call->nr_uses ? call : NULL;
		if (!work_is_in_kernel(call->op) && !is_fault(call->op))
			work(call->work_ns);
		start_ns = emu_clock_ns();
		if (work_is_in_kernel(call->op))
			kernel_work(call, call->work_ns);
		ret = run_or_skip(call, call + 1, list->calls + list->nr, strict, &skipped);
		emu_rcu_quiescent();
		if (skipped)
			continue;
		if (ret < 0) {
			*failed = i;
			return (int)ret;
		}
		if (ret == 1 && (call->op == EMU_CALL_LINE_PING_PONG || call->op == EMU_CALL_BARRIER))
			return 1;
		emu_machine_called(call->op, start_ns);
		cpu->result.counts[call->op]++;
		if (record && op < EMU_LAT_NR)
			emu_hist_record(&cpu->counter->hists[op], emu_clock_ns() - start_ns);
		if (call->flags & (EMU_MAP_TOUCH | EMU_MAP_TOUCH_ALL) && current->mm) {
			bool one = call->op == EMU_CALL_MMAP;

			ret = touch_mappings(cpu, one ? (uint64_t)ret : 0,
					     one ? (uint64_t)ret + call->len : EMU_TASK_SIZE,
					     call->flags & EMU_MAP_TOUCH_ALL);
			if (ret) {
				*failed = i;
				return emu_set_error((int)ret, "using what %s mapped: %s", call_names[call->op],
						     strerror((int)-ret));
			}
		}
	}
	atomic_store_explicit(&cpu->state.op, EMU_CALL_NR, memory_order_relaxed);
	return 0;
}

int64_t emu_maps(char *buf, uint64_t size)
{
	struct mm_struct *mm = current->mm;
	struct mm_range range = { .end = EMU_TASK_SIZE, .read = true };
	struct vm_area_struct *vma;
	uint64_t used = 0;

	if (!mm)
		return emu_set_error(-ESRCH, "CPU %u has no process", current->cpu);
	emu_mm->lock(mm, &range);
	for (uint64_t at = 0; (vma = emu_mm->find(mm, at, EMU_TASK_SIZE, NULL)); at = vma->vm_end) {
		const char *name = "";

		if (vma->vm_file)
			name = vma->vm_file->name;
		else if (vma->vm_flags & VM_GROWSDOWN)
			name = "[stack]";
		else if (vma->vm_start < mm->brk && vma->vm_end > mm->start_brk)
			name = "[heap]";
		used += (uint64_t)snprintf(used < size ? buf + used : NULL, used < size ? size - used : 0,
					   "%llx-%llx %c%c%c%c %08llx%s%s\n", (unsigned long long)vma->vm_start,
					   (unsigned long long)vma->vm_end, vma->vm_flags & VM_READ ? 'r' : '-',
					   vma->vm_flags & VM_WRITE ? 'w' : '-', vma->vm_flags & VM_EXEC ? 'x' : '-',
					   vma->vm_flags & VM_SHARED ? 's' : 'p',
					   vma->vm_file ? (unsigned long long)(vma->vm_pgoff << EMU_PAGE_SHIFT) : 0ULL,
					   name[0] ? " " : "", name);
	}
	emu_mm->unlock(mm, &range);
	return (int64_t)used;
}
