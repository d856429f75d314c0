/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Entry of every 32-bit payload: by PVH (the note) or by multiboot 1 (the header), both in flat protected mode
 * without paging. Calls main(), and ends the run with what it returns through isa-debug-exit.
 */
#define MULTIBOOT_MAGIC 0x1badb002

	.section .multiboot, "a"
	.balign	4
	.long	MULTIBOOT_MAGIC, 0, -MULTIBOOT_MAGIC

#ifndef NO_PVH
	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 4, 18		/* sizes of name and description, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start
#endif

	.text
	.code32
	.globl	_start
_start:
	cld
	lgdt	gdt_pointer
	ljmp	$0x8, $1f
1:	mov	$0x10, %ecx
	mov	%ecx, %ds
	mov	%ecx, %es
	mov	%ecx, %ss
	mov	$stack_top, %esp
	push	%ebx			/* start info, or multiboot information */
	push	%eax			/* the multiboot loader's magic, if it was one */
	call	start_main
	out	%eax, $0xf4
2:	hlt
	jmp	2b

/* Where an application processor starts, in real mode, after smp.c has copied it to a page below 1 MiB. */
	.code16
	.globl	ap_trampoline, ap_trampoline_end
ap_trampoline:
	cli
	lgdtl	%cs:(ap_gdt_pointer - ap_trampoline)
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$0x8, $ap_protected
ap_gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
ap_trampoline_end:

	.code32
ap_protected:
	mov	$0x10, %ecx
	mov	%ecx, %ds
	mov	%ecx, %es
	mov	%ecx, %ss
	/* No stack: several processors run this at once. */
	lock incl ap_count
1:	hlt
	jmp	1b

	.data
	.balign	8
gdt:
	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt

	.bss
	.globl	ap_count
	.balign	4
ap_count:
	.skip	4
	.balign	16
	.skip	8192
stack_top:

	.section .note.GNU-stack, "", @progbits
