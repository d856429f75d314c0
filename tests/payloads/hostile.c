// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest that means harm, by a word of its command line: `config`, `registers`, `ports`, `rings`, `resets`, `bells`,
 * `flood`, from `seed=` (1) on, `rounds=` (1) times. The last disk is left alone, and has to work after each attack. At
 * the end it says `alive`, and sleeps. `only=` is a virtio device ID, and leaves the others alone as well. What a guest
 * may do to itself (switch off, reset, stop its own processor) is left out.
 */
#include "witness.h"

#define INDIRECT	(1u << 28)
#define EVENT_IDX	(1u << 29)
#define LENGTH(array)	(sizeof(array) / sizeof(array[0]))

static struct device target;
static struct ring ring;
static struct block_header header;
static uint8_t scratch[1 << 16] __attribute__((aligned(4096)));
static struct descriptor table[1100] __attribute__((aligned(16)));

/* The next device that may be attacked, from `index` on; its index and one more, or 0. */
static uint32_t next_target(uint32_t index)
{
	uint32_t only = option("only", 0);

	for (; device_at(&target, witness.mmio, index); index++)
		if (target.base != witness.base && (!only || target.type == only)) {
			step[0] = target.type;
			return index + 1;
		}
	return 0;
}

static uint32_t garbage(void)
{
	uint32_t value = random32();

	switch (random32() & 7) {
	case 0: return value & 0xff;
	case 1: return 0;
	case 2: return ~0u;
	case 3: return 1u << (value & 31);
	case 4: return value & 0x00fffff0;	/* in RAM */
	default: return value;
	}
}

static void poke(uint32_t address)
{
	switch (random32() % 3) {
	case 0: *(volatile uint8_t *)address = garbage(); break;
	case 1: *(volatile uint16_t *)(address & ~1u) = garbage(); break;
	default: *(volatile uint32_t *)(address & ~3u) = garbage();
	}
}

static void peek(uint32_t address)
{
	(void)*(volatile uint8_t *)address;
	(void)*(volatile uint16_t *)(address & ~1u);
	(void)*(volatile uint32_t *)(address & ~3u);
}

/* Every byte of every function's configuration space, by ports and by memory, and of functions that are not there. */
static void attack_config(void)
{
	uint32_t slot, offset, bar;

	for (slot = 0; slot < 32; slot++) {
		if (slot == witness.slot)
			continue;
		if (config_read(slot, 0) == ~0u && slot > 12)
			continue;
		bar = config_read(slot, 0x10);
		for (offset = 0; offset < 256; offset++) {
			outl(0xcf8, 0x80000000 | slot << 11 | (offset & 0xfc));
			outb(0xcfc + (offset & 3), garbage());
			if (!(offset & 3))
				outl(0xcfc, garbage());
			inb(0xcfc + (offset & 3));
		}
		for (offset = 0; offset < 4096; offset = offset < 256 ? offset + 1 : offset + 61) {
			poke(0xe0000000 + (slot << 15) + offset);
			peek(0xe0000000 + (slot << 15) + offset);
		}
		config_write(slot, 0x10, bar);
		config_write(slot, 4, 6);
		others_live();
	}
}

static void attack_registers(void)
{
	uint32_t index = 0, n;

	while ((index = next_target(index))) {
		for (n = 0; n < 1500; n++) {
			uint32_t offset = random32();

			if (target.mmio)
				offset = offset & 1 ? offset >> 8 & 0xff : offset >> 8 & 0xfff;
			else if (offset & 1)
				offset = offset >> 8 & 0x3f;	/* the common configuration */
			else
				offset = offset >> 8 & (PCI_BAR_SIZE - 1);
			poke(target.base + offset);
			if (!(n & 15))
				peek(target.base + offset);
			if (!(n & 255))
				others_live();
		}
		set_status(&target, 0);
		if (get_status(&target))
			fail("a device is not reset");
		others_live();
	}
}

/* What a value must not be, so that the run does not end as the guest asked for. */
static int ends_the_run(uint16_t port, uint32_t size, uint32_t value)
{
	uint32_t first = port, last = port + size - 1;

	if (first <= 0xf7 && last >= 0xf4)
		return 1;			/* isa-debug-exit */
	if (first <= 0x505 && last >= 0x505)
		return value & 3;		/* pvpanic */
	if (first <= 0x605 && last >= 0x604)
		return 1;			/* sleep */
	if (first <= 0xcf9 && last >= 0xcf9)
		return size < 4 || port != 0xcf8;	/* reset */
	if (first <= 0xcff && last >= 0xcfc)
		return 1;			/* `config` does that, and leaves the other disk alone */
	if (port == 0x64 || (first < 0x64 && last >= 0x64))
		return value > 0xef || value == 0xd1;	/* i8042: pulses, output port */
	return 0;
}

