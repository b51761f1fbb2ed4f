/* SPDX-License-Identifier: MIT */
/*
 * locks.c - scenarios of the locks themselves: they guard two words, which nobody may find different.
 */
#include <emu/lock_scenarios.h>

LOCK_SCENARIOS(emu_lock_scenarios);
