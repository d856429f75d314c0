// SPDX-License-Identifier: GPL-2.0-only
/* Ends the run in the way that the command line names. */
#include "payload.h"

int main(void)
{
	static const struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) no_idt = { 0, 0 };

	if (has_word("poweroff"))
		outw(0x604, 5 << 10 | 1 << 13);		/* PM1a_CNT: SLP_TYP 5, SLP_EN */
	else if (has_word("cf9"))
		outb(0xcf9, 0x06);
	else if (has_word("i8042"))
		outb(0x64, 0xfe);
	else if (has_word("pvpanic"))
		outb(0x505, inb(0x505) & 1);
	else if (has_word("triple"))
		asm volatile("lidt %0; div %1" : : "m"(no_idt), "r"(0), "a"(0), "d"(0));
	else if (!has_word("hang"))
		return 1;
	for (;;)
		asm volatile("hlt");
}
