/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Firmware that writes to the flash of its variables and ends with what it found: 0 when all is as it was written.
 * Lies at the beginning of the last 64 KiB below 4 GiB; the reset vector jumps here, with the base of CS still there.
 */
#define VARIABLES	0xfffee000	/* 8 KiB before this image */
#define COUNT		500
#define BLOCK		0x1000
#define READ_ARRAY	0xff
#define PROGRAM		0x10
#define ERASE		0x20
#define ERASE_CONFIRM	0xd0
#define READ_ID		0x90
#define READY		0x80

	.code16
	.globl _start
_start:
	lgdtl %cs:table
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	movw $8, %ax
	movw %ax, %ds

	movl $(VARIABLES + BLOCK), %esi		/* erase a block: its status, then its content */
	movb $ERASE, (%esi)
	movb $ERASE_CONFIRM, (%esi)
	movb $1, %bl
	testb $READY, (%esi)
	jz end
	movb $READ_ARRAY, (%esi)
	movb $2, %bl
	cmpb $0xff, (%esi)
	jne end

	xorl %ecx, %ecx				/* bytes, as OVMF writes them */
1:	movb $PROGRAM, (%esi, %ecx)
	movb %cl, (%esi, %ecx)
	incl %ecx
	cmpl $COUNT, %ecx
	jne 1b
	movb $READ_ARRAY, (%esi)
	xorl %ecx, %ecx
	movb $3, %bl
2:	cmpb %cl, (%esi, %ecx)
	jne end
	incl %ecx
	cmpl $COUNT, %ecx
	jne 2b

	movb $READ_ID, (%esi)			/* nobody reads what follows, but the file has it */
	movb $PROGRAM, COUNT(%esi)
	movb $0x55, COUNT(%esi)
	movb $READ_ARRAY, (%esi)
	movb $0, %bl
end:
	movb %bl, %al
	outb %al, $0xf4
3:	hlt
	jmp 3b

	.balign 8
gdt:	.quad 0, 0x00cf93000000ffff		/* flat data, accessed: this is ROM */
table:	.word table - gdt - 1
	.long gdt + 0xffff0000

	.section .note.GNU-stack, "", @progbits
