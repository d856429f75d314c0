#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# TEST: what is written to the memory of pc-testdev can be read back. usage: mmio.sh MMIO_PAYLOAD
said=$(unikvm run --host local -q --timeout 10 --testdev "$1") || exit
if [ "$said" != 0x12345678 ]; then
	echo "read back: $said" >&2
	exit 1
fi
