/* SPDX-License-Identifier: MIT */
/*
 * loader.c - loads a design, built in or a user's, and refuses one that does not fit, saying why in one line.
 */
#include "internal.h"
#include "../mm/internal.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KIND_RMAP, KIND_MM, KIND_NR };

static const char *const kind_name[KIND_NR] = { "rmap", "mm" };
static const char *const kind_symbol[KIND_NR] = { "emu_rmap_ops", "emu_mm_ops" };

#define PARAMS_MAX 16u

static struct {
	void *handle;
	const struct emu_param *params;
	uint32_t defaults[PARAMS_MAX]; /* what the parameters were before this load set them */
} loaded[KIND_NR];

/* Every rmap design takes this; see enum emu_batch. */
static const char *const batch_names[] = { "none", "exit", "exit+fork", "exit+fork+exec" };
static const struct emu_param batch_param = {
	.name = "batch",
	.value = &emu_batch,
	.max = EMU_BATCH_EXEC,
	.values = batch_names,
	.help = "VMAs of one file under one hold of its lock: none, or up to 8 at exit, in fork, in exec",
};

struct hook {
	const char *name;
	bool present;
};

static int check(uint32_t kind, const char *name, uint32_t version, uint32_t want, uint32_t machine, uint32_t size,
		 uint32_t slot, const struct hook *hooks, uint32_t nr_hooks)
{
	if (!name)
		return emu_set_error(-EINVAL, "%s has no name", kind_symbol[kind]);
	if (version != want)
		return emu_set_error(-EINVAL, "%s: %s interface version %u, this emu has %u", name, kind_name[kind],
				     version, want);
	if (machine != EMU_MACHINE_ID)
		return emu_set_error(-EINVAL, "%s: compiled for machine %u, this engine is machine %u", name, machine,
				     EMU_MACHINE_ID);
	if (size > slot)
		return emu_set_error(-EINVAL, "%s: .size is %u, the arena's slot has %u bytes", name, size, slot);
	for (uint32_t i = 0; i < nr_hooks; i++)
		if (!hooks[i].present)
			return emu_set_error(-EINVAL, "%s: required hook .%s is NULL", name, hooks[i].name);
	return 0;
}

#define HOOK(ops, hook) { #hook, (ops)->hook != NULL }

static int check_rmap(const struct rmap_ops *o)
{
	const struct hook hooks[] = {
		HOOK(o, init),	   HOOK(o, insert), HOOK(o, remove), HOOK(o, prepare),
		HOOK(o, complete), HOOK(o, walk),   HOOK(o, mapped),
	};

	return check(KIND_RMAP, o->name, o->version, EMU_RMAP_VERSION, o->machine, o->size, EMU_RMAP_SLOT, hooks,
		     ARRAY_SIZE(hooks));
}

static int check_mm(const struct mm_ops *o)
{
	const struct hook hooks[] = {
		HOOK(o, init), HOOK(o, lock),	HOOK(o, unlock), HOOK(o, find),
		HOOK(o, link), HOOK(o, change), HOOK(o, fault),
	};

	return check(KIND_MM, o->name, o->version, EMU_MM_VERSION, o->machine, o->size, EMU_MM_SLOT, hooks,
		     ARRAY_SIZE(hooks));
}

/* "a number from 1 to 8", or the words that are accepted. */
static const char *describe_values(const struct emu_param *p, char *buf, size_t size)
{
	size_t used;

	if (!p->values) {
		snprintf(buf, size, "a number from %u to %u", p->min, p->max);
		return buf;
	}
	used = (size_t)snprintf(buf, size, "one of");
	for (uint32_t i = p->min; i <= p->max && used < size; i++)
		used += (size_t)snprintf(buf + used, size - used, "%s %s", i > p->min ? "," : "", p->values[i]);
	return buf;
}

/* The number that the text stands for, or UINT64_MAX. */
static uint64_t parse_value(const struct emu_param *p, const char *text, size_t len)
{
	unsigned long value;
	char *end;

	if (p->values) {
		for (uint32_t i = p->min; i <= p->max; i++)
			if (strlen(p->values[i]) == len && !strncmp(p->values[i], text, len))
				return i;
		return UINT64_MAX;
	}
	if (!len || *text < '0' || *text > '9')
		return UINT64_MAX;
	value = strtoul(text, &end, 10);
	return end == text + len && value >= p->min && value <= p->max ? value : UINT64_MAX;
}

