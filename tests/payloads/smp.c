// SPDX-License-Identifier: GPL-2.0-only
/* Starts the other processors with INIT and SIPI, waits until `cpus=` (2) run in all, and prints how many did. */
#include "payload.h"

#define LAPIC_ICR	((volatile uint32_t *)0xfee00300)
#define LAPIC_SPURIOUS	((volatile uint32_t *)0xfee000f0)
#define TO_OTHERS	0xc0000
#define ASSERT		0x4000
#define INIT		0x500
#define SIPI		0x600
#define TRAMPOLINE	0x8000
#define PATIENCE	20000

extern const char ap_trampoline[], ap_trampoline_end[];
extern volatile uint32_t ap_count;

int main(void)
{
	uint32_t others = option("cpus", 2) - 1, i;

	for (i = 0; i < (uint32_t)(ap_trampoline_end - ap_trampoline); i++)
		((volatile char *)TRAMPOLINE)[i] = ap_trampoline[i];
	*LAPIC_SPURIOUS = 0x1ff;
	*LAPIC_ICR = TO_OTHERS | ASSERT | INIT;
	*LAPIC_ICR = TO_OTHERS | ASSERT | SIPI | TRAMPOLINE >> 12;
	for (i = 0; ap_count < others && i < PATIENCE; i++)
		inb(0x80);	/* an exit: the others get their turn on a small host */
	print("cpus ");
	print_hex(ap_count + 1);
	print("\n");
	return ap_count == others ? 0 : 1;
}
