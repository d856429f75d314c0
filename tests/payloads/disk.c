// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drives the first virtio-blk device: writes sectors 1 to `n=` (8), each with its number, reads sector 0 and prints
 * its text, reads the others back and compares. Over PCI it sleeps until the queue's MSI-X vector comes; with `mmio`
 * on the command line it polls the device at `address=` (0xfeb00000).
 */
#include "payload.h"

#define SECTOR		512
#define ENTRIES		8
#define VECTOR		0x30
#define LAPIC_SPURIOUS	((volatile uint32_t *)0xfee000f0)
#define LAPIC_EOI	((volatile uint32_t *)0xfee000b0)
#define POLLS		2000	/* of memory alone */
#define PATIENCE	300000	/* and with an exit each: seconds, on whatever processor */

/* The BAR of unikvm's virtio-pci: a page for each structure. */
#define NOTIFY		0x3000
#define TABLE		0x4000

static struct { uint64_t address; uint32_t length; uint16_t flags, next; } descriptors[ENTRIES] __attribute__((aligned(16)));
static volatile struct { uint16_t flags, idx, ring[ENTRIES], event; } available __attribute__((aligned(2)));
static volatile struct { uint16_t flags, idx; struct { uint32_t id, len; } ring[ENTRIES]; uint16_t event; } used
	__attribute__((aligned(4)));
static struct { uint32_t type, priority; uint64_t sector; } header;
static uint8_t data[SECTOR];
static volatile uint8_t status;
static uint32_t base;
static int over_mmio;

static struct {
	uint16_t low, selector, flags, high;
} idt[VECTOR + 1];

/* Without iret, which KVM's emulator lacks in protected mode: see echo.c. */
asm("msi: pusha; call served; popa; popl back; add $8, %esp; jmp *back");
uint32_t back;
extern void msi(void);
void served(void);

void served(void)
{
	*LAPIC_EOI = 0;
}

static void write32(uint32_t offset, uint32_t value)
{
	*(volatile uint32_t *)(base + offset) = value;
}

static void write16(uint32_t offset, uint16_t value)
{
	*(volatile uint16_t *)(base + offset) = value;
}

static uint32_t config(uint32_t device, uint32_t offset)
{
	outl(0xcf8, 0x80000000 | device << 11 | offset);
	return inl(0xcfc);
}

static void config_write(uint32_t device, uint32_t offset, uint32_t value)
{
	outl(0xcf8, 0x80000000 | device << 11 | offset);
	outl(0xcfc, value);
}

static void interrupts_on(uint32_t device)
{
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) pointer = { sizeof(idt) - 1, (uint32_t)idt };
	uint32_t at = config(device, 0x34) & 0xfc;

	idt[VECTOR].low = (uint32_t)msi;
	idt[VECTOR].high = (uint32_t)msi >> 16;
	idt[VECTOR].selector = 0x8;
	idt[VECTOR].flags = 0x8e00;
	asm volatile("lidt %0" : : "m"(pointer));
	outb(0x21, 0xff);	/* nothing of the 8259s */
	outb(0xa1, 0xff);
	*LAPIC_SPURIOUS = 0x1ff;
	while (at && (config(device, at) & 0xff) != 0x11)
		at = config(device, at) >> 8 & 0xfc;
	write32(TABLE + 16, 0xfee00000);	/* the second entry: message, data, not masked */
	write32(TABLE + 20, 0);
	write32(TABLE + 24, VECTOR);
	write32(TABLE + 28, 0);
	config_write(device, at, config(device, at) | 0x80000000);
}

static int set_up_pci(void)
{
	uint32_t device = 0;

	while (config(device, 0) != 0x10421af4)
		if (++device == 32)
			return 0;
	base = config(device, 0x10) & ~0xfu;
	config_write(device, 4, 0x6);
	interrupts_on(device);
	*(volatile uint8_t *)(base + 20) = 3;
	write32(8, 1);
	write32(12, 1);		/* VIRTIO_F_VERSION_1 */
	*(volatile uint8_t *)(base + 20) = 0xb;
	write16(22, 0);
	write16(24, ENTRIES);
	write16(26, 1);
	write32(32, (uint32_t)descriptors);
	write32(40, (uint32_t)&available);
	write32(48, (uint32_t)&used);
	write16(28, 1);
	*(volatile uint8_t *)(base + 20) = 0xf;
	return *(volatile uint8_t *)(base + 20) == 0xf;
}

static int set_up_mmio(void)
{
	base = option("address", 0xfeb00000);
	write32(0x70, 3);
	write32(0x24, 1);
	write32(0x20, 1);
	write32(0x70, 0xb);
	write32(0x30, 0);
	write32(0x38, ENTRIES);
	write32(0x80, (uint32_t)descriptors);
	write32(0x90, (uint32_t)&available);
	write32(0xa0, (uint32_t)&used);
	write32(0x44, 1);
	write32(0x70, 0xf);
	return *(volatile uint32_t *)(base + 0x70) == 0xf;
}

static void describe(int index, const volatile void *at, uint32_t length, uint16_t flags)
{
	descriptors[index].address = (uint32_t)at;
	descriptors[index].length = length;
	descriptors[index].flags = flags;
	descriptors[index].next = index + 1;
}

/* One request, and its status; 0xff when no answer came. */
static int request(uint32_t type, uint32_t sector)
{
	uint16_t before = used.idx;
	uint32_t patience;

	header.type = type;
	header.sector = sector;
	status = 0xff;
	describe(0, &header, sizeof(header), 1);
	describe(1, data, SECTOR, type ? 1 : 3);
	describe(2, &status, 1, 2);
	available.ring[available.idx % ENTRIES] = 0;
	asm volatile("" : : : "memory");
	available.idx++;
	write32(over_mmio ? 0x50 : NOTIFY, 0);
	for (patience = 0; used.idx == before && patience < PATIENCE; patience++)
		if (!over_mmio)
			asm volatile("sti; hlt; cli" : : : "memory");
		else if (patience > POLLS)
			inb(0x80);
	return status;
}

int main(void)
{
	uint32_t n = option("n", 8), sector, i;

	over_mmio = has_word("mmio");
	if (!(over_mmio ? set_up_mmio() : set_up_pci()))
		return 2;
	for (sector = 1; sector <= n; sector++) {
		for (i = 0; i < SECTOR; i++)
			data[i] = sector;
		if (request(1, sector))
			return 3;
	}
	if (request(0, 0))
		return 4;
	data[SECTOR - 1] = '\0';
	print((const char *)data);
	for (sector = 1; sector <= n; sector++)
		if (request(0, sector) || data[0] != (uint8_t)sector || data[SECTOR - 1] != (uint8_t)sector)
			return 5;
	return 0;
}
