#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# TEST: a triple fault is a panic of the guest. usage: triple.sh ENDING_PAYLOAD
unikvm run --host local --timeout 10 -p triple "$1"
test $? -eq 120
