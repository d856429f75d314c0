/* SPDX-License-Identifier: GPL-2.0-only */
/* What a payload has: ports, COM1, its command line and boot information. Freestanding, no libc. */
#ifndef PAYLOAD_H
#define PAYLOAD_H

#include <stdint.h>

#define COM1		0x3f8
#define DEBUG_EXIT	0xf4

static inline void outb(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outw(uint16_t port, uint16_t value)
{
	asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outl(uint16_t port, uint32_t value)
{
	asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint16_t inw(uint16_t port)
{
	uint16_t value;

	asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t value;

	asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

struct boot {
	const char *loader;		/* "pvh" or "multiboot" */
	const char *cmdline;
	uint32_t modules;		/* how many */
	uint32_t module, module_size;	/* the first one */
	uint64_t rsdp;			/* 0: not told */
	uint32_t ranges;		/* of the memory map */
	uint64_t ram;			/* bytes of RAM in it */
};

extern struct boot boot;

/* What each payload defines; the run ends with what it returns. */
int main(void);

void print(const char *text);
void print_hex(uint64_t value);
/* The number after `name=` on the command line, `otherwise` where there is none. Decimal or 0x. */
uint32_t option(const char *name, uint32_t otherwise);
/* Whether the command line has `word`. */
int has_word(const char *word);

#endif
