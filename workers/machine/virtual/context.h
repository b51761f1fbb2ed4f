/* SPDX-License-Identifier: MIT */
/*
 * context.h - a stack that code runs on, and the switch to another.
 *
 * context_switch() stores the callee-saved registers on the running stack, leaves its pointer in *save_sp and goes on
 * where `sp` was left. A context that is left for good needs nothing done: its stack is prepared anew.
 *
 * context_faults() has a handler called for SIGSEGV and SIGBUS, on a stack of its own since the one that ran may be used
 * up; NULL: whoever had them before has them again.
 */
#ifndef EMU_CONTEXT_H
#define EMU_CONTEXT_H

#include <signal.h>
#include <stdint.h>

/* The next switch to *sp begins in entry(), which must not return, on [stack, stack + bytes). *sp starts as NULL. */
void context_prepare(void **sp, char *stack, uint64_t bytes, void (*entry)(void));
void context_switch(void **save_sp, void *sp);
void context_free(void **sp);
void context_faults(void (*handler)(int number, siginfo_t *info, void *context));

#endif