static void attack_ports(void)
{
	static const struct { uint16_t first, count; } known[] = {
		{ 0x20, 2 }, { 0x40, 4 }, { 0x60, 5 }, { 0x70, 2 }, { 0x80, 1 }, { 0xa0, 2 }, { 0xe0, 32 }, { 0x3f8, 8 },
		{ 0x4d0, 2 }, { 0x500, 0x20 }, { 0x600, 16 }, { 0xcf8, 8 }, { 0x2000, 24 }, { 0, 0xffff },
	};
	uint32_t n;

	for (n = 0; n < 6000; n++) {
		uint32_t which = random32() % LENGTH(known);
		uint16_t port = known[which].first + random32() % known[which].count;
		uint32_t size = 1u << random32() % 3, value = garbage();

		if (size == 1)
			value &= 0xff;
		if (size == 1)
			inb(port);
		else if (size == 2)
			inw(port);
		else
			inl(port);
		if (ends_the_run(port, size, value))
			continue;
		if (size == 1)
			outb(port, value);
		else if (size == 2)
			outw(port, value);
		else
			outl(port, value);
		if (!(n & 1023))
			others_live();
	}
	for (n = 0; n < 300; n++)
		poke(0xff000000 + (random32() & 0xffff));	/* the test device, where there is one */
	outb(COM1 + 3, 3);
	outb(COM1 + 4, 3);
	outb(COM1 + 1, 0);
	others_live();
}

/* Where rings may be said to be: descriptors, available, used, and how many entries. */
static const struct { uint32_t size; uint64_t areas[3]; } places[] = {
	{ 0, { 0x200000, 0x201000, 0x202000 } },
	{ 3, { 0x200000, 0x201000, 0x202000 } },
	{ 0xffff, { 0x200000, 0x201000, 0x202000 } },
	{ 0x8000, { 0x200000, 0x300000, 0x400000 } },
	{ RING, { 0x200008, 0x201000, 0x202000 } },
	{ RING, { 0x200000, 0x201001, 0x202000 } },
	{ RING, { 0x200000, 0x201000, 0x202002 } },
	{ RING, { 0x200000, 0x200000, 0x200000 } },
	{ RING, { 0x200000, 0x200010, 0x200020 } },
	{ RING, { 0xfffff0, 0x201000, 0x202000 } },	/* across the end of RAM */
	{ RING, { 0x200000, 0xfffffe, 0x202000 } },
	{ RING, { 0x200000, 0x201000, 0xfffffc } },
	{ RING, { 0xfee00000, 0xfee00000, 0xfee00000 } },
	{ RING, { 0xc0000000, 0xc0001000, 0xc0002000 } },
	{ RING, { ~0ull << 4, ~1ull, ~3ull } },
	{ RING, { 0xffffffffull << 32, 0x201000, 0x202000 } },
	{ RING, { 0, 0, 0 } },
};

static void forge(uint32_t index, uint64_t address, uint32_t length, uint16_t flags, uint16_t next)
{
	ring.descriptors[index] = (struct descriptor){ address, length, flags, next };
}

static void indirect(uint32_t entries, uint32_t length, uint16_t flags)
{
	uint32_t i;

	for (i = 0; i < entries; i++)
		table[i] = (struct descriptor){ (uint32_t)scratch, length, flags | DESC_NEXT, i + 1 };
	table[entries - 1].flags &= ~DESC_NEXT;
	forge(0, (uint32_t)table, 16 * entries, DESC_INDIRECT, 0);
}

