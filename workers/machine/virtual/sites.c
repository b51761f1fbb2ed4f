/* SPDX-License-Identifier: MIT */
/*
 * sites.c - which code pulled which line, spun on it or slept on it: the tables behind the reports.
 *
 *   objects  what lines are lines of: one entry for "line 1 of an object of 128 bytes", however many such there are
 *   paths    the functions that a CPU was in, from the shadow stack that __tsan_func_entry() keeps
 *   sites    (object, path, kind, word of the line): how often and how long
 *
 * Looked up, in phases that are recorded, for each line that comes from another CPU and for each wait, so never for an
 * access that hits. All tables are bounded: what finds its table full is counted under object or path 0, "elsewhere".
 * Addresses of the host decide only where an entry lies, not whether it has room, so that equal runs give equal reports.
 */
#include "virtual.h"
#include "../../mm/micro.h"

#include <stdio.h>
#include <string.h>

#define PATHS 16384u
#define PATH_SLOTS (2 * PATHS)
#define OBJECTS 4096u
#define OBJECT_SLOTS (2 * OBJECTS)
#define SITES 32768u
#define SITE_SLOTS (2 * SITES)
#define NAMES 1024u

/* What is known of the layout. */
enum object_type { OF_ANY_TYPE, OF_RWSEM, OF_VMA };

/* Entry 0 of each table is for what found it full. */
struct object {
	uint64_t key;
	uint32_t base; /* of the line in its object */
	enum object_type type;
	char name[EMU_SYMBOL_MAX];
};

struct site {
	uint64_t key;
	uint64_t count, remote, wait_ps;
};

static struct {
	uint64_t paths[PATHS]; /* a place in the innermost function << 16 | the path to its caller */
	struct object objects[OBJECTS];
	struct site sites[SITES];
	uint16_t path_slots[PATH_SLOTS], object_slots[OBJECT_SLOTS], site_slots[SITE_SLOTS];
	uint32_t nr_paths, nr_objects, nr_sites;
	/* Of functions: finding one means reading a file, and a report asks for the same few again and again. */
	struct {
		uintptr_t pc;
		char name[64];
	} names[NAMES];
} *tables;

static uint64_t mixed(uint64_t hash, uint64_t value)
{
	hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
	return hash ^ hash >> 29;
}

bool sites_create(void)
{
	tables = keep(1, sizeof(*tables));
	if (!tables)
		return false;
	tables->nr_paths = tables->nr_objects = tables->nr_sites = 1;
	snprintf(tables->objects[0].name, EMU_SYMBOL_MAX, "elsewhere");
	return true;
}

/*
 * Stacks: a tree of paths. Each frame of the shadow stack remembers its node, so that the second line that a function
 * pulls finds its path at once, and the first one at most looks up the functions that were entered since.
 */

static uint32_t path_find(uint32_t parent, uintptr_t pc)
{
	uint64_t key = (uint64_t)pc << 16 | parent;
	uint32_t at, id;

	for (at = (uint32_t)mixed(0, key) % PATH_SLOTS; (id = tables->path_slots[at]); at = (at + 1) % PATH_SLOTS)
		if (tables->paths[id] == key)
			return id;
	if (tables->nr_paths == PATHS)
		return 0;
	id = tables->nr_paths++;
	tables->path_slots[at] = (uint16_t)id;
	tables->paths[id] = key;
	return id;
}

static uint32_t stack_look_up(void)
{
	uint32_t low = vm.depth > SHADOW_DEPTH ? vm.depth - SHADOW_DEPTH : 0, i = vm.depth - 1, path;

	while (i > low && !vm.shadow[(i - 1) % SHADOW_DEPTH].path)
		i--;
	path = i > low ? vm.shadow[(i - 1) % SHADOW_DEPTH].path : 0;
	for (; i < vm.depth; i++)
		path = vm.shadow[i % SHADOW_DEPTH].path = path_find(path, vm.shadow[i % SHADOW_DEPTH].pc);
	return path;
}

uint32_t stack_here(void)
{
	uint32_t path = vm.depth ? vm.shadow[(vm.depth - 1) % SHADOW_DEPTH].path : 0;

	return path || !vm.depth ? path : stack_look_up();
}

