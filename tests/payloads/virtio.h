/* SPDX-License-Identifier: GPL-2.0-only */
/* Virtio devices of a payload, over PCI and MMIO, polled. Rings as small as a payload's memory. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "payload.h"

#define RING		16	/* entries of a queue's ring */
#define DESC_NEXT	1
#define DESC_WRITE	2
#define DESC_INDIRECT	4

#define TYPE_NET	1
#define TYPE_BLOCK	2
#define TYPE_CONSOLE	3
#define TYPE_RNG	4

/* The BAR of unikvm's virtio-pci: a page for each structure. */
#define PCI_ISR		0x1000
#define PCI_DEVICE	0x2000
#define PCI_NOTIFY	0x3000
#define PCI_TABLE	0x4000
#define PCI_BAR_SIZE	0x8000

#define STATUS_ALIVE	0xf	/* ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK */
#define STATUS_NEEDS_RESET 0x40

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

struct ring {
	struct descriptor descriptors[RING] __attribute__((aligned(16)));
	volatile struct { uint16_t flags, idx, ring[RING], event; } available;
	volatile struct { uint16_t flags, idx; struct { uint32_t id, len; } ring[RING]; uint16_t event; } used
		__attribute__((aligned(4)));
};

struct device {
	int mmio;
	uint32_t base;		/* of the registers */
	uint32_t slot;		/* on PCI bus 0 */
	uint32_t type;		/* virtio device ID */
};

uint32_t config_read(uint32_t slot, uint32_t offset);
void config_write(uint32_t slot, uint32_t offset, uint32_t value);

/* Device `index` of the machine, whatever its type; false after the last one. `mmio`: those at 0xfeb00000. */
int device_at(struct device *device, int mmio, uint32_t index);
/* The `nth` device of a type. */
int find_device(struct device *device, int mmio, uint32_t type, uint32_t nth);

uint32_t get_status(struct device *device);
void set_status(struct device *device, uint32_t status);
/* Reset, and accept VIRTIO_F_VERSION_1 and the low feature bits `features`. */
void begin(struct device *device, uint32_t features);
/* Whether there is a queue of that number, which is then selected. */
int select_queue(struct device *device, uint32_t queue);
void queue_areas(struct device *device, uint32_t size, uint64_t descriptors, uint64_t available, uint64_t used);
void queue_enable(struct device *device);
void set_queue(struct device *device, uint32_t queue, struct ring *ring);
/* DRIVER_OK; whether the device is alive. */
int finish(struct device *device);
void notify(struct device *device, uint32_t queue);

void describe(struct ring *ring, uint32_t index, const volatile void *at, uint32_t length, uint16_t flags);
/* Make the chain at `head` available. */
void offer(struct ring *ring, uint32_t head);
/* Wait until the device has used `count` chains in all; false where it does not within some seconds. */
int wait_used(struct ring *ring, uint16_t count);

uint32_t random32(void);
extern uint32_t seed;

#endif
