/* SPDX-License-Identifier: GPL-2.0-only */
/* A flat binary for 0x7c00, in real mode: prints "flat" on COM1 and ends with status 7. */
	.text
	.code16
	.globl	_start
_start:
	mov	$0x3f8, %dx
	mov	$text, %si
	mov	$5, %cx
	cld
	rep outsb
	mov	$7, %eax
	out	%eax, $0xf4
1:	hlt
	jmp	1b
text:
	.ascii	"flat\n"

	.section .note.GNU-stack, "", @progbits
