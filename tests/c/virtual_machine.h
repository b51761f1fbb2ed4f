/* SPDX-License-Identifier: MIT */
/*
 * virtual_machine.h - a virtual machine to test on: sockets x nodes x L3 domains x cores x SMT, round numbers as costs.
 *
 *   struct shape shape = { .sockets = 2, .nodes = 6, .l3 = 2, .cores = 8, .smt = 2 };   (per unit above)
 *   machine_boot(&shape, nr_cpus, seed);     an arena, a cost model, nobody's designs; CPU numbers as Linux has them
 *   machine_share(&shape, nr_cpus, nr_tasks, seed);    likewise, with more tasks than CPUs
 *   machine_zalloc(size, node)               arena memory
 *   emu_virtual_run(fn, arg)                 what the test does on every CPU
 *   machine_show(what)                       prints what came out, for a comparison with other processors
 *   machine_end()
 *
 * Costs: same core 12 ns, same L3 38, else 137 + 38.5 a hop between dies + 70.5 a hop between sockets, over three legs.
 */
#ifndef VIRTUAL_MACHINE_H
#define VIRTUAL_MACHINE_H

#include "test.h"

#include <emu/virtual.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

struct shape {
	uint32_t sockets, nodes, l3, cores, smt;
};

static struct emu_cost_model machine_cost = {
	.bytes = sizeof(struct emu_cost_model),
	.outstanding_stores = 10,
	.private_lines = 4096,
	.l3_lines = 262144,
	.access_ps = 1000,
	.l3_hit_ps = 13000,
	.smt_ps = 12000,
	.c2c_l3_ps = 38000,
	.c2c_base_ps = 137000,
	.atomic_ps = 5000,
	.occupancy_ps = 12500,
	.futex_wait_ps = 240000,
	.futex_wake_ps = 140000,
	.wake_to_run_ps = 3000000,
	.ipi_send_ps = 500000,
	.ipi_round_trip_ps = 2300000,
	.ipi_each_ps = 500000,
	.ipi_handler_ps = 400000,
	.context_switch_ps = 1500000,
	.smt_speed_permille = 1000,
	.time_slice_ps = 3000000000,
	.event_limit = 1000000000,
};

static struct {
	void *base;
	uint64_t bytes;
	uint32_t *node, *l3, *core, *leg, *dram;
} machine;

/* What the way between two nodes costs. */
static inline uint32_t machine_leg_ps(const struct shape *s, uint32_t a, uint32_t b)
{
	return (a % s->nodes != b % s->nodes ? 38500u : 0u) + (a / s->nodes != b / s->nodes ? 70500u : 0u);
}

/* Ready for emu_file_add() and so on, or for emu_virtual_run() after machine_model(). */
static inline void machine_format(const struct shape *s, uint32_t nr_cpus, struct emu_config *config)
{
	uint32_t nodes = s->sockets * s->nodes, cores = nodes * s->l3 * s->cores;
	uint32_t nr_tasks = config->nr_cpus ? config->nr_cpus : nr_cpus;

	ASSERT(nr_cpus <= cores * s->smt, "%u CPUs", nr_cpus);
	machine.node = calloc(nr_tasks, sizeof(uint32_t));
	machine.l3 = calloc(nr_cpus, sizeof(uint32_t));
	machine.core = calloc(nr_cpus, sizeof(uint32_t));
	machine.leg = calloc(nodes * nodes, sizeof(uint32_t));
	machine.dram = calloc(nodes * nodes, sizeof(uint32_t));
	ASSERT(machine.node && machine.l3 && machine.core && machine.leg && machine.dram, "memory");
	for (uint32_t i = 0; i < nr_cpus; i++) {
		machine.core[i] = i % cores;
		machine.l3[i] = machine.core[i] / s->cores;
		machine.node[i] = machine.l3[i] / s->l3;
	}
	for (uint32_t i = nr_cpus; i < nr_tasks; i++)
		machine.node[i] = machine.node[i % nr_cpus];
	for (uint32_t a = 0; a < nodes; a++) {
		for (uint32_t b = 0; b < nodes; b++) {
			machine.leg[a * nodes + b] = machine_leg_ps(s, a, b);
			machine.dram[a * nodes + b] = a == b ? 90000 : a / s->nodes == b / s->nodes ? 135000 : 205000;
		}
	}
	config->bytes = sizeof(*config);
	config->nr_cpus = nr_tasks;
	config->nr_hw_cpus = nr_cpus;
	config->nr_nodes = nodes;
	config->node_of_cpu = machine.node;
	machine.bytes = emu_arena_overhead(config) + nr_tasks * (UINT64_C(5) << 18) + nodes * (UINT64_C(4) << 20);
	machine.base = mmap(NULL, machine.bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT(machine.base != MAP_FAILED, "mmap: %s", strerror(errno));
	ASSERT(!emu_arena_format(machine.base, machine.bytes, config), "%s", emu_error());
}

static inline void machine_model(const struct emu_config *config)
{
	machine_cost.nr_cpus = config->nr_hw_cpus;
	machine_cost.nr_nodes = config->nr_nodes;
	machine_cost.node_of_cpu = machine.node;
	machine_cost.l3_of_cpu = machine.l3;
	machine_cost.core_of_cpu = machine.core;
	machine_cost.leg_ps = machine.leg;
	machine_cost.dram_ps = machine.dram;
	ASSERT(!emu_virtual_config(&machine_cost), "%s", emu_error());
}

static inline void machine_boot(const struct shape *s, uint32_t nr_cpus, uint64_t seed)
{
	struct emu_config config = { .seed = seed };

	machine_format(s, nr_cpus, &config);
	machine_model(&config);
}

static inline void machine_share(const struct shape *s, uint32_t nr_cpus, uint32_t nr_tasks, uint64_t seed)
{
	struct emu_config config = { .nr_cpus = nr_tasks, .seed = seed };

	machine_format(s, nr_cpus, &config);
	machine_model(&config);
}

static inline void *machine_zalloc(size_t size, uint32_t node)
{
	void *ptr;

	emu_cpu_attach(0);
	ptr = emu_zalloc(size, node);
	emu_current = NULL;
	return ptr;
}

static inline void machine_show(const char *what)
{
	struct emu_virtual_stats stats;

	emu_virtual_stats(&stats);
	printf("\nvirtual result of %s: %llu accesses, %llu ps, trace %016llx\n", what,
	       (unsigned long long)stats.accesses, (unsigned long long)stats.now_ps,
	       (unsigned long long)stats.trace_hash);
}

static inline void machine_end(void)
{
	emu_virtual_end();
	munmap(machine.base, machine.bytes);
	free(machine.node);
	free(machine.l3);
	free(machine.core);
	free(machine.leg);
	free(machine.dram);
}

#endif
