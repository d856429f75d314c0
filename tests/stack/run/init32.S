/* SPDX-License-Identifier: GPL-2.0-only */
/* Process 1 of a 32-bit Linux guest, without a library: prints a line and powers off. */
	.text
	.globl	_start
_start:
	mov	$4, %eax			/* write(1, text, length) */
	mov	$1, %ebx
	mov	$text, %ecx
	mov	$(end - text), %edx
	int	$0x80
	mov	$88, %eax			/* reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF) */
	mov	$0xfee1dead, %ebx
	mov	$672274793, %ecx
	mov	$0x4321fedc, %edx
	int	$0x80
1:	jmp	1b
text:
	.ascii	"the 32-bit guest is up\n"
end:

	.section .note.GNU-stack, "", @progbits
