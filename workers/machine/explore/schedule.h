/* SPDX-License-Identifier: MIT */
/*
 * schedule.h - a schedule from its text.
 */
#ifndef EMU_EXPLORE_SCHEDULE_H
#define EMU_EXPLORE_SCHEDULE_H

#include <stdint.h>

/* The decisions that the text "a5b2c" stands for, at most `max`, and how many; -EINVAL: see emu_error(). */
int schedule_parse(const char *text, uint8_t *to, uint32_t max);

#endif
