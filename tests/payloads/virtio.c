// SPDX-License-Identifier: GPL-2.0-only
#include "virtio.h"

#define MMIO_FIRST	0xfeb00000
#define MMIO_DEVICES	8
#define MMIO_MAGIC	0x74726976
#define POLLS		2000	/* of memory alone */
#define PATIENCE	300000	/* and with an exit each: seconds */

uint32_t seed = 1;

/* What the compiler makes of loops and assignments. */
void *memset(void *to, int value, __SIZE_TYPE__ size);
void *memset(void *to, int value, __SIZE_TYPE__ size)
{
	void *at = to;

	asm volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, __SIZE_TYPE__ size);
void *memcpy(void *to, const void *from, __SIZE_TYPE__ size)
{
	void *at = to;

	asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
	return to;
}

uint32_t random32(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed;
}

uint32_t config_read(uint32_t slot, uint32_t offset)
{
	outl(0xcf8, 0x80000000 | slot << 11 | (offset & 0xfc));
	return inl(0xcfc);
}

void config_write(uint32_t slot, uint32_t offset, uint32_t value)
{
	outl(0xcf8, 0x80000000 | slot << 11 | (offset & 0xfc));
	outl(0xcfc, value);
}

static volatile uint8_t *byte_at(struct device *device, uint32_t offset)
{
	return (volatile uint8_t *)(device->base + offset);
}

static volatile uint16_t *word_at(struct device *device, uint32_t offset)
{
	return (volatile uint16_t *)(device->base + offset);
}

static volatile uint32_t *long_at(struct device *device, uint32_t offset)
{
	return (volatile uint32_t *)(device->base + offset);
}

static int pci_device_at(struct device *device, uint32_t index)
{
	uint32_t slot, id;

	for (slot = 0; slot < 32; slot++) {
		id = config_read(slot, 0);
		if ((id & 0xffff) == 0x1af4 && id >> 16 > 0x1040 && !index--) {
			device->mmio = 0;
			device->slot = slot;
			device->type = (id >> 16) - 0x1040;
			device->base = config_read(slot, 0x10) & ~0xfu;
			config_write(slot, 4, 0x6);
			return 1;
		}
	}
	return 0;
}

int device_at(struct device *device, int mmio, uint32_t index)
{
	if (!mmio)
		return pci_device_at(device, index);
	device->mmio = 1;
	device->slot = 0;
	device->base = MMIO_FIRST + 0x1000 * index;
	if (index >= MMIO_DEVICES || *long_at(device, 0) != MMIO_MAGIC)
		return 0;
	device->type = *long_at(device, 8);
	return 1;
}

int find_device(struct device *device, int mmio, uint32_t type, uint32_t nth)
{
	uint32_t index;

	for (index = 0; device_at(device, mmio, index); index++)
		if (device->type == type && !nth--)
			return 1;
	return 0;
}

uint32_t get_status(struct device *device)
{
	return device->mmio ? *long_at(device, 0x70) : *byte_at(device, 20);
}

void set_status(struct device *device, uint32_t status)
{
	if (device->mmio)
		*long_at(device, 0x70) = status;
	else
		*byte_at(device, 20) = status;
}

void begin(struct device *device, uint32_t features)
{
	uint32_t select = device->mmio ? 0x24 : 8;
	uint32_t value = device->mmio ? 0x20 : 12;

	set_status(device, 0);
	set_status(device, 3);
	*long_at(device, select) = 0;
	*long_at(device, value) = features;
	*long_at(device, select) = 1;
	*long_at(device, value) = 1;	/* VIRTIO_F_VERSION_1 */
	set_status(device, 0xb);
}

int select_queue(struct device *device, uint32_t queue)
{
	if (device->mmio) {
		*long_at(device, 0x30) = queue;
		return *long_at(device, 0x34) != 0;
	}
	*word_at(device, 22) = queue;
	return *word_at(device, 24) != 0;
}

void queue_areas(struct device *device, uint32_t size, uint64_t descriptors, uint64_t available, uint64_t used)
{
	uint64_t areas[3] = { descriptors, available, used };
	uint32_t i;

	if (device->mmio)
		*long_at(device, 0x38) = size;
	else
		*word_at(device, 24) = size;
	for (i = 0; i < 3; i++) {
		uint32_t offset = device->mmio ? 0x80 + 0x10 * i : 32 + 8 * i;

		*long_at(device, offset) = areas[i];
		*long_at(device, offset + 4) = areas[i] >> 32;
	}
}

void queue_enable(struct device *device)
{
	if (device->mmio)
		*long_at(device, 0x44) = 1;
	else
		*word_at(device, 28) = 1;
}

void set_queue(struct device *device, uint32_t queue, struct ring *ring)
{
	memset(ring, 0, sizeof(*ring));
	select_queue(device, queue);
	queue_areas(device, RING, (uint32_t)ring->descriptors, (uint32_t)&ring->available, (uint32_t)&ring->used);
	queue_enable(device);
}

int finish(struct device *device)
{
	set_status(device, STATUS_ALIVE);
	return get_status(device) == STATUS_ALIVE;
}

void notify(struct device *device, uint32_t queue)
{
	if (device->mmio)
		*long_at(device, 0x50) = queue;
	else
		*word_at(device, PCI_NOTIFY + 4 * queue) = queue;
}

void describe(struct ring *ring, uint32_t index, const volatile void *at, uint32_t length, uint16_t flags)
{
	ring->descriptors[index].address = (uint32_t)at;
	ring->descriptors[index].length = length;
	ring->descriptors[index].flags = flags;
	ring->descriptors[index].next = index + 1;
}

void offer(struct ring *ring, uint32_t head)
{
	ring->available.ring[ring->available.idx % RING] = head;
	asm volatile("" : : : "memory");
	ring->available.idx++;
}

int wait_used(struct ring *ring, uint16_t count)
{
	uint32_t patience;

	for (patience = 0; ring->used.idx != count; patience++) {
		if (patience > POLLS)
			inb(0x80);	/* some microseconds, on whatever processor */
		if (patience == PATIENCE)
			return 0;
	}
	return 1;
}