static const char *name_of(uintptr_t pc)
{
	uint32_t at = (uint32_t)mixed(0, pc) % NAMES;

	if (tables->names[at].pc != pc) {
		function_name(pc, tables->names[at].name, sizeof(tables->names[at].name));
		tables->names[at].pc = pc;
	}
	return tables->names[at].name;
}

int emu_virtual_stack_path(uint32_t stack, char *buf, size_t size)
{
	uintptr_t pcs[SHADOW_DEPTH];
	uint32_t depth = 0;
	size_t used = 0;

	if (size)
		buf[0] = '\0';
	for (; stack && depth < SHADOW_DEPTH; stack = tables->paths[stack] & 0xffff)
		pcs[depth++] = (uintptr_t)(tables->paths[stack] >> 16);
	while (depth--)
		used += (size_t)snprintf(used < size ? buf + used : NULL, used < size ? size - used : 0, "%s%s",
					 used ? ">" : "", name_of(pcs[depth]));
	return (int)used;
}

/*
 * Objects
 */

enum { OF_NOTHING, OF_LOCK, OF_CPU, OF_FILE, OF_MICRO, OF_HEAP };

static uint64_t key_of(int kind, uint64_t which, uint64_t line)
{
	return (uint64_t)kind << 60 | which << 32 | line;
}

/* The class is known from emu_machine_lock_seen(), the type is not: a rwsem says in two places whose it is. */
static bool is_rwsem(const void *line, uint32_t class_id)
{
	const struct rw_semaphore *sem = line;

	return sem->class_id == class_id &&
	       (atomic_load_explicit(&sem->owner, memory_order_relaxed) & ~RWSEM_READER_OWNED) ==
		       (uintptr_t)vm.fiber->task;
}

/* The number of the new object, 0: no room. */
static uint32_t object_new(uint64_t key, uint32_t at, uint32_t line, uint32_t base, enum object_type type)
{
	struct object *o;
	char *number;

	if (tables->nr_objects == OBJECTS)
		return 0;
	tables->object_slots[at] = (uint16_t)tables->nr_objects;
	o = &tables->objects[tables->nr_objects];
	o->key = key;
	o->base = base;
	o->type = type;
	emu_virtual_symbol(((uint64_t)line << 6) + vm.base - (uintptr_t)emu_arena, o->name, sizeof(o->name));
	/* All CPUs' alike are one. */
	number = strstr(o->name, " of CPU ");
	if (number)
		*number = '\0';
	if (type == OF_VMA)
		snprintf(o->name, sizeof(o->name), "vm_area_struct");
	return tables->nr_objects++;
}

/* Any design may allocate objects of a VMA's size. A VMA has bounds and an mm. */
static bool is_vma(const char *object, uint32_t bytes)
{
	const struct vm_area_struct *vma = (const void *)object;
	uint64_t mm = (uintptr_t)vma->vm_mm - (uintptr_t)emu_arena;

	return bytes >= sizeof(*vma) && bytes < 2 * sizeof(*vma) && vma->vm_start < vma->vm_end &&
	       !((vma->vm_start | vma->vm_end) & (EMU_PAGE_SIZE - 1)) && mm < emu_arena->bytes &&
	       emu_object_bytes(vma->vm_mm) >= sizeof(struct mm_struct);
}

