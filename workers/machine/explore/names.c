/* SPDX-License-Identifier: MIT */
/*
 * names.c - what an address in the arena is, and where a CPU is, for messages.
 */
#include "internal.h"

#include <stdio.h>

struct field {
	uint32_t offset;
	const char *name;
};

/* The last one that begins at or before the offset. */
static const char *field_of(const struct field *fields, uint32_t n, uint64_t offset)
{
	const char *name = "";

	for (uint32_t i = 0; i < n && fields[i].offset <= offset; i++)
		name = fields[i].name;
	return name;
}

static const struct field rwsem_fields[] = {
	{ offsetof(struct rw_semaphore, count), "count" },
	{ offsetof(struct rw_semaphore, owner), "owner" },
	{ offsetof(struct rw_semaphore, osq), "osq" },
	{ offsetof(struct rw_semaphore, wait_lock), "wait_lock" },
	{ offsetof(struct rw_semaphore, wait_first), "wait_first" },
	{ offsetof(struct rw_semaphore, wait_last), "wait_last" },
};

static const struct field task_fields[] = {
	{ offsetof(struct task_struct, cpu), "" },
	{ offsetof(struct task_struct, on_cpu), "on_cpu" },
	{ offsetof(struct task_struct, wake_token), "wake_token" },
	{ offsetof(struct task_struct, waiter), "waiter.next" },
	{ offsetof(struct task_struct, waiter.prev), "waiter.prev" },
	{ offsetof(struct task_struct, waiter.timeout_ns), "waiter.timeout_ns" },
	{ offsetof(struct task_struct, waiter.type), "waiter.type" },
	{ offsetof(struct task_struct, waiter.handoff_set), "waiter.handoff_set" },
	{ offsetof(struct task_struct, waiter.waiting), "waiter.waiting" },
	{ offsetof(struct task_struct, mm), "task" },
};

static const struct field sync_fields[] = {
	{ offsetof(struct emu_percpu_sync, osq.next), "osq_node.next" },
	{ offsetof(struct emu_percpu_sync, osq.prev), "osq_node.prev" },
	{ offsetof(struct emu_percpu_sync, osq.locked), "osq_node.locked" },
	{ offsetof(struct emu_percpu_sync, osq.nudge), "osq_node.nudge" },
	{ offsetof(struct emu_percpu_sync, qspin.next), "qspin_node.next" },
	{ offsetof(struct emu_percpu_sync, qspin.locked), "qspin_node.locked" },
};

static const struct field vma_fields[] = {
	{ offsetof(struct vm_area_struct, vm_start), "vm_start" },
	{ offsetof(struct vm_area_struct, vm_end), "vm_end" },
	{ offsetof(struct vm_area_struct, vm_mm), "vm_mm" },
	{ offsetof(struct vm_area_struct, vm_flags), "vm_flags" },
	{ offsetof(struct vm_area_struct, i_mmap_index), "i_mmap_index" },
	{ offsetof(struct vm_area_struct, vm_rb), "vm_rb" },
	{ offsetof(struct vm_area_struct, shared), "shared" },
	{ offsetof(struct vm_area_struct, vm_file), "vm_file" },
	{ offsetof(struct vm_area_struct, vm_pgoff), "vm_pgoff" },
};

void address_name(uintptr_t addr, char *buf, size_t size)
{
	const struct emu_arena *arena = emu_arena;
	const char *at = (const char *)addr, *cpus = (const char *)arena->cpus, *files = (const char *)arena->files;
	const struct object *object;
	uint64_t offset;
	const char *lock = lock_name(addr, &offset);

	if (lock) {
		snprintf(buf, size, "%s.%s", lock, field_of(rwsem_fields, ARRAY_SIZE(rwsem_fields), offset));
		return;
	}
	if (at >= cpus && at < cpus + arena->config.nr_cpus * sizeof(struct emu_cpu)) {
		uint64_t cpu = (uint64_t)(at - cpus) / sizeof(struct emu_cpu);
		uint64_t in = (uint64_t)(at - cpus) % sizeof(struct emu_cpu);
		const char *what = "cpu";

		if (in < sizeof(struct task_struct))
			what = field_of(task_fields, ARRAY_SIZE(task_fields), in);
		else if (in < offsetof(struct emu_cpu, state))
			what = field_of(sync_fields, ARRAY_SIZE(sync_fields), in - offsetof(struct emu_cpu, sync));
		snprintf(buf, size, "CPU%llu %s", (unsigned long long)cpu, what);
		return;
	}
	if (at >= files && at < files + arena->config.nr_files * sizeof(struct address_space)) {
		const struct address_space *file = &arena->files[(uint64_t)(at - files) / sizeof(*file)];
		uint64_t in = (uint64_t)(at - (const char *)file);

		snprintf(buf, size, "%s i_mmap+%lld", file->name,
			 (long long)in - (long long)offsetof(struct address_space, i_mmap));
		return;
	}
	object = object_at(addr);
	if (object) {
		char function[48];

		offset = addr - object->addr;
		function_name(object->pc, function, sizeof(function));
		if (object->bytes == sizeof(struct vm_area_struct) && !strcmp(function, "vm_area_alloc"))
			snprintf(buf, size, "vma %u %s", object_number(object),
				 field_of(vma_fields, ARRAY_SIZE(vma_fields), offset));
		else
			snprintf(buf, size, "object %u (%u bytes, %s)+%llu", object_number(object), object->bytes,
				 function, (unsigned long long)offset);
		return;
	}
	snprintf(buf, size, "arena+%#llx", (unsigned long long)(addr - (uintptr_t)arena));
}

void stack_text(const struct xcpu *cpu, char *buf, size_t size)
{
	uint32_t depth = cpu->depth < SHADOW_DEPTH ? cpu->depth : SHADOW_DEPTH;
	size_t used = 0;

	buf[0] = '\0';
	if (depth > 6)
		depth = 6;
	for (uint32_t i = cpu->depth - depth; i < cpu->depth && used < size; i++) {
		char name[64];

		function_name(cpu->shadow[i % SHADOW_DEPTH], name, sizeof(name));
		used += (size_t)snprintf(buf + used, size - used, "%s%s", used ? ">" : "", name);
	}
}
