// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes for ever: block after block of 4 KiB, each with its number in every 64 bytes, from `start=` (1) on, round about `blocks=`
 * (2,048) of them. After each `batch=` (3) it flushes, and then says on the serial port up to which number all is on
 * the disk, in hexadecimal. Who kills it checks.
 */
#include "virtio.h"

#define BLOCK	4096
#define STEP	16	/* words from one number to the next */

static struct ring ring;
static struct { uint32_t type, priority; uint64_t sector; } headers[RING];
static uint32_t data[RING / 3][BLOCK / 4] __attribute__((aligned(BLOCK)));
static volatile uint8_t statuses[RING];

static void add(uint32_t head, uint32_t type, uint64_t sector, const void *from)
{
	uint32_t next = head;

	headers[head].type = type;
	headers[head].sector = sector;
	statuses[head] = 0xff;
	describe(&ring, next++, &headers[head], sizeof(headers[0]), DESC_NEXT);
	if (from)
		describe(&ring, next++, from, BLOCK, DESC_NEXT);
	describe(&ring, next, &statuses[head], 1, DESC_WRITE);
	offer(&ring, head);
}

int main(void)
{
	uint32_t number = option("start", 1), blocks = option("blocks", 2048), batch = option("batch", 3);
	struct device disk;
	uint32_t i, j;
	uint16_t done = 0;

	if (!find_device(&disk, has_word("mmio"), TYPE_BLOCK, 0))
		return 2;
	begin(&disk, 1 << 9);	/* VIRTIO_BLK_F_FLUSH */
	set_queue(&disk, 0, &ring);
	if (!finish(&disk))
		return 3;
	for (;;) {
		for (i = 0; i < batch; i++, number++) {
			for (j = 0; j < BLOCK / 4; j += STEP)
				data[i][j] = number;
			add(3 * i, 1, (uint64_t)(number % blocks) * (BLOCK / 512), data[i]);
		}
		notify(&disk, 0);
		done += batch;
		if (!wait_used(&ring, done))
			return 4;
		for (i = 0; i < batch; i++)
			if (statuses[3 * i])
				return 5;
		add(0, 4, 0, 0);	/* VIRTIO_BLK_T_FLUSH */
		notify(&disk, 0);
		if (!wait_used(&ring, ++done))
			return 6;
		if (statuses[0])
			return 7;
		print_hex(number - 1);
		print("\n");
	}
}
