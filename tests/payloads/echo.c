// SPDX-License-Identifier: GPL-2.0-only
/* Sends back what COM1 receives, on its interrupt (IRQ 4 through the 8259), until a `q`. */
#include "payload.h"

static struct {
	uint16_t low, selector, flags, high;
} idt[0x30];

/* Returns without iret, which KVM's emulator lacks in protected mode; interrupts stay off, as main() wants them. */
asm("irq4: pusha; call serve; popa; popl return_address; add $8, %esp; jmp *return_address");
uint32_t return_address;
extern void irq4(void);
void serve(void);
static volatile int ended;

void serve(void)
{
	while ((inb(COM1 + 2) & 1) == 0) {
		while (inb(COM1 + 5) & 1) {
			uint8_t byte = inb(COM1);

			outb(COM1, byte);
			if (byte == 'q')
				ended = 1;
		}
	}
	outb(0x20, 0x20);
}

int main(void)
{
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) pointer = { sizeof(idt) - 1, (uint32_t)idt };

	idt[0x24].low = (uint32_t)irq4;
	idt[0x24].high = (uint32_t)irq4 >> 16;
	idt[0x24].selector = 0x8;
	idt[0x24].flags = 0x8e00;
	asm volatile("lidt %0" : : "m"(pointer));
	outb(0x20, 0x11);	/* the master 8259: vectors from 0x20, only IRQ 4 */
	outb(0x21, 0x20);
	outb(0x21, 0x04);
	outb(0x21, 0x01);
	outb(0x21, 0xef);
	outb(COM1 + 2, 0x01);	/* FIFO on */
	outb(COM1 + 4, 0x0b);	/* DTR, RTS, OUT2 */
	outb(COM1 + 1, 0x01);	/* receive interrupt */
	print("ready\n");
	while (!ended)
		asm volatile("sti; hlt; cli");
	return 0;
}
