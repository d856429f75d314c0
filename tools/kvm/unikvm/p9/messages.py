# SPDX-License-Identifier: GPL-2.0-only
"""9P2000.L's numbers and encodings (diod: protocol.md; Linux: include/net/9p/9p.h). Pure; no uapi header has them.

A message is its size (4 bytes, itself included), type (1) and tag (2), then its fields, all little-endian; a string is
its length (2) and bytes, a qid a type (1), version (4) and path (8).
"""

from __future__ import annotations

from struct import Struct, unpack_from
from struct import error as StructError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADER = Struct("<IBH")
QID = Struct("<BIQ")
VERSION = b"9P2000.L"
MAX_MESSAGE = 512_000  # what Linux has room for with virtio: 125 pages
MIN_MESSAGE = 4096
ROOM = 24  # bytes of a message beside the data that it carries
MAX_WALK = 16  # names
QID_DIR, QID_LINK, QID_FILE = 0x80, 0x02, 0x00

# Requests; an answer has its request's number and one more.
LERROR = 6  # of which there are only answers
STATFS = 8
LOPEN = 12
LCREATE = 14
SYMLINK = 16
MKNOD = 18
READLINK = 22
GETATTR = 24
SETATTR = 26
READDIR = 40
FSYNC = 50
LOCK = 52
GETLOCK = 54
LINK = 70
MKDIR = 72
RENAMEAT = 74
UNLINKAT = 76
START = 100  # Tversion
ATTACH = 104
FLUSH = 108
WALK = 110
READ = 116
WRITE = 118
CLUNK = 120
REMOVE = 122

# Of Tgetattr: everything that stat(2) says. Of Tsetattr: what is to be set.
GETATTR_BASIC = 0x7FF
SET_MODE, SET_UID, SET_GID, SET_SIZE = 0x1, 0x2, 0x4, 0x8
SET_ATIME, SET_MTIME, SET_CTIME, SET_ATIME_GIVEN, SET_MTIME_GIVEN = 0x10, 0x20, 0x40, 0x80, 0x100

ATTRIBUTES = Struct("<Q13sIIIQQQQQQQQQQQQQQQ")  # Rgetattr
STATISTICS = Struct("<IIQQQQQQI")  # Rstatfs


class Malformed(Exception):
    """A message that is none of this protocol: the connection is of no use any more."""


def fields(layout: str, body: memoryview) -> list[Any]:
    """The fields of a message's body: `b` one byte, `h` two, `w` four, `q` eight, `s` a string; nothing may be left."""
    found: list[Any] = []
    at = 0
    try:
        for kind in layout:
            value: Any
            if kind == "s":
                (size,) = unpack_from("<H", body, at)
                value = bytes(body[at + 2 : at + 2 + size])
                if len(body) < at + 2 + size:
                    raise Malformed("a string that ends early")
                at += 2 + size
            else:
                (value,) = unpack_from({"b": "<B", "h": "<H", "w": "<I", "q": "<Q"}[kind], body, at)
                at += {"b": 1, "h": 2, "w": 4, "q": 8}[kind]
            found.append(value)
    except StructError:
        raise Malformed("a message that ends early") from None
    if at != len(body):
        raise Malformed("a message that goes on behind its end")
    return found


def string(data: bytes) -> bytes:
    return len(data).to_bytes(2, "little") + data


def message(kind: int, tag: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def refusal(tag: int, number: int) -> bytes:
    """Rlerror with an errno."""
    return message(LERROR + 1, tag, number.to_bytes(4, "little"))
