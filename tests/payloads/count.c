// SPDX-License-Identifier: GPL-2.0-only
/* Runs 2 * `n=` (1,000,000) instructions and no exit between: what the CPU is worth. */
#include "payload.h"

int main(void)
{
	uint32_t n = option("n", 1000000);

	print("start\n");
	asm volatile("1: dec %0; jnz 1b" : "+r"(n));
	print("end\n");
	return 0;
}
