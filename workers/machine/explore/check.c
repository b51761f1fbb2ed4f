/* SPDX-License-Identifier: MIT */
/*
 * check.c - campaigns: many runs of one scenario, until one fails; then that one made short, and told step by step.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "../../mm/internal.h"
#include "schedule.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define EVENTS_MAX 20000u
#define OUTCOMES_MAX 4096u

#define SCENARIOS_MAX 128u

static const struct emu_scenario *scenarios[SCENARIOS_MAX];
static uint32_t nr_scenarios;
static void *scenario_file;
static struct emu_explore_config config;
static struct emu_explore_status status;
static uint8_t *found; /* the failing schedule */
static uint32_t nr_found;
static struct emu_explore_failure found_failure;
static struct emu_explore_event *events;
static uint32_t nr_events;
static bool is_started;

static struct outcome {
	uint64_t values[8];
	uint64_t count;
} * outcomes;
static uint64_t outcome[8];

static void *reserve(uint64_t bytes)
{
	void *ptr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return ptr == MAP_FAILED ? NULL : ptr;
}

static struct {
	void *ptr;
	uint64_t bytes;
} kept[16];
static uint32_t nr_kept;

static void *keep(uint64_t bytes)
{
	void *ptr = reserve(bytes);

	if (ptr) {
		kept[nr_kept].ptr = ptr;
		kept[nr_kept++].bytes = bytes;
	}
	return ptr;
}

/* Before the first object is allocated; freed by emu_explore_end(). */
bool shadows_create(void)
{
	x.cells = keep((x.full_span / 4 + 4) * sizeof(*x.cells));
	x.versions = keep((x.full_span / 64 + 2) * sizeof(*x.versions));
	x.dirty = keep((x.full_span / 64 + 2) * sizeof(*x.dirty));
	x.heap = keep(x.full_span / 16 + 4);
	x.marked = keep(x.full_span / 4 + 4);
	x.max_readers = 1u << 16;
	x.locations = keep(LOCATIONS_MAX * sizeof(*x.locations));
	x.readers = keep(x.max_readers * sizeof(*x.readers));
	x.decisions = keep(DECISIONS_MAX);
	found = keep(DECISIONS_MAX);
	events = keep(EVENTS_MAX * sizeof(*events));
	outcomes = keep(OUTCOMES_MAX * sizeof(*outcomes));
	return nr_kept == 11;
}

static void shadows_destroy(void)
{
	while (nr_kept) {
		nr_kept--;
		munmap(kept[nr_kept].ptr, kept[nr_kept].bytes);
	}
}

/*
 * Scenarios
 */

extern struct emu_scenario emu_program_scenario[];
uint32_t emu_program_parse(const char *text);
extern const struct emu_scenario emu_rmap_scenarios[], emu_mm_scenarios[], emu_lock_scenarios[],
	emu_litmus_scenarios[];

static int add_scenarios(const struct emu_scenario *list)
{
	for (; list->name && nr_scenarios < SCENARIOS_MAX; list++) {
		if (!list->cpu || !list->nr_cpus || list->nr_cpus > CPUS)
			return emu_set_error(-EINVAL, "scenario %s: 1 to %u CPUs and a function cpu() are needed",
					     list->name, CPUS);
		scenarios[nr_scenarios++] = list;
	}
	return 0;
}

