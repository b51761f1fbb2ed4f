/* SPDX-License-Identifier: MIT */
/*
 * program.c - a scenario written down in one line, for programs that are made by chance and made smaller by trying.
 *
 *   0m8.1.8,u8.1/0p1.1x,p1.1/1f/2w0.9,q
 *
 * CPUs are separated by '/', calls by ','. A CPU's text begins with its process; CPUs of one process are its threads.
 * Every process has 4 pages of the file mapped at page 0 of its range. Numbers are pages.
 *   mA.N.O  map N pages at A, of the file from O on; with x: executable
 *   uA.N    unmap          pA.N  protect read-only; with x: executable
 *   f       fork, and the child exits
 *   wF.L    walk the file's pages F to L       tF.L  the same by trylock       q  is the file mapped?
 */
#include <emu/scenario.h>

#include <errno.h>

#define CALLS_MAX 16u
#define BASE UINT64_C(0x10000000)
#define MMAP_BASE UINT64_C(0x40000000)

struct call {
	char op;
	bool exec;
	uint8_t a, b, c;
};

/* Constant while a program runs, and outside the arena. */
static struct {
	uint32_t process;
	uint32_t nr;
	struct call calls[CALLS_MAX];
} program[EMU_EXPLORE_CPUS];

struct processes {
	struct mm_struct *mm[EMU_EXPLORE_CPUS];
};

static struct processes *processes;
static uint32_t nr_processes;

extern EMU_EXPORT const struct rmap_ops *emu_rmap;

static int look(struct vm_area_struct *vma, void *arg)
{
	*(uint64_t *)arg += vma->vm_start ^ vma->vm_end ^ vma->vm_pgoff;
	return 0;
}

static void walk(const struct call *call, bool try_lock)
{
	uint64_t sum = 0;
	int ret = emu_rmap->walk(emu_file(0), call->a, call->b, try_lock, look, &sum);

	EMU_ASSERT(!ret || (ret == -EAGAIN && try_lock) || ret == -EOPNOTSUPP, "walk: %d", ret);
}

static void run(const struct call *call)
{
	uint64_t addr = BASE + call->a * EMU_PAGE_SIZE, len = call->b * EMU_PAGE_SIZE;
	uint32_t prot = EMU_PROT_READ | (call->exec ? EMU_PROT_EXEC : 0);

	switch (call->op) {
	case 'm':
		emu_sys_mmap(addr, len, prot, EMU_MAP_PRIVATE | EMU_MAP_FIXED, emu_file(0), call->c * EMU_PAGE_SIZE);
		break;
	case 'u':
		emu_sys_munmap(addr, len);
		break;
	case 'p':
		emu_sys_mprotect(addr, len, prot); /* there may be holes */
		break;
	case 'f':
		mmput(dup_mmap(current->mm));
		break;
	case 'w':
	case 't':
		walk(call, call->op == 't');
		break;
	default:
		(void)emu_rmap->mapped(emu_file(0));
	}
}

static void setup(void)
{
	struct call whole = { .op = 'm', .b = 4 };

	processes = emu_zalloc(sizeof(*processes), 0);
	for (uint32_t i = 0; i < nr_processes; i++) {
		current->mm = NULL;
		exec_mmap(MMAP_BASE);
		processes->mm[i] = current->mm;
		run(&whole);
	}
	current->mm = NULL;
}

static void cpu(uint32_t number)
{
	current->mm = processes->mm[program[number].process];
	for (uint32_t i = 0; i < program[number].nr; i++)
		run(&program[number].calls[i]);
	current->mm = NULL;
}

static void check(void)
{
	for (uint32_t i = 0; i < nr_processes; i++)
		mmput(processes->mm[i]);
}

struct emu_scenario emu_program_scenario[] = {
	{ .name = "program",
	  .help = "a program made by chance",
	  .kind = EMU_SCENARIO_RMAP,
	  .setup = setup,
	  .cpu = cpu,
	  .check = check },
	{ 0 },
};

static const char *number(const char *text, uint8_t *value)
{
	uint32_t n = 0;

	while (*text >= '0' && *text <= '9' && n < 256)
		n = 10 * n + (uint32_t)(*text++ - '0');
	*value = n < 64 ? (uint8_t)n : 63;
	return text;
}

static const char *parse_call(const char *text, struct call *call)
{
	uint8_t *values[] = { &call->a, &call->b, &call->c };
	uint32_t wanted;

	*call = (struct call){ .op = *text++ };
	wanted = call->op == 'm' ? 3 : call->op == 'u' || call->op == 'p' || call->op == 'w' || call->op == 't' ? 2 : 0;
	if (!wanted && call->op != 'f' && call->op != 'q')
		return NULL;
	for (uint32_t i = 0; i < wanted; i++) {
		if (i && *text++ != '.')
			return NULL;
		text = number(text, values[i]);
	}
	call->exec = *text == 'x';
	return text + call->exec;
}

/* Returns how many characters were understood; all of them: the scenario is this program. */
uint32_t emu_program_parse(const char *text);
uint32_t emu_program_parse(const char *text)
{
	const char *at = text, *next;
	uint32_t cpus = 0;

	nr_processes = 0;
	while (cpus < EMU_EXPLORE_CPUS && *at >= '0' && *at < '0' + (int)EMU_EXPLORE_CPUS) {
		program[cpus].process = (uint32_t)(*at++ - '0');
		program[cpus].nr = 0;
		if (program[cpus].process >= nr_processes)
			nr_processes = program[cpus].process + 1;
		while (program[cpus].nr < CALLS_MAX && *at && *at != '/') {
			next = parse_call(at, &program[cpus].calls[program[cpus].nr]);
			if (!next || (*next && *next != ',' && *next != '/'))
				return (uint32_t)(at - text);
			program[cpus].nr++;
			at = next + (*next == ',');
		}
		cpus++;
		if (*at != '/')
			break;
		at++;
	}
	emu_program_scenario[0].nr_cpus = cpus;
	return (uint32_t)(at - text);
}
