// SPDX-License-Identifier: GPL-2.0-only
/*
 * One 16-byte store to `address=` (0xd0000ffc, across a page's end): KVM sees two writes, the second from a place in
 * its buffer that is not aligned to its size.
 */
#include "payload.h"

int main(void)
{
	uint32_t address = option("address", 0xd0000ffc), cr0, cr4;

	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"((cr0 & ~4u) | 2));	/* no EM, but MP: SSE is there */
	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1 << 9));	/* OSFXSR */
	asm volatile("movups %%xmm0, (%0)" : : "r"(address) : "memory");
	print("stored\n");
	return 0;
}
