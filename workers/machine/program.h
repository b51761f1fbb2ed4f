/* SPDX-License-Identifier: MIT */
/*
 * program.h - the interpreter of call lists, for the engines.
 */
#ifndef EMU_MACHINE_PROGRAM_H
#define EMU_MACHINE_PROGRAM_H

#include <emu/control.h>

/*
 * Runs a list once on this CPU. On -errno, *failed is the index of the call and emu_error() says why. 1: a call had
 * nobody to work with; the CPU's part of the phase is over.
 */
int emu_program_run(uint32_t list, bool record, uint32_t *failed);

/* Sets `followers` of each call of a list. */
void emu_program_find_groups(struct emu_call *calls, uint32_t n);

#endif
