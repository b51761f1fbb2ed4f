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

static struct {
	void *handle;
	const struct emu_param *params;
} loaded[KIND_NR];

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
		HOOK(o, init),	  HOOK(o, insert),   HOOK(o, insert_after), HOOK(o, remove),
		HOOK(o, prepare), HOOK(o, complete), HOOK(o, walk),	    HOOK(o, mapped),
	};

	return check(KIND_RMAP, o->name, o->version, EMU_RMAP_VERSION, o->machine, o->size, EMU_RMAP_SLOT, hooks,
		     ARRAY_SIZE(hooks));
}

static int check_mm(const struct mm_ops *o)
{
	const struct hook hooks[] = {
		HOOK(o, init),	 HOOK(o, write_lock), HOOK(o, write_unlock), HOOK(o, find),
		HOOK(o, link),	 HOOK(o, unlink),     HOOK(o, resize),	     HOOK(o, free_area),
	};

	return check(KIND_MM, o->name, o->version, EMU_MM_VERSION, o->machine, o->size, EMU_MM_SLOT, hooks,
		     ARRAY_SIZE(hooks));
}

/* Sets "k=v,k=v". */
static int set_params(const char *design, const struct emu_param *params, const char *text)
{
	while (text && *text) {
		size_t len = strcspn(text, ",");
		const char *equals = memchr(text, '=', len);
		size_t key = equals ? (size_t)(equals - text) : len;
		const struct emu_param *p = params;
		unsigned long value;
		char *end;

		while (p && p->name && (strlen(p->name) != key || strncmp(p->name, text, key)))
			p++;
		if (!p || !p->name)
			return emu_set_error(-EINVAL, "%s has no parameter '%.*s'", design, (int)key, text);
		value = equals ? strtoul(equals + 1, &end, 10) : 0;
		if (!equals || end == equals + 1 || end != text + len || value < p->min || value > p->max)
			return emu_set_error(-EINVAL, "%s: parameter %s must be a number from %u to %u, not '%.*s'",
					     design, p->name, p->min, p->max,
					     equals ? (int)(len - key - 1) : 0, equals ? equals + 1 : "");
		*p->value = (uint32_t)value;
		text += len + (text[len] == ',');
	}
	return 0;
}

int emu_design_load(uint32_t kind, const char *path, const char *params)
{
	const struct emu_param *accepted;
	const char *name;
	void *handle, *ops;
	int err;

	if (kind >= KIND_NR)
		return emu_set_error(-EINVAL, "no design kind %u", kind);
	handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!handle)
		return emu_set_error(-ENOEXEC, "%s", dlerror());
	ops = dlsym(handle, kind_symbol[kind]);
	if (!ops) {
		err = emu_set_error(-EINVAL, "%s does not define `const struct %s_ops %s`", path, kind_name[kind],
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
		err = set_params(name, accepted, params);
	if (err)
		goto out;
	if (loaded[kind].handle)
		dlclose(loaded[kind].handle);
	loaded[kind].handle = handle;
	loaded[kind].params = accepted;
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
	for (uint32_t kind = 0; kind < KIND_NR; kind++) {
		if (loaded[kind].handle)
			dlclose(loaded[kind].handle);
		loaded[kind].handle = NULL;
	}
	emu_rmap = NULL;
	emu_mm = NULL;
}

int emu_design_params(uint32_t kind, char *buf, size_t size)
{
	size_t used = 0;

	if (kind >= KIND_NR || !loaded[kind].handle)
		return emu_set_error(-EINVAL, "no design is loaded");
	if (size)
		buf[0] = '\0';
	for (const struct emu_param *p = loaded[kind].params; p && p->name; p++)
		used += (size_t)snprintf(used < size ? buf + used : NULL, used < size ? size - used : 0,
					 "%s=%u: %s\n", p->name, *p->value, p->help);
	return (int)used;
}
