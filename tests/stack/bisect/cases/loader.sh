#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# TEST: a multiboot payload is told that it was booted so. usage: loader.sh BOOTINFO_MULTIBOOT_PAYLOAD
said=$(unikvm run --host local -q --timeout 10 "$1") || exit
case $said in
'loader multiboot'*) ;;
*)
	echo "the payload says: $said" | head -n 1 >&2
	exit 1
	;;
esac