int emu_explore_scenarios(const char *path)
{
	const struct emu_scenario *list;
	int err;

	if (scenario_file)
		dlclose(scenario_file);
	scenario_file = NULL;
	nr_scenarios = 0;
	if (!path) {
		err = add_scenarios(emu_rmap_scenarios);
		err = err ? err : add_scenarios(emu_mm_scenarios);
		err = err ? err : add_scenarios(emu_lock_scenarios);
		err = err ? err : add_scenarios(emu_litmus_scenarios);
		return err ? err : (int)nr_scenarios;
	}
	if (!strncmp(path, "program:", 8)) {
		uint32_t understood = emu_program_parse(path + 8);

		if (path[8 + understood] || !emu_program_scenario[0].nr_cpus)
			return emu_set_error(
				-EINVAL, "a program is made of calls, as 0m8.1.8,f/1w0.9; this is none from '%.12s' on",
				path + 8 + understood);
		err = add_scenarios(emu_program_scenario);
		return err ? err : (int)nr_scenarios;
	}
	scenario_file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!scenario_file)
		return emu_set_error(-ENOEXEC, "%s", dlerror());
	list = dlsym(scenario_file, "emu_scenarios");
	if (!list)
		return emu_set_error(-EINVAL, "does not define `const struct emu_scenario emu_scenarios[]`");
	err = add_scenarios(list);
	return err ? err : (int)nr_scenarios;
}

int emu_explore_scenario(uint32_t n, char *buf, size_t size)
{
	static const char *const kinds[] = { "rmap", "lock", "litmus", "mm" };

	if (n >= nr_scenarios)
		return emu_set_error(-EINVAL, "no scenario %u", n);
	return snprintf(buf, size, "%s\t%s\t%u\t%s", scenarios[n]->name, kinds[scenarios[n]->kind % 4],
			scenarios[n]->nr_cpus, scenarios[n]->help ? scenarios[n]->help : "");
}

void emu_outcome(uint32_t at, uint64_t value)
{
	if (at < 8)
		outcome[at] = value;
}

static void count_outcome(void)
{
	for (uint32_t i = 0; i < status.outcomes; i++) {
		if (!memcmp(outcomes[i].values, outcome, sizeof(outcome))) {
			outcomes[i].count++;
			return;
		}
	}
	if (status.outcomes < OUTCOMES_MAX) {
		memcpy(outcomes[status.outcomes].values, outcome, sizeof(outcome));
		outcomes[status.outcomes++].count = 1;
	}
}

int emu_explore_outcome(uint32_t n, uint64_t values[8], uint64_t *count)
{
	if (n >= status.outcomes)
		return emu_set_error(-EINVAL, "no outcome %u", n);
	memcpy(values, outcomes[n].values, sizeof(outcomes[n].values));
	*count = outcomes[n].count;
	return 0;
}

/*
 * Runs
 */

static void setup(void)
{
	if (rcu_is_modelled())
		emu_rcu = emu_zalloc(emu_rcu_bytes(x.nr_cpus), 0);
	rcu_begin();
	if (x.scenario->setup)
		x.scenario->setup();
	emu_rcu_drain();
	rcu_begin();
}

int emu_explore_schedule(char *buf, size_t size)
{
	char word[16];
	size_t used = 0;
	uint32_t n = nr_found;
	int n_chars;

	while (n && !found[n - 1])
		n--;
	if (size)
		buf[0] = '\0';
	for (uint32_t i = 0, next; i < n; i = next) {
		for (next = i + 1; next < n && found[next] == found[i]; next++)
			;
		n_chars = next - i > 1 ? snprintf(word, sizeof(word), "%c%u", 'a' + found[i], next - i)
				       : snprintf(word, sizeof(word), "%c", 'a' + found[i]);
		if (used + (size_t)n_chars < size)
			memcpy(buf + used, word, (size_t)n_chars + 1);
		used += (size_t)n_chars;
	}
	return (int)used;
}

/* Which words are looked at while others write them: a run that each CPU begins. Whether it fails is not asked. */
static void learn(void)
{
	x.learning = true;
	x.policy = &policy_replay;
	faults(true);
	for (uint8_t first = 1; first <= x.nr_cpus; first++) {
		replay_set(&first, 1);
		run_once();
	}
	faults(false);
	x.learning = false;
	replay_set(NULL, 0);
}

