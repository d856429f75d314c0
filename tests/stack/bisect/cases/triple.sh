#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# TEST: a triple fault is a panic of the guest, status 120. usage: triple.sh ENDING_PAYLOAD
unikvm run --host local --timeout 10 -p triple "$1"
status=$?
case $status in
120) exit 0 ;;
125) exit 125 ;;
*) exit 1 ;;
esac
