/* SPDX-License-Identifier: GPL-2.0-only */
/* For payloads that try a machine's devices: the last disk is left alone, and has to work whatever happens to others. */
#ifndef WITNESS_H
#define WITNESS_H

#include "virtio.h"

struct block_header {
	uint32_t type, priority;
	uint64_t sector;
};

extern struct device witness;
extern uint32_t step[3];	/* where the payload is: device type, queue, kind */

/* Say why and where, and end the run: isa-debug-exit gets 9. */
void fail(const char *why) __attribute__((noreturn));
/* Begin with the last disk; what is random begins with `seed=` (1) of the command line. */
void find_witness(int mmio);
/* It works: what is written to it is read back. */
void others_live(void);
/* It works; say so, and sleep. */
void still_alive(void) __attribute__((noreturn));

#endif
