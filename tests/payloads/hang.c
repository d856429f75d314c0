// SPDX-License-Identifier: GPL-2.0-only
/*
 * A flush of the first disk does not return on the host, and the disk is reset in the middle of it: the reset is complete
 * when the flush has returned, and the console and the last disk go on meanwhile. At the end it says `alive`, and sleeps.
 */
#include "witness.h"

#define FLUSH	4

static struct device target;
static struct ring ring;
static struct block_header header = { .type = FLUSH };

/* Text to the console, which has to be taken. */
static void console_lives(void)
{
	static struct device console;
	static struct ring text;

	if (!find_device(&console, witness.mmio, TYPE_CONSOLE, 0))
		fail("no console");
	begin(&console, 0);
	set_queue(&console, 1, &text);
	finish(&console);
	describe(&text, 0, "text", 4, 0);
	offer(&text, 0);
	notify(&console, 1);
	if (!wait_used(&text, 1))
		fail("the console does not take text");
}

/* Ask the first disk for a flush. */
static void flush_target(volatile uint8_t *answer)
{
	begin(&target, 0);
	set_queue(&target, 0, &ring);
	finish(&target);
	describe(&ring, 0, &header, sizeof(header), DESC_NEXT);
	describe(&ring, 1, answer, 1, DESC_WRITE);
	offer(&ring, 0);
	notify(&target, 0);
}

int main(void)
{
	static volatile uint8_t answer = 0xff;

	find_witness(has_word("mmio"));
	if (!find_device(&target, witness.mmio, TYPE_BLOCK, 0))
		fail("no disk");
	flush_target(&answer);
	others_live();
	console_lives();
	set_status(&target, 0);
	if (!get_status(&target) || answer != 0xff)
		fail("it was no hang");
	print("waiting\n");
	while (get_status(&target)) {
		others_live();
		console_lives();
	}
	answer = 0xff;
	flush_target(&answer);
	if (!wait_used(&ring, 1) || answer)
		fail("it does not work again");
	still_alive();
}
