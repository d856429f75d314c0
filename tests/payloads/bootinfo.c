// SPDX-License-Identifier: GPL-2.0-only
/* Prints what the loader told: `name value`, a line each. */
#include "payload.h"

static void line(const char *name, uint64_t value)
{
	print(name);
	print(" ");
	print_hex(value);
	print("\n");
}

int main(void)
{
	const uint8_t *module = (const uint8_t *)boot.module;
	uint32_t sum = 0, i;

	print("loader ");
	print(boot.loader);
	print("\ncmdline ");
	print(boot.cmdline);
	print("\n");
	line("modules", boot.modules);
	line("module", boot.module);
	line("module-size", boot.module_size);
	for (i = 0; i < boot.module_size; i++)
		sum += module[i];
	line("module-sum", sum);
	line("rsdp", boot.rsdp);
	line("ranges", boot.ranges);
	line("ram", boot.ram);
	return 0;
}
