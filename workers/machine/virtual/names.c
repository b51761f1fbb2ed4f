/* SPDX-License-Identifier: MIT */
/*
 * names.c - the function that an address is in. For messages: it reads files.
 *
 * dladdr() knows what a library exports; static functions are in the symbol table of its file, unless it was stripped.
 */
#define _GNU_SOURCE
#include "virtual.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool in_table(const char *file, uint64_t size, uint64_t address, char *name, size_t name_size)
{
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)(const void *)file;
	const Elf64_Shdr *sections = (const Elf64_Shdr *)(const void *)(file + header->e_shoff);

	if (size < sizeof(*header) || memcmp(header->e_ident, ELFMAG, SELFMAG) ||
	    header->e_shoff + header->e_shnum * sizeof(*sections) > size)
		return false;
	for (uint32_t i = 0; i < header->e_shnum; i++) {
		const Elf64_Shdr *table = &sections[i];
		const Elf64_Sym *symbols = (const Elf64_Sym *)(const void *)(file + table->sh_offset);
		const Elf64_Shdr *strings = &sections[table->sh_link < header->e_shnum ? table->sh_link : 0];

		if (table->sh_type != SHT_SYMTAB || table->sh_offset + table->sh_size > size)
			continue;
		for (uint64_t n = 0; n < table->sh_size / sizeof(*symbols); n++) {
			const Elf64_Sym *s = &symbols[n];
			const char *at = file + strings->sh_offset + s->st_name;

			if (ELF64_ST_TYPE(s->st_info) != STT_FUNC || address - s->st_value >= s->st_size ||
			    at >= file + size)
				continue;
			/* Up to a dot: what the compiler made of a part of the function. */
			snprintf(name, name_size, "%.*s", (int)strcspn(at, "."), at);
			return true;
		}
	}
	return false;
}

void function_name(uintptr_t pc, char *name, size_t size)
{
	const char *base;
	Dl_info info;
	struct stat st;
	void *file;
	bool found;
	int fd;

	if (!dladdr((void *)pc, &info)) {
		snprintf(name, size, "?");
		return;
	}
	if (info.dli_sname) {
		snprintf(name, size, "%s", info.dli_sname);
		return;
	}
	base = strrchr(info.dli_fname, '/');
	snprintf(name, size, "%s+%#llx", base ? base + 1 : info.dli_fname,
		 (unsigned long long)(pc - (uintptr_t)info.dli_fbase));
	fd = open(info.dli_fname, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	found = !fstat(fd, &st) && st.st_size > (off_t)sizeof(Elf64_Ehdr);
	file = found ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
	close(fd);
	if (file == MAP_FAILED)
		return;
	in_table(file, (uint64_t)st.st_size, pc - (uintptr_t)info.dli_fbase, name, size);
	munmap(file, (size_t)st.st_size);
}
