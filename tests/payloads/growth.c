// SPDX-License-Identifier: GPL-2.0-only
/*
 * A disk that grows: prints its sectors and waits for the configuration interrupt's status bit, `times=` (2). Then it
 * writes what is the last sector by now, reads it back, and sees that the one after it is refused. With `mmio` on the
 * command line over MMIO. Ends with 0, or with what went wrong.
 */
#include "virtio.h"

#define SECTOR		512
#define STATUS_CONFIG	2	/* of the interrupt status, on both transports */
#define MOST_LOOKS	60000000	/* minutes */

static struct ring ring;
static struct device disk;
static struct { uint32_t type, priority; uint64_t sector; } header;
static uint8_t data[SECTOR];
static volatile uint8_t status;
static uint16_t used;

static uint32_t reg(uint32_t offset)
{
	return *(volatile uint32_t *)(disk.base + offset);
}

static uint32_t generation(void)
{
	return disk.mmio ? reg(0xfc) : *(volatile uint8_t *)(disk.base + 21);
}

static uint64_t sectors(void)
{
	uint32_t offset = disk.mmio ? 0x100 : PCI_DEVICE, before, low, high;

	do {
		before = generation();
		low = reg(offset);
		high = reg(offset + 4);
	} while (generation() != before);
	return (uint64_t)high << 32 | low;
}

static int changed(void)
{
	uint32_t looks, bits;

	for (looks = 0; looks < MOST_LOOKS; looks++) {
		bits = disk.mmio ? reg(0x60) : *(volatile uint8_t *)(disk.base + PCI_ISR);
		if (disk.mmio)
			*(volatile uint32_t *)(disk.base + 0x64) = bits;
		if (bits & STATUS_CONFIG)
			return 1;
	}
	return 0;
}

static int request(uint32_t type, uint64_t sector)
{
	header.type = type;
	header.sector = sector;
	status = 0xff;
	describe(&ring, 0, &header, sizeof(header), DESC_NEXT);
	describe(&ring, 1, data, SECTOR, type ? DESC_NEXT : DESC_NEXT | DESC_WRITE);
	describe(&ring, 2, &status, 1, DESC_WRITE);
	offer(&ring, 0);
	notify(&disk, 0);
	return wait_used(&ring, ++used) ? status : 0xff;
}

static void fill(uint8_t value)
{
	uint32_t i;

	for (i = 0; i < SECTOR; i++)
		data[i] = value;
}

static void say(void)
{
	print("sectors ");
	print_hex(sectors());
	print("\n");
}

int main(void)
{
	uint32_t times = option("times", 2);
	uint64_t last;

	if (!find_device(&disk, has_word("mmio"), TYPE_BLOCK, 0))
		return 1;
	begin(&disk, 0);
	set_queue(&disk, 0, &ring);
	if (!finish(&disk))
		return 2;
	say();
	while (times--) {
		if (!changed())
			return 3;
		say();
	}
	last = sectors() - 1;
	fill(0x5a);
	if (request(1, last))
		return 4;
	fill(0);
	if (request(0, last) || data[0] != 0x5a || data[SECTOR - 1] != 0x5a)
		return 5;
	return request(0, last + 1) == 1 ? 0 : 6;
}