int emu_explore_start(const struct emu_explore_config *c)
{
	int n;

	if (c->bytes != sizeof(*c))
		return emu_set_error(-EINVAL, "struct emu_explore_config has %u bytes here, %zu in the core", c->bytes,
				     sizeof(*c));
	if (c->scenario >= nr_scenarios)
		return emu_set_error(-EINVAL, "no scenario %u", c->scenario);
	if (!x.cells || !emu_rmap || !emu_mm)
		return emu_set_error(-EINVAL, "no arena or no design: emu_boot() comes first");
	config = *c;
	memset(&status, 0, sizeof(status));
	x.scenario = scenarios[c->scenario];
	x.nr_cpus = x.scenario->nr_cpus;
	if (x.nr_cpus > emu_arena->config.nr_cpus)
		return emu_set_error(-EINVAL, "scenario %s needs %u CPUs", x.scenario->name, x.nr_cpus);
	x.max_steps = c->max_steps ? c->max_steps : 20000;
	x.sc_only = c->sc;
	x.tracing = false;
	x.race_watch = 0;
	nr_found = 0;
	nr_events = 0;
	if (machine_create())
		return emu_set_error(-ENOMEM, "no memory for stacks");
	oracle_reset();
	oracle_wrap();
	is_started = true;
	if (c->policy == EMU_POLICY_REPLAY) {
		n = schedule_parse(c->replay ? c->replay : "", found, DECISIONS_MAX);
		if (n < 0)
			return n;
		nr_found = (uint32_t)n;
	}
	if (c->policy == EMU_POLICY_EXHAUSTIVE && dpor_start(c->preemptions))
		return emu_set_error(-ENOMEM, "no memory for the search");
	policy_reset(c->seed, c->depth);
	memory_files_done(emu_arena->boot_objects);
	faults(true);
	n = run_alone(setup);
	faults(false);
	if (n) {
		/* Found without a schedule: there is no run to tell step by step. */
		status.found = x.failure.kind;
		status.by = c->policy;
		found_failure = x.failure;
		nr_found = 0;
		return 0;
	}
	oracle_setup_done();
	memory_begin();
	learn();
	return 0;
}

static void keep_failure(uint32_t by)
{
	memcpy(found, x.decisions, x.nr_decisions);
	nr_found = x.nr_decisions;
	found_failure = x.failure;
	status.found = x.failure.kind;
	status.by = by;
}

/* One more run of the campaign; false: there is none or it failed. */
static bool one_more(void)
{
	uint32_t by = config.policy;

	if (by == EMU_POLICY_MIXED)
		by = status.schedules & 1 ? EMU_POLICY_PCT : EMU_POLICY_RANDOM;
	memset(outcome, 0, sizeof(outcome));
	switch (by) {
	case EMU_POLICY_EXHAUSTIVE:
		x.policy = &policy_exhaustive;
		dpor_begin_run();
		break;
	case EMU_POLICY_REPLAY:
		x.policy = &policy_replay;
		replay_set(found, nr_found);
		break;
	default:
		x.policy = by == EMU_POLICY_PCT ? &policy_pct : &policy_random;
		policy_begin_run(status.schedules);
	}
	run_once();
	status.steps += x.steps;
	if (x.steps > status.longest)
		status.longest = x.steps;
	if (x.failed) {
		status.schedules++;
		keep_failure(by);
		return false;
	}
	if (by == EMU_POLICY_EXHAUSTIVE) {
		if (dpor_run_was_cut()) {
			status.cut++;
		} else {
			status.schedules++;
			count_outcome();
		}
		status.preemptions_cut = dpor_left_out();
		status.done = !dpor_next();
	} else {
		status.schedules++;
		count_outcome();
		status.done = by == EMU_POLICY_REPLAY;
	}
	if (oracle_lock_order(NULL, 0)) {
		status.found = EMU_FOUND_LOCK_ORDER;
		status.by = by;
		found_failure.kind = EMU_FOUND_LOCK_ORDER;
		oracle_lock_order(found_failure.text, sizeof(found_failure.text));
		nr_found = 0;
		return false;
	}
	return !status.done;
}

