// SPDX-License-Identifier: GPL-2.0-only
/* Writes `value=` to physical address `address=` in size `size=` (4), reads it back, prints that. */
#include "payload.h"

int main(void)
{
	uint32_t address = option("address", 0xff000000), value = option("value", 0x12345678), back;

	switch (option("size", 4)) {
	case 1:
		*(volatile uint8_t *)address = value;
		back = *(volatile uint8_t *)address;
		break;
	case 2:
		*(volatile uint16_t *)address = value;
		back = *(volatile uint16_t *)address;
		break;
	default:
		*(volatile uint32_t *)address = value;
		back = *(volatile uint32_t *)address;
	}
	print_hex(back);
	print("\n");
	return 0;
}