static uint32_t object_find(uint32_t line)
{
	const struct emu_arena *arena = emu_arena;
	const char *address = (const char *)(vm.base + ((uint64_t)line << 6));
	const char *cpus = (const char *)arena->cpus, *files = (const char *)arena->files, *micro;
	uint32_t class_id = vm.transits[line].lock_class, bytes, base = 0, at;
	enum object_type type = OF_ANY_TYPE;
	uint64_t key = 0;

	if (class_id) {
		type = is_rwsem(address, class_id) ? OF_RWSEM : OF_ANY_TYPE;
		key = key_of(OF_LOCK, class_id, type);
	} else if (address >= cpus && address < cpus + arena->config.nr_cpus * sizeof(struct emu_cpu)) {
		uint64_t in = (uint64_t)(address - cpus) % sizeof(struct emu_cpu);
		uint64_t part = in < offsetof(struct emu_cpu, sync)	   ? 0 :
				in < offsetof(struct emu_cpu, sync.qspin) ? offsetof(struct emu_cpu, sync) :
				in < offsetof(struct emu_cpu, state)	   ? offsetof(struct emu_cpu, sync.qspin) :
									     offsetof(struct emu_cpu, state);

		base = (uint32_t)(in - part);
		key = key_of(OF_CPU, part, base);
	} else if (address >= files && address < files + arena->config.nr_files * sizeof(struct address_space)) {
		key = key_of(OF_FILE, 0, (uint64_t)(address - files) >> 6);
	} else if ((micro = emu_micro_name(arena->micro, address))) {
		key = key_of(OF_MICRO, 0, (uint32_t)(uintptr_t)micro);
	} else if ((bytes = emu_object_bytes(address))) {
		base = emu_object_offset(address);
		type = is_vma(address - base, bytes) ? OF_VMA : OF_ANY_TYPE;
		key = key_of(OF_HEAP, bytes << 2 | type, base);
	} else {
		key = key_of(OF_NOTHING, 1, 0);
	}
	for (at = (uint32_t)mixed(0, key) % OBJECT_SLOTS; tables->object_slots[at]; at = (at + 1) % OBJECT_SLOTS)
		if (tables->objects[tables->object_slots[at]].key == key)
			return tables->object_slots[at];
	return object_new(key, at, line, base, type);
}

static uint32_t object_of(uint32_t line)
{
	struct transit *t = &vm.transits[line];

	if (unlikely(!t->object))
		t->object = (uint16_t)object_find(line);
	return t->object;
}

void emu_machine_lock_seen(const void *lock, uint32_t class_id)
{
	uint64_t offset = (uintptr_t)lock - vm.base;
	struct transit *t;

	if (offset >= vm.span)
		return;
	t = &vm.transits[offset >> 6];
	if (t->lock_class == class_id)
		return;
	t->lock_class = (uint16_t)class_id;
	t->object = 0;
	object_of((uint32_t)(offset >> 6));
}

/*
 * Sites
 */

static struct site *site_of(uint32_t object, uint32_t kind, uint32_t word)
{
	uint64_t key = (uint64_t)object << 32 | stack_here() << 8 | kind << 4 | word;
	uint32_t at, id;

	for (at = (uint32_t)mixed(0, key) % SITE_SLOTS; (id = tables->site_slots[at]); at = (at + 1) % SITE_SLOTS)
		if (tables->sites[id].key == key)
			return &tables->sites[id];
	if (tables->nr_sites == SITES)
		return &tables->sites[0];
	id = tables->nr_sites++;
	tables->site_slots[at] = (uint16_t)id;
	tables->sites[id].key = key;
	return &tables->sites[id];
}

void site_count(uint32_t line, enum emu_site_kind kind, uint32_t in_line, const struct fiber *from, uint64_t wait_ps)
{
	uint32_t remote = from && from->node != vm.fiber->node;
	struct site *s = site_of(object_of(line), kind, in_line >> 3);

	s->count += from || kind > EMU_SITE_MODIFY;
	s->remote += remote;
	s->wait_ps += wait_ps;
}

void site_waited(uint64_t offset, enum emu_site_kind kind, uint64_t start_ps, uint64_t wait_ps)
{
	if (offset < vm.full_span && vm.recorded)
		site_count((uint32_t)(offset >> 6), kind, (uint32_t)offset & 63, NULL, wait_ps);
	slice_waited(offset, kind, start_ps / 1000);
}

/*
 * Reports
 */

uint32_t emu_virtual_lines(struct emu_virtual_line *lines, uint32_t n)
{
	n = n < tables->nr_objects ? n : tables->nr_objects;
	for (uint32_t i = 0; i < n; i++) {
		lines[i].wait_ps = lines[i].transfers = lines[i].remote_transfers = 0;
		memcpy(lines[i].symbol, tables->objects[i].name, sizeof(lines[i].symbol));
	}
	for (uint32_t i = 0; i < tables->nr_sites; i++) {
		const struct site *s = &tables->sites[i];
		uint32_t line = (uint32_t)(s->key >> 32);

		if (line >= n || ((s->key >> 4) & 0xf) > EMU_SITE_MODIFY)
			continue;
		lines[line].wait_ps += s->wait_ps;
		lines[line].transfers += s->count;
		lines[line].remote_transfers += s->remote;
	}
	return n;
}

