// SPDX-License-Identifier: GPL-2.0-only
#include "payload.h"

#define MULTIBOOT_LOADER	0x2badb002
#define PVH_MAGIC		0x336ec578
#define E820_RAM		1

struct boot boot;

struct pvh_start_info {
	uint32_t magic, version, flags, modules;
	uint64_t module_list, cmdline, rsdp, memory_map;
	uint32_t memory_map_entries, reserved;
};

struct pvh_module {
	uint64_t address, size, cmdline, reserved;
};

struct pvh_range {
	uint64_t address, size;
	uint32_t type, reserved;
};

struct multiboot_info {
	uint32_t flags, low, upper, device, cmdline, modules, module_list, symbols[4], map_length, map;
};

struct multiboot_range {
	uint32_t entry_size;
	uint64_t address, size;
	uint32_t type;
} __attribute__((packed));

static const void *at(uint64_t address)
{
	return (const void *)(uintptr_t)address;
}

static void read_pvh(const struct pvh_start_info *info)
{
	const struct pvh_range *range = at(info->memory_map);
	const struct pvh_module *module = at(info->module_list);
	uint32_t i;

	boot.loader = "pvh";
	boot.cmdline = at(info->cmdline);
	boot.rsdp = info->rsdp;
	boot.modules = info->modules;
	if (info->modules) {
		boot.module = module->address;
		boot.module_size = module->size;
	}
	boot.ranges = info->memory_map_entries;
	for (i = 0; i < boot.ranges; i++)
		if (range[i].type == E820_RAM)
			boot.ram += range[i].size;
}

static void read_multiboot(const struct multiboot_info *info)
{
	const struct multiboot_range *range = at(info->map);
	const uint32_t *module = at(info->module_list);

	boot.loader = "multiboot";
	boot.cmdline = at(info->cmdline);
	boot.modules = info->modules;
	if (info->modules) {
		boot.module = module[0];
		boot.module_size = module[1] - module[0];
	}
	for (; (uintptr_t)range < info->map + info->map_length; boot.ranges++) {
		if (range->type == E820_RAM)
			boot.ram += range->size;
		range = at((uintptr_t)range + range->entry_size + 4);
	}
}

int start_main(uint32_t eax, uint32_t ebx);

int start_main(uint32_t eax, uint32_t ebx)
{
	if (eax == MULTIBOOT_LOADER)
		read_multiboot(at(ebx));
	else if (*(const uint32_t *)at(ebx) == PVH_MAGIC)
		read_pvh(at(ebx));
	else
		boot.cmdline = "";
	return main();
}

void print(const char *text)
{
	for (; *text; text++)
		outb(COM1, *text);
}

void print_hex(uint64_t value)
{
	int shift = 60;

	print("0x");
	while (shift && !(value >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		outb(COM1, "0123456789abcdef"[value >> shift & 15]);
}

/* What follows `prefix` in the word at `word`, or null. */
static const char *after(const char *word, const char *prefix)
{
	for (; *prefix; prefix++, word++)
		if (*word != *prefix)
			return 0;
	return word;
}

static const char *find(const char *prefix)
{
	const char *p = boot.cmdline;
	const char *rest;

	while (*p) {
		while (*p == ' ')
			p++;
		rest = after(p, prefix);
		if (rest)
			return rest;
		while (*p && *p != ' ')
			p++;
	}
	return 0;
}

int has_word(const char *word)
{
	const char *rest = find(word);

	return rest && (!*rest || *rest == ' ');
}

uint32_t option(const char *name, uint32_t otherwise)
{
	const char *p = find(name);
	uint32_t base = 10, value = 0;

	if (!p || *p++ != '=')
		return otherwise;
	if (p[0] == '0' && p[1] == 'x') {
		base = 16;
		p += 2;
	}
	for (; *p && *p != ' '; p++)
		value = value * base + (*p <= '9' ? *p - '0' : (*p | 0x20) - 'a' + 10);
	return value;
}
