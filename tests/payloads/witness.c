// SPDX-License-Identifier: GPL-2.0-only
/* The disk that has to go on, and what is said when it does not. */
#include "witness.h"

struct device witness;
uint32_t step[3];

static struct ring ring;
static struct block_header header;
static uint32_t block[128];
static volatile uint8_t status;
static uint16_t witnessed;

void fail(const char *why)
{
	uint32_t i;

	outb(COM1 + 3, 3);
	outb(COM1 + 4, 3);
	print("\n");
	print(why);
	for (i = 0; i < 3; i++) {
		print(" ");
		print_hex(step[i]);
	}
	print("\n");
	outl(DEBUG_EXIT, 9);
	for (;;)
		asm volatile("cli; hlt");
}

static int ask(uint32_t type)
{
	header.type = type;
	header.sector = 1;
	status = 0xff;
	describe(&ring, 0, &header, sizeof(header), DESC_NEXT);
	describe(&ring, 1, block, sizeof(block), type ? DESC_NEXT : DESC_NEXT | DESC_WRITE);
	describe(&ring, 2, &status, 1, DESC_WRITE);
	offer(&ring, 0);
	notify(&witness, 0);
	return wait_used(&ring, ++witnessed) && !status;
}

void others_live(void)
{
	uint32_t mark = random32();

	block[0] = block[127] = mark;
	if (!ask(1))
		fail("the other disk does not write");
	block[0] = block[127] = 0;
	if (!ask(0) || block[0] != mark || block[127] != mark)
		fail("the other disk does not read");
}

void find_witness(int mmio)
{
	uint32_t n = 0;

	seed = option("seed", 1) * 2654435761u | 1;
	while (find_device(&witness, mmio, TYPE_BLOCK, n))
		n++;
	if (!n)
		fail("no disk");
	find_device(&witness, mmio, TYPE_BLOCK, n - 1);
	begin(&witness, 0);
	set_queue(&witness, 0, &ring);
	if (!finish(&witness))
		fail("the other disk does not begin");
	others_live();
}

void still_alive(void)
{
	others_live();
	print("\nalive\n");
	for (;;)
		asm volatile("cli; hlt");
}
