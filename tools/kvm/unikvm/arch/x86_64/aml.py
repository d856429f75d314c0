# SPDX-License-Identifier: GPL-2.0-only
"""A small encoder of ACPI machine language (ACPI 6.4, chapter 20) and resource descriptors (§6.4).

Why not iasl at build time: which devices a machine has is known when it starts, and patching compiled bytes
needs as much knowledge of the encoding as writing them. Terms are plain bytes; joining them is concatenation.
"""

from __future__ import annotations

from struct import pack

_ZERO, _ONE = b"\x00", b"\x01"


def pkg_length(body: bytes) -> bytes:
    """`body` with its PkgLength before it (§20.2.4); the length counts itself."""
    size = len(body)
    if size + 1 < 1 << 6:
        return bytes((size + 1,)) + body
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little") + body
    raise ValueError(f"{size} bytes are too many for one AML term")


def name_string(path: str) -> bytes:
    """A NameString (§20.2.2): `\\` for the root, or `^` for each scope up, then segments separated by dots, short ones
    padded with `_`."""
    rest = path.lstrip("\\^")
    prefix, path = path[: len(path) - len(rest)].encode("ascii"), rest
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path.split(".")] if path else []
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"bad ACPI name {path!r}")
    if not segments:
        return prefix + b"\x00"
    if len(segments) == 2:
        prefix += b"\x2e"
    elif len(segments) > 2:
        prefix += b"\x2f" + bytes((len(segments),))
    return prefix + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest constant (§20.2.3)."""
    if value in (0, 1):
        return _ONE if value else _ZERO
    for opcode, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << (8 * size):
            return bytes((opcode,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value} does not fit 64 bits")


def string(text: str) -> bytes:
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """EISAID("PNP0501"): three letters of five bits, four hex digits, big-endian (§19.6.36)."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return b"\x0c" + pack(">HH", letters, int(text[3:], 16))


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name_string(path) + value


def package(*elements: bytes) -> bytes:
    return b"\x12" + pkg_length(bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    return b"\x11" + pkg_length(integer(len(data)) + data)


def scope(path: str, *terms: bytes) -> bytes:
    return b"\x10" + pkg_length(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    return b"\x5b\x82" + pkg_length(name_string(path) + b"".join(terms))


# Resource descriptors


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate: the descriptors and an end tag with no checksum."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(port: int, length: int) -> bytes:
    """IO (Decode16, port, port, 1, length)."""
    return pack("<BBHHBB", 0x47, 1, port, port, 1, length)


def irq(line: int) -> bytes:
    """IRQNoFlags: an ISA interrupt, edge, active high."""
    return pack("<BH", 0x22, 1 << line)


def memory32(address: int, length: int) -> bytes:
    """Memory32Fixed (ReadWrite, …)."""
    return pack("<BHBII", 0x86, 9, 1, address, length)


def interrupt(gsi: int, *, edge: bool) -> bytes:
    """Interrupt (ResourceConsumer, Level or Edge, ActiveHigh, Exclusive)."""
    return pack("<BHBBI", 0x89, 6, 3 if edge else 1, 1, gsi)


_PRODUCER_FIXED = 0x0C  # ResourceProducer, MinFixed, MaxFixed, PosDecode
_BUS_RANGE, _MEMORY_RANGE, _READ_WRITE = 2, 0, 1


def bus_window(first: int, last: int) -> bytes:
    """WordBusNumber (ResourceProducer, …): buses `first` to `last`, both included."""
    head = pack("<BHBBB", 0x88, 13, _BUS_RANGE, _PRODUCER_FIXED, 0)
    return head + pack("<5H", 0, first, last, 0, last - first + 1)


def memory_window32(start: int, end: int) -> bytes:
    """DWordMemory (ResourceProducer, …, NonCacheable, ReadWrite) for [start, end)."""
    head = pack("<BHBBB", 0x87, 23, _MEMORY_RANGE, _PRODUCER_FIXED, _READ_WRITE)
    return head + pack("<5I", 0, start, end - 1, 0, end - start)


def memory_window64(start: int, end: int) -> bytes:
    """QWordMemory (ResourceProducer, …, NonCacheable, ReadWrite) for [start, end)."""
    head = pack("<BHBBB", 0x8A, 43, _MEMORY_RANGE, _PRODUCER_FIXED, _READ_WRITE)
    return head + pack("<5Q", 0, start, end - 1, 0, end - start)


# Methods and what they do (§20.2.5). Operands and results are terms as well.

NOWHERE = b"\x00"  # the target of a result that only the enclosing term needs
ONES = b"\xff"
_NO_LOCK_WRITE_ZEROS = 2 << 5  # FieldFlags: what a write leaves out of its access is 0
BYTE_ACCESS, DWORD_ACCESS = 1, 3
_SERIALIZED = 1 << 3


def local(index: int) -> bytes:
    """LocalX."""
    return bytes((0x60 + index,))


def argument(index: int) -> bytes:
    """ArgX."""
    return bytes((0x68 + index,))


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    flags = arguments | (_SERIALIZED if serialized else 0)
    return b"\x14" + pkg_length(name_string(path) + bytes((flags,)) + b"".join(terms))


def call(path: str, *arguments: bytes) -> bytes:
    """A method's invocation."""
    return name_string(path) + b"".join(arguments)


def store(value: bytes, target: bytes) -> bytes:
    return b"\x70" + value + target


def returns(value: bytes) -> bytes:
    """Return (value)."""
    return b"\xa4" + value


def when(predicate: bytes, *terms: bytes) -> bytes:
    """If (predicate) { terms }."""
    return b"\xa0" + pkg_length(predicate + b"".join(terms))


def otherwise(*terms: bytes) -> bytes:
    """Else { terms }, right after an If."""
    return b"\xa1" + pkg_length(b"".join(terms))


def loop_while(predicate: bytes, *terms: bytes) -> bytes:
    """While (predicate) { terms }."""
    return b"\xa2" + pkg_length(predicate + b"".join(terms))


def equal(left: bytes, right: bytes) -> bytes:
    """LEqual (left, right)."""
    return b"\x93" + left + right


def both(left: bytes, right: bytes) -> bytes:
    """And (left, right), bit by bit."""
    return b"\x7b" + left + right + NOWHERE


def notify(path: str, value: bytes) -> bytes:
    """Notify (object, value)."""
    return b"\x86" + name_string(path) + value


def mutex(path: str) -> bytes:
    return b"\x5b\x01" + name_string(path) + b"\x00"


def acquire(path: str) -> bytes:
    """Acquire (mutex, for ever)."""
    return b"\x5b\x23" + name_string(path) + b"\xff\xff"


def release(path: str) -> bytes:
    return b"\x5b\x27" + name_string(path)


def port_region(path: str, port: int, length: int) -> bytes:
    """OperationRegion (path, SystemIO, port, length)."""
    return b"\x5b\x80" + name_string(path) + b"\x01" + integer(port) + integer(length)


def field(region: str, access: int, *units: tuple[str, int]) -> bytes:
    """Field (region, access, NoLock, WriteAsZeros): (name, bits) each, from bit 0 on; a gap has no name."""
    elements = b""
    for unit, bits in units:
        elements += (name_string(unit) if unit else b"\x00") + _bit_length(bits)
    return b"\x5b\x81" + pkg_length(name_string(region) + bytes((access | _NO_LOCK_WRITE_ZEROS,)) + elements)


def _bit_length(bits: int) -> bytes:
    """As PkgLength, which here counts the bits of a field and not itself."""
    if bits < 1 << 6:
        return bytes((bits,))
    return bytes((1 << 6 | bits & 0xF, bits >> 4))
