# SPDX-License-Identifier: GPL-2.0-only
"""The vhost-user protocol's numbers and structs (QEMU: docs/interop/vhost-user.rst). Pure; there is no header for them.

Everything is in the machine's byte order; both ends are on one machine, which is an x86.
"""

from __future__ import annotations

from struct import Struct

HEADER = Struct("<III")  # request, flags, size of the payload
VERSION = 0x1  # of flags: bits 0 and 1
VERSION_MASK = 0x3
REPLY = 0x4  # of flags: this is an answer
NEED_REPLY = 0x8  # of flags: say whether it worked (REPLY_ACK)

# Requests of the front end ("Front-end message types").
GET_FEATURES = 1
SET_FEATURES = 2
SET_OWNER = 3
SET_MEM_TABLE = 5
SET_VRING_NUM = 8
SET_VRING_ADDR = 9
SET_VRING_BASE = 10
GET_VRING_BASE = 11
SET_VRING_KICK = 12
SET_VRING_CALL = 13
GET_PROTOCOL_FEATURES = 15
SET_PROTOCOL_FEATURES = 16
GET_QUEUE_NUM = 17
SET_VRING_ENABLE = 18
SET_BACKEND_REQ_FD = 21
GET_CONFIG = 24
GET_INFLIGHT_FD = 31
SET_INFLIGHT_FD = 32

NAMES = {
    value: name
    for name, value in list(globals().items())
    if name.startswith(("GET_", "SET_")) and isinstance(value, int)
}

# Requests of the back end ("Back-end message types"), on a connection of their own.
BACKEND_CONFIG_CHANGE_MSG = 2
MAX_BACKEND_PAYLOAD = 1024  # bytes of any of them, known or not; none in the specification has half as many

F_PROTOCOL_FEATURES = 30  # VHOST_USER_F_PROTOCOL_FEATURES, a bit among the virtio features

# Protocol features ("Protocol features"): bit numbers.
PROTOCOL_F_MQ = 0
PROTOCOL_F_REPLY_ACK = 3
PROTOCOL_F_BACKEND_REQ = 5
PROTOCOL_F_CONFIG = 9
PROTOCOL_F_INFLIGHT_SHMFD = 12

U64 = Struct("<Q")
VRING_STATE = Struct("<II")  # index, num
VRING_ADDR = Struct("<IIQQQQ")  # index, flags, descriptor table, used ring, available ring, log: user addresses
MEMORY_HEADER = Struct("<II")  # number of regions, padding
MEMORY_REGION = Struct("<QQQQ")  # guest address, size, user address, offset in the descriptor's file
MAX_REGIONS = 8
CONFIG_HEADER = Struct("<III")  # offset, size, flags
MAX_CONFIG = 256  # bytes of a device's configuration space that a message may carry
INFLIGHT = Struct("<QQHH4x")  # size and offset of the mapping, number of queues, entries of each
