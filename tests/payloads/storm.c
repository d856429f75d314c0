// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes `n=` (1,000) exits of one kind: `in` and `out` (to the VMM, port `port=`), `cpuid` (KVM alone), `mmio` (to the
 * VMM, address `address=`).
 */
#include "payload.h"

static void cpuid(void)
{
	uint32_t eax = 0, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
}

int main(void)
{
	uint32_t n = option("n", 1000);
	uint16_t port = option("port", COM1 + 7);
	volatile uint32_t *address = (volatile uint32_t *)option("address", 0xff000000);

	print("start\n");
	if (has_word("in"))
		while (n--)
			inb(port);
	else if (has_word("out"))
		while (n--)
			outb(port, 0);
	else if (has_word("mmio"))
		while (n--)
			*address;
	else if (has_word("cpuid"))
		while (n--)
			cpuid();
	else
		return 1;
	print("end\n");
	return 0;
}