/* Sets "k=v,k=v". */
static int set_params(const char *design, const struct emu_param *params, const struct emu_param *common,
		      const char *text)
{
	while (text && *text) {
		size_t len = strcspn(text, ",");
		const char *equals = memchr(text, '=', len);
		size_t key = equals ? (size_t)(equals - text) : len;
		const char *given = equals ? equals + 1 : text + len;
		const struct emu_param *p = params;
		uint64_t value;
		char buf[128];

		while (p && p->name && (strlen(p->name) != key || strncmp(p->name, text, key)))
			p++;
		if (common && strlen(common->name) == key && !strncmp(common->name, text, key))
			p = common;
		if (!p || !p->name)
			return emu_set_error(-EINVAL, "%s has no parameter '%.*s'", design, (int)key, text);
		value = parse_value(p, given, (size_t)(text + len - given));
		if (value == UINT64_MAX)
			return emu_set_error(-EINVAL, "%s: parameter %s must be %s, not '%.*s'", design, p->name,
					     describe_values(p, buf, sizeof(buf)), (int)(text + len - given), given);
		*p->value = (uint32_t)value;
		text += len + (text[len] == ',');
	}
	return 0;
}

static int keep_defaults(uint32_t kind, const char *design, const struct emu_param *params)
{
	uint32_t n = 0;

	for (const struct emu_param *p = params; p && p->name; p++, n++) {
		if (n == PARAMS_MAX)
			return emu_set_error(-EINVAL, "%s has more than %u parameters", design, PARAMS_MAX);
		if (kind == KIND_RMAP && !strcmp(p->name, batch_param.name))
			return emu_set_error(-EINVAL, "%s has a parameter 'batch': that is one of all rmap designs", design);
		loaded[kind].defaults[n] = *p->value;
	}
	return 0;
}

/* Parameters go back to their defaults: the file may stay in memory and be loaded again. */
static void unload(uint32_t kind)
{
	uint32_t n = 0;

	if (!loaded[kind].handle)
		return;
	for (const struct emu_param *p = loaded[kind].params; p && p->name; p++)
		*p->value = loaded[kind].defaults[n++];
	dlclose(loaded[kind].handle);
	loaded[kind].handle = NULL;
	if (kind == KIND_RMAP) {
		emu_rmap = NULL;
		emu_batch = EMU_BATCH_EXIT;
	} else {
		emu_mm = NULL;
	}
}

int emu_design_load(uint32_t kind, const char *path, const char *params)
{
	const struct emu_param *accepted;
	const char *name;
	void *handle, *ops;
	int err;

	if (kind >= KIND_NR)
		return emu_set_error(-EINVAL, "no design kind %u", kind);
	unload(kind);
	handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!handle)
		return emu_set_error(-ENOEXEC, "%s", dlerror());
	ops = dlsym(handle, kind_symbol[kind]);
	if (!ops) {
		/* Without the path, which is of what was compiled: the caller knows the user's file. */
		err = emu_set_error(-EINVAL, "does not define `const struct %s_ops %s`", kind_name[kind],
				    kind_symbol[kind]);
		goto out;
	}
	if (kind == KIND_RMAP) {
		err = check_rmap(ops);
		name = ((const struct rmap_ops *)ops)->name;
		accepted = ((const struct rmap_ops *)ops)->params;
	} else {
		err = check_mm(ops);
		name = ((const struct mm_ops *)ops)->name;
		accepted = ((const struct mm_ops *)ops)->params;
	}
	if (!err)
		err = keep_defaults(kind, name, accepted);
	if (err)
		goto out;
	loaded[kind].handle = handle;
	loaded[kind].params = accepted;
	err = set_params(name, accepted, kind == KIND_RMAP ? &batch_param : NULL, params);
	if (err) {
		unload(kind);
		return err;
	}
	if (kind == KIND_RMAP)
		emu_rmap = ops;
	else
		emu_mm = ops;
	return 0;
out:
	dlclose(handle);
	return err;
}

void emu_design_unload(void)
{
	for (uint32_t kind = 0; kind < KIND_NR; kind++)
		unload(kind);
}

static size_t describe_param(const struct emu_param *p, char *buf, size_t size)
{
	char number[16];

	snprintf(number, sizeof(number), "%u", *p->value);
	return (size_t)snprintf(buf, size, "%s=%s: %s\n", p->name, p->values ? p->values[*p->value] : number, p->help);
}

int emu_design_params(uint32_t kind, char *buf, size_t size)
{
	size_t used = 0;

	if (kind >= KIND_NR || !loaded[kind].handle)
		return emu_set_error(-EINVAL, "no design is loaded");
	if (size)
		buf[0] = '\0';
	for (const struct emu_param *p = loaded[kind].params; p && p->name; p++)
		used += describe_param(p, used < size ? buf + used : NULL, used < size ? size - used : 0);
	if (kind == KIND_RMAP)
		used += describe_param(&batch_param, used < size ? buf + used : NULL, used < size ? size - used : 0);
	return (int)used;
}