/* Descriptors that make no sense, or do harm where they are believed. False after the last kind. */
static int forge_chain(uint32_t kind)
{
	uint32_t data = (uint32_t)scratch, i;

	forge(0, (uint32_t)&header, 16, DESC_NEXT, 1);
	forge(1, data, 512, DESC_NEXT | DESC_WRITE, 2);
	forge(2, data + 4096, 1, DESC_WRITE, 0);
	switch (kind) {
	case 0: forge(0, data, 16, DESC_NEXT, 0); break;			/* a circle of one */
	case 1: forge(2, data, 512, DESC_NEXT | DESC_WRITE, 1); break;		/* a circle of two */
	case 2: forge(1, 0xfffff000, 0x2000, DESC_NEXT | DESC_WRITE, 2); break;
	case 3: forge(1, data, ~0u, DESC_NEXT | DESC_WRITE, 2); break;
	case 4: forge(1, ~0ull - 8, 512, DESC_NEXT | DESC_WRITE, 2); break;
	case 5: forge(1, 0xfffffe, 512, DESC_NEXT | DESC_WRITE, 2); break;	/* across the end of RAM */
	case 6: forge(0, (uint32_t)table, 15, DESC_INDIRECT, 0); break;
	case 7: forge(0, (uint32_t)table, 0, DESC_INDIRECT, 0); break;
	case 8: forge(0, 0xfffffff0, 0x40, DESC_INDIRECT, 0); break;
	case 9: forge(0, (uint32_t)table, 0xfffffff0, DESC_INDIRECT, 0); break;
	case 10: indirect(4, 16, DESC_INDIRECT); break;				/* indirect in indirect */
	case 11: indirect(4, 16, 0); ring.descriptors[0].flags |= DESC_NEXT; break;
	case 12: indirect(4, 16, 0); ring.descriptors[0].flags |= DESC_WRITE; break;
	case 13: indirect(1024, 16, DESC_WRITE); break;
	case 14: indirect(1100, 16, DESC_WRITE); break;
	case 15: indirect(1024, 0, DESC_WRITE); break;
	case 16: indirect(1024, 0xf00000, DESC_WRITE); break;			/* 15 GiB in all */
	case 17: indirect(1024, 4096, 0); break;
	case 18: for (i = 0; i < 3; i++) ring.descriptors[i].flags |= DESC_WRITE; break;
	case 19: for (i = 0; i < 3; i++) ring.descriptors[i].flags &= ~DESC_WRITE; break;
	case 20: ring.descriptors[0].flags |= DESC_WRITE; ring.descriptors[1].flags &= ~DESC_WRITE; break;
	case 21: for (i = 0; i < 3; i++) ring.descriptors[i].length = 0; break;
	case 22: ring.descriptors[1].next = RING; break;
	case 23: ring.descriptors[1].next = 0xffff; break;
	case 24: forge(1, (uint32_t)&ring.descriptors, sizeof(ring.descriptors), DESC_NEXT | DESC_WRITE, 2); break;
	case 25: forge(1, (uint32_t)&ring.used, sizeof(ring.used), DESC_NEXT | DESC_WRITE, 2); break;
	case 26: forge(1, (uint32_t)&ring.available, sizeof(ring.available), DESC_NEXT | DESC_WRITE, 2); break;
	case 27: forge(1, target.base, 4096, DESC_NEXT | DESC_WRITE, 2); break;	/* the device's own registers */
	case 28: forge(0, data, 1, DESC_NEXT, 1); break;
	case 29: for (i = 0; i < 3; i++) ring.descriptors[i].flags = 0xffff & ~DESC_INDIRECT; break;
	case 30: for (i = 0; i < RING; i++)
			forge(i, random32(), random32(), random32() & 7, random32() % (RING + 1));
		 break;
	case 31: forge(1, data, 512, DESC_NEXT, 2); header.type = 1; break;
	case 32: forge(0, data, 16, DESC_NEXT, 1); for (i = 0; i < 16; i++) scratch[i] = random32(); break;
	default: return 0;
	}
	return 1;
}

static void start_target(uint32_t queue, uint32_t features)
{
	header.type = header.sector = 0;
	begin(&target, features);
	set_queue(&target, queue, &ring);
	finish(&target);
}

/* Until it has answered or given up; not for long, as some chains are nothing to answer. */
static void settle(uint32_t queue)
{
	uint32_t i;

	notify(&target, queue);
	for (i = 0; i < 30 && ring.used.idx == 0 && !(get_status(&target) & STATUS_NEEDS_RESET); i++)
		;
	notify(&target, queue);
}