static uint64_t host_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int emu_explore_slice(uint64_t schedules, uint64_t ns)
{
	uint64_t deadline = host_ns() + ns;

	if (!is_started)
		return emu_set_error(-EINVAL, "emu_explore_start() comes first");
	if (status.found || status.done)
		return 0;
	faults(true);
	for (uint64_t i = 0; i < schedules && one_more(); i++)
		if (!(i & 15) && host_ns() >= deadline)
			break;
	faults(false);
	return 0;
}

void emu_explore_status(struct emu_explore_status *out)
{
	*out = status;
}

void emu_explore_failure(struct emu_explore_failure *failure)
{
	*failure = found_failure;
}

int emu_explore_lock_order(char *buf, size_t size)
{
	return oracle_lock_order(buf, size);
}

/*
 * Shorter
 */

static bool fails_with(const uint8_t *decisions, uint32_t n)
{
	x.policy = &policy_replay;
	replay_set(decisions, n);
	run_once();
	return x.failed && x.failure.kind == found_failure.kind;
}

/* What counts: decisions that are not what would happen anyway, then the length up to the last of them. */
static uint64_t cost(const uint8_t *decisions, uint32_t n)
{
	uint64_t count = 0, last = 0;

	for (uint32_t i = 0; i < n; i++) {
		count += decisions[i] != 0;
		last = decisions[i] ? i + 1 : last;
	}
	return count << 32 | last;
}

/* Is the run just made a better example? Then it is the example. */
static bool keep_if_better(void)
{
	if (cost(x.decisions, x.nr_decisions) >= cost(found, nr_found))
		return false;
	memcpy(found, x.decisions, x.nr_decisions);
	nr_found = x.nr_decisions;
	found_failure = x.failure;
	return true;
}

int emu_explore_shorten(uint64_t ns)
{
	uint64_t deadline = host_ns() + ns;
	uint8_t *trial = malloc(DECISIONS_MAX);
	bool better = true;
	int runs = 0;

	if (!trial)
		return emu_set_error(-ENOMEM, "no memory");
	faults(true);
	while (better && nr_found && host_ns() < deadline) {
		uint32_t at[DECISIONS_MAX / 16], n = 0;

		better = false;
		for (uint32_t i = 0; i < nr_found && n < ARRAY_SIZE(at); i++)
			if (found[i])
				at[n++] = i;
		/* Leave out runs of decisions, long ones first. */
		for (uint32_t size = n; size && !better; size /= 2) {
			for (uint32_t from = 0; from < n && !better && host_ns() < deadline; from += size) {
				memcpy(trial, found, nr_found);
				for (uint32_t i = from; i < from + size && i < n; i++)
					trial[at[i]] = 0;
				runs++;
				better = fails_with(trial, nr_found) && keep_if_better();
				if (better)
					break;
				/* A decision less, and the rest earlier by as much as it was a choice of its own. */
				if (size == 1) {
					memmove(trial + at[from], trial + at[from] + 1, nr_found - at[from] - 1);
					runs++;
					better = fails_with(trial, nr_found - 1) && keep_if_better();
				}
			}
		}
	}
	faults(false);
	free(trial);
	return runs;
}

/* The first `prefix` decisions as they were, then chance. */
static uint32_t prefix;

static uint32_t prefix_cpu(uint32_t otherwise)
{
	return x.nr_decisions < prefix ? policy_replay.next_cpu(otherwise) : policy_random.next_cpu(otherwise);
}

static uint32_t prefix_value(uint32_t n, bool is_rare)
{
	return x.nr_decisions < prefix ? policy_replay.value(n, is_rare) : policy_random.value(n, is_rare);
}

static const struct policy policy_prefix = { .next_cpu = prefix_cpu, .value = prefix_value };

static bool always_fails(uint32_t length, uint32_t tries)
{
	prefix = length;
	x.policy = &policy_prefix;
	for (uint32_t i = 0; i < tries; i++) {
		replay_set(found, nr_found);
		policy_begin_run(i);
		run_once();
		if (!x.failed)
			return false;
	}
	return true;
}