uint32_t emu_virtual_sites(struct emu_virtual_site *sites, uint32_t n)
{
	n = n < tables->nr_sites ? n : tables->nr_sites;
	for (uint32_t i = 0; i < n; i++) {
		const struct site *s = &tables->sites[i];

		sites[i] = (struct emu_virtual_site){
			.line = (uint32_t)(s->key >> 32),
			.stack = (uint32_t)(s->key >> 8) & 0xffffff,
			.kind = (uint32_t)(s->key >> 4) & 0xf,
			.offset = tables->objects[s->key >> 32].base + ((uint32_t)s->key & 0xf) * 8,
			.count = s->count,
			.remote = s->remote,
			.wait_ps = s->wait_ps,
		};
	}
	return n;
}

void emu_virtual_node_transfers(uint64_t *counts)
{
	memcpy(counts, vm.node_transfers, (uint64_t)vm.cost.nr_nodes * vm.cost.nr_nodes * sizeof(*counts));
}

struct field {
	uint32_t first, end;
	const char *name;
};
#define FIELD(type, field) { offsetof(type, field), offsetof(type, field) + sizeof(((type *)0)->field), #field }

static const struct field rwsem_fields[] = {
	FIELD(struct rw_semaphore, count),	FIELD(struct rw_semaphore, owner),
	FIELD(struct rw_semaphore, osq),	FIELD(struct rw_semaphore, wait_lock),
	FIELD(struct rw_semaphore, wait_first), FIELD(struct rw_semaphore, wait_last),
};
static const struct field vma_fields[] = {
	FIELD(struct vm_area_struct, vm_start), FIELD(struct vm_area_struct, vm_end),
	FIELD(struct vm_area_struct, vm_mm),	FIELD(struct vm_area_struct, vm_flags),
	FIELD(struct vm_area_struct, vm_rb),	FIELD(struct vm_area_struct, rb_subtree_start),
	FIELD(struct vm_area_struct, rb_subtree_end), FIELD(struct vm_area_struct, rb_subtree_gap),
	FIELD(struct vm_area_struct, shared),	FIELD(struct vm_area_struct, vm_file),
	FIELD(struct vm_area_struct, vm_pgoff),
};
static const struct field task_fields[] = {
	FIELD(struct task_struct, on_cpu),
	FIELD(struct task_struct, wake_token),
	FIELD(struct task_struct, waiter),
};
static const struct field osq_fields[] = {
	FIELD(struct osq_node, next), FIELD(struct osq_node, prev),
	FIELD(struct osq_node, locked), FIELD(struct osq_node, nudge),
};
static const struct field qspin_fields[] = {
	FIELD(struct qspin_node, next),
	FIELD(struct qspin_node, locked),
};

/* The names of all fields that have a part of the 8 bytes from `offset` on: "osq/wait_lock". */
int emu_virtual_field(uint32_t line, uint32_t offset, char *buf, size_t size)
{
	const struct object *o = &tables->objects[line];
	uint32_t kind = (uint32_t)(o->key >> 60), part = (uint32_t)(o->key >> 32) & 0xfffffff, nr = 0;
	const struct field *fields = NULL;
	size_t used = 0;

	if (o->type == OF_VMA) {
		fields = vma_fields;
		nr = ARRAY_SIZE(vma_fields);
	} else if (o->type == OF_RWSEM) {
		fields = rwsem_fields;
		nr = ARRAY_SIZE(rwsem_fields);
	} else if (kind == OF_CPU && !part) {
		fields = task_fields;
		nr = ARRAY_SIZE(task_fields);
	} else if (kind == OF_CPU && part == offsetof(struct emu_cpu, sync)) {
		fields = osq_fields;
		nr = ARRAY_SIZE(osq_fields);
	} else if (kind == OF_CPU && part == offsetof(struct emu_cpu, sync.qspin)) {
		fields = qspin_fields;
		nr = ARRAY_SIZE(qspin_fields);
	}
	if (size)
		buf[0] = '\0';
	for (uint32_t i = 0; i < nr; i++)
		if (fields[i].first < offset + 8 && fields[i].end > offset)
			used += (size_t)snprintf(used < size ? buf + used : NULL, used < size ? size - used : 0,
						 "%s%s", used ? "/" : "", fields[i].name);
	return (int)used;
}
