#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# TEST: a multiboot payload is told that it was booted so. usage: loader.sh BOOTINFO_MULTIBOOT_PAYLOAD
unikvm run --host local -q --timeout 10 "$1" | grep -x 'loader multiboot'