static void attack_rings(void)
{
	uint32_t index = 0, queue, kind, i;

	while ((index = next_target(index))) {
		for (queue = 0; begin(&target, 0), select_queue(&target, queue); queue++) {
			step[1] = queue;
			for (kind = 0; kind < LENGTH(places); kind++) {
				step[2] = kind;
				begin(&target, INDIRECT);
				select_queue(&target, queue);
				queue_areas(&target, places[kind].size, places[kind].areas[0], places[kind].areas[1],
					    places[kind].areas[2]);
				queue_enable(&target);
				finish(&target);
				notify(&target, queue);
			}
			others_live();
			for (kind = 0; ; kind++) {
				step[2] = 0x100 + kind;
				start_target(queue, kind & 1 ? INDIRECT | EVENT_IDX : INDIRECT);
				if (!forge_chain(kind))
					break;
				offer(&ring, 0);
				settle(queue);
				if (!(kind & 3))
					others_live();
			}
			for (kind = 0; kind < 6; kind++) {
				static const uint16_t jumps[] = { RING + 1, 0x8000, 0xffff };

				step[2] = 0x200 + kind;
				start_target(queue, 0);
				forge_chain(kind < 3 ? 31 : 21);
				for (i = 0; i < RING; i++)
					ring.available.ring[i] = kind < 3 ? RING + i : 0;
				ring.available.idx = kind < 3 ? jumps[kind] : RING;
				settle(queue);
			}
			set_status(&target, 0);
			others_live();
		}
	}
}

/* Resets while requests are under way, queues that change while they are served, features after the start. */
static void attack_resets(void)
{
	uint32_t index = 0, queue, n, i;

	while ((index = next_target(index))) {
		for (n = 0; n < 120; n++) {
			step[1] = n;
			queue = random32() & 3;
			if (begin(&target, 0), !select_queue(&target, queue))
				queue = 0;
			start_target(queue, INDIRECT);
			forge_chain(99);
			ring.descriptors[1].length = sizeof(scratch) - 8192;
			for (i = 0; i < RING; i++)
				offer(&ring, 0);
			notify(&target, queue);
			switch (random32() % 6) {
			case 0: set_status(&target, 0); break;
			case 1: select_queue(&target, queue);
				queue_areas(&target, 4, random32(), random32(), random32());
				queue_enable(&target);
				break;
			case 2: begin(&target, ~0u); break;
			case 3: set_status(&target, STATUS_ALIVE | STATUS_NEEDS_RESET); set_status(&target, 0x80); break;
			case 4: set_status(&target, 1); set_status(&target, STATUS_ALIVE); break;
			default:
				if (target.mmio)
					*(volatile uint32_t *)(target.base + 0x44) = 0;	/* QueueReady */
				notify(&target, queue);
			}
			if (!(n & 15))
				others_live();
		}
		set_status(&target, 0);
		others_live();
	}
}

/* Doorbells as fast as they go, of queues that are there and of some that are not. */
static void attack_bells(void)
{
	uint32_t index = 0, n;

	while ((index = next_target(index))) {
		start_target(0, 0);
		for (n = 0; n < 4000; n++) {
			notify(&target, n & 7 ? 0 : random32() & 63);
			if (!(n & 1023))
				others_live();
		}
		set_status(&target, 0);
	}
}

/* Text to the console, as fast as its reader takes it. */
static void attack_flood(void)
{
	uint32_t n, i;

	if (!find_device(&target, witness.mmio, TYPE_CONSOLE, 0))
		fail("no console");
	start_target(1, EVENT_IDX);
	for (i = 0; i < sizeof(scratch); i++)
		scratch[i] = 'x';
	for (i = 0; i < RING; i++)
		describe(&ring, i, scratch + 4096 * i, 4096, 0);
	for (n = 0; n < 20000; n++) {
		while ((uint16_t)(ring.available.idx - ring.used.idx) < RING)
			offer(&ring, ring.available.idx % RING);
		notify(&target, 1);
		if (!(n & 1023))
			others_live();
	}
}

int main(void)
{
	uint32_t rounds = option("rounds", 1);
	int mmio = has_word("mmio");

	find_witness(mmio);
	while (rounds--) {
		if (has_word("config"))
			attack_config();
		if (has_word("registers"))
			attack_registers();
		if (has_word("ports"))
			attack_ports();
		if (has_word("rings"))
			attack_rings();
		if (has_word("resets"))
			attack_resets();
		if (has_word("bells"))
			attack_bells();
		if (has_word("flood"))
			attack_flood();
	}
	still_alive();
}
