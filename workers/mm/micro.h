/* SPDX-License-Identifier: MIT */
/*
 * micro.h - contended lines and one contended lock, without any process (micro.c). Not for designs.
 */
#ifndef EMU_MM_MICRO_H
#define EMU_MM_MICRO_H

#include <emu/machine.h>

struct emu_micro;
struct emu_meeting;

/* Set-up, on node 0, and back to what it was after that: every phase begins so. No CPU runs meanwhile. */
struct emu_micro *emu_micro_create(void);
void emu_micro_reset(struct emu_micro *micro);

/* One store to the line that all CPUs write, waited for until it is through. */
void emu_line_write(struct emu_micro *micro);
void emu_line_fetch_add(struct emu_micro *micro);
/* The same by compare-and-exchange, as often as it takes: of one word with emu_line_fetch_add(). */
void emu_line_cmpxchg(struct emu_micro *micro);

/*
 * Hands the line of a pair, CPUs 2k and 2k + 1, to the other side: waits until *turn hand-overs have been made, makes
 * the next and sets *turn to what to wait for then. *turn begins as the CPU's number & 1. False: nobody is there to
 * play with, or not any more. Who has played says so when it ends, so that its partner does not wait for ever.
 */
bool emu_line_ping_pong(struct emu_micro *micro, uint64_t *turn);
void emu_line_ping_pong_end(struct emu_micro *micro);

/* A section: a word that the lock guards is added to, or looked at. */
void emu_rwsem_write(struct emu_micro *micro);
void emu_rwsem_read(struct emu_micro *micro);

/* Where tasks of a program wait for each other, spinning, or asleep where they share CPUs; set-up and reset as above. */
struct emu_meeting *emu_meeting_create(void);
void emu_meeting_reset(struct emu_meeting *meeting);

/* Waits until all tasks are here. False: one has left, so that they will never be again. */
bool emu_barrier(struct emu_meeting *meeting);

/*
 * Gives a page's address to the next task, once that has taken the one before, and waits for one of the task before. In a
 * ring that others have left: the caller's own comes back, or 0 as nobody has one for it any more.
 */
uint64_t emu_pass(struct emu_meeting *meeting, uint64_t addr);

/* The task's part of the phase is over: nobody waits for it any more. */
void emu_leave(struct emu_meeting *meeting);

/* What is at an address, for reports; NULL: nothing of these. */
const char *emu_micro_name(const struct emu_micro *micro, const void *at);

/* How often the two counters were added to since set-up. */
void emu_micro_totals(const struct emu_micro *micro, uint64_t *added, uint64_t *written);

#endif