int emu_explore_critical(uint32_t tries)
{
	uint32_t low = 0, high = nr_found;

	if (!status.found || !nr_found)
		return emu_set_error(-EINVAL, "no failing schedule");
	faults(true);
	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (always_fails(middle, tries))
			high = middle;
		else
			low = middle + 1;
	}
	faults(false);
	return (int)low;
}

/*
 * Step by step
 */

static struct emu_explore_event *event_add(void)
{
	struct emu_explore_event *e;
	const struct xcpu *me = x.me;

	if (nr_events == EVENTS_MAX)
		return NULL;
	e = &events[nr_events++];
	memset(e, 0, sizeof(*e));
	e->step = x.steps;
	e->cpu = (uint8_t)me->cpu;
	e->decisions = x.nr_decisions;
	for (uint32_t i = 0; i < 3 && i < me->depth; i++)
		e->pcs[i + 1] = me->shadow[(me->depth - 1 - i) % SHADOW_DEPTH];
	return e;
}

void trace_op(const struct op *op, uint64_t before, uint64_t after, bool is_stale)
{
	struct emu_explore_event *e = x.tracing ? event_add() : NULL;

	if (!e)
		return;
	e->kind = op->kind;
	e->order = op->order;
	e->is_stale = is_stale;
	e->addr = op->addr;
	e->before = before;
	e->after = after;
	e->pcs[0] = op->pc;
	if (op->addr)
		address_name(op->addr, e->name, sizeof(e->name));
}

void trace_note(const char *fmt, ...)
{
	struct emu_explore_event *e;
	va_list ap;

	if (likely(!x.tracing))
		return;
	e = event_add();
	if (!e)
		return;
	e->kind = EMU_EVENT_NOTE;
	va_start(ap, fmt);
	vsnprintf(e->name, sizeof(e->name), fmt, ap);
	va_end(ap);
}

int emu_explore_record(void)
{
	bool again;

	x.tracing = true;
	nr_events = 0;
	faults(true);
	x.race_watch = 0;
	again = fails_with(found, nr_found);
	if (again && found_failure.kind == EMU_FOUND_RACE) {
		/* Where is known now: with the ordinary accesses to it. */
		nr_events = 0;
		again = fails_with(found, nr_found);
	}
	faults(false);
	x.tracing = false;
	x.race_watch = 0;
	if (!again && status.found)
		return emu_set_error(-EAGAIN, "the schedule does not fail again");
	if (again)
		found_failure = x.failure;
	for (uint32_t i = 0; i < nr_events; i++)
		for (uint32_t j = 0; j < nr_events; j++)
			if (events[j].addr && (events[j].addr & ~UINT64_C(7)) == (events[i].addr & ~UINT64_C(7)) &&
			    events[j].cpu < CPUS)
				events[i].others |= 1u << events[j].cpu;
	return (int)nr_events;
}

int emu_explore_event(uint32_t n, struct emu_explore_event *event)
{
	if (n >= nr_events)
		return emu_set_error(-EINVAL, "no event %u", n);
	*event = events[n];
	return 0;
}

int emu_explore_place(uint64_t pc, char *buf, size_t size)
{
	char function[64] = "";
	Dl_info info;

	if (!dladdr((void *)(uintptr_t)pc, &info))
		return snprintf(buf, size, "\t0\t?");
	function_name((uintptr_t)pc, function, sizeof(function));
	return snprintf(buf, size, "%s\t%llu\t%s", info.dli_fname, (unsigned long long)(pc - (uintptr_t)info.dli_fbase),
			function);
}

int emu_explore_name(uint64_t addr, char *buf, size_t size)
{
	if (addr - x.base >= x.full_span)
		return snprintf(buf, size, "%s", "");
	address_name((uintptr_t)addr, buf, size);
	return (int)strlen(buf);
}

void emu_explore_end(void)
{
	if (is_started) {
		oracle_unwrap();
		machine_destroy();
	}
	is_started = false;
	dpor_destroy();
	memory_destroy();
	shadows_destroy();
	memset(&x, 0, sizeof(x));
	x.me = &x.main;
	x.main.cpu = CPUS;
}
