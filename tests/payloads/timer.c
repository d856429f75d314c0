// SPDX-License-Identifier: GPL-2.0-only
/*
 * The 8254, from the first access on, which the word on the command line chooses: `control`, `count`, `read`, `gate`
 * (speaker port written) or `speaker` (speaker port read). Prints a channel's status, then waits for it to count.
 */
#include "payload.h"

#define CHANNEL0	0x40
#define CHANNEL2	0x42
#define CONTROL		0x43
#define SPEAKER		0x61
#define RATE_GENERATOR	0x34		/* channel 0, both bytes, mode 2 */
#define ONE_SHOT	0xb0		/* channel 2, both bytes, mode 0 */
#define STATUS_OF(n)	(0xe0 | 2 << (n))	/* read-back: its status only */
#define LATCH0		0x00
#define GATE2		0x01
#define OUT2		0x20

static void print_status(int channel)
{
	outb(CONTROL, STATUS_OF(channel));
	print("status ");
	print_hex(inb(CHANNEL0 + channel) & 0x3f);	/* without its output */
	print("\n");
}

static uint32_t count0(void)
{
	uint32_t low;

	outb(CONTROL, LATCH0);
	low = inb(CHANNEL0);
	return low | inb(CHANNEL0) << 8;
}

static void run_channel0(int programmed)
{
	uint32_t first;

	if (!programmed)
		outb(CONTROL, RATE_GENERATOR);
	outb(CHANNEL0, 0x34);
	outb(CHANNEL0, 0x12);
	print_status(0);
	first = count0();
	while (count0() == first)
		;
	print(count0() <= 0x1234 ? "it counts\n" : "it counts from elsewhere\n");
}

/* As Linux calibrates its time stamp counter. */
static void run_channel2(void)
{
	outb(CONTROL, ONE_SHOT);
	outb(CHANNEL2, 0x00);
	outb(CHANNEL2, 0x10);
	print_status(2);
	while (!(inb(SPEAKER) & OUT2))
		;
	print("it counts\n");
}

int main(void)
{
	if (has_word("control")) {
		outb(CONTROL, RATE_GENERATOR);
		run_channel0(1);
	} else if (has_word("count")) {
		outb(CHANNEL0, 0x55);
		run_channel0(0);
	} else if (has_word("read")) {
		print_hex(inb(CHANNEL0));
		print("\n");
		run_channel0(0);
	} else if (has_word("gate")) {
		outb(SPEAKER, GATE2);
		run_channel2();
	} else if (has_word("speaker")) {
		print_hex(inb(SPEAKER) & ~0x10);	/* without the refresh clock */
		print("\n");
		outb(SPEAKER, GATE2);
		run_channel2();
	}
	return 0;
}
