# SPDX-License-Identifier: GPL-2.0-only
"""The compressions of kernels, modules and packages, told apart by their first bytes.

Each is undone by the standard library, else by the Python package for it, else by the program for it.
"""

from __future__ import annotations

from struct import unpack_from

from unikvm.errors import CannotRun

LZ4_CHUNK = 8 << 20  # uncompressed bytes of a block of the legacy format
LZ4_MAGIC = b"\x02\x21\x4c\x18"


def name_of(packed: bytes) -> str:
    """The compression of `packed`: gzip, bzip2, lzma, xz, zstd, lz4 or lzo; empty when it is none of them."""
    return next((name for name, (magic, _) in FORMATS.items() if packed.startswith(magic)), "")


def decompress(path: str, packed: bytes) -> bytes:
    """Undo the compression of `packed`, which is in the file `path`. CannotRun when it is damaged or unknown here."""
    name = name_of(packed)
    if not name:
        raise CannotRun(f"{path} has a compression that unikvm does not know: {packed[:6].hex() or 'nothing'}")
    try:
        return FORMATS[name][1](packed)
    except _Missing as error:
        program, package = error.args
        raise CannotRun(
            f"{path} is compressed with {name}: {program} is missing", hint=f"install the package {package}"
        ) from None
    except Exception as error:  # each format has its own kind
        raise CannotRun(f"{path} is damaged: its {name} data cannot be unpacked ({_one_line(error)})") from error


class _Missing(Exception):
    """A program that is not there, and Debian's package with it."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _gzip(packed: bytes) -> bytes:
    import gzip

    return gzip.decompress(packed)


def _bzip2(packed: bytes) -> bytes:
    import bz2

    return bz2.decompress(packed)


def _lzma(packed: bytes) -> bytes:
    import lzma

    return lzma.decompress(packed)


def _zstd(packed: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        return _by_program("zstd", "zstd", packed)
    stream = zstandard.ZstdDecompressor().decompressobj()
    content: bytes = stream.decompress(packed)
    if not stream.eof:
        raise ValueError("it ends early")
    return content


def _lz4(packed: bytes) -> bytes:
    """The legacy frame format: blocks with their length before them, and no mark at the end."""
    try:
        import lz4.block
    except ImportError:
        return _by_program("lz4", "lz4", packed)
    blocks, at = [], len(LZ4_MAGIC)
    while at + 4 <= len(packed):
        size = unpack_from("<I", packed, at)[0]
        at += 4
        if packed[at - 4 : at] == LZ4_MAGIC:
            continue
        if at + size > len(packed):
            raise ValueError("a block ends beyond the data")
        blocks.append(lz4.block.decompress(packed[at : at + size], uncompressed_size=LZ4_CHUNK))
        at += size
    return b"".join(blocks)


def _lzo(packed: bytes) -> bytes:
    return _by_program("lzop", "lzop", packed)


def _by_program(program: str, package: str, packed: bytes) -> bytes:
    import shutil
    import subprocess

    if not shutil.which(program):
        raise _Missing(program, package)
    done = subprocess.run([program, "-dc"], input=packed, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(lines[-1] if lines else f"{program} failed with status {done.returncode}")
    return done.stdout


FORMATS = {
    "gzip": (b"\x1f\x8b", _gzip),
    "bzip2": (b"BZh", _bzip2),
    "lzma": (b"\x5d\0\0", _lzma),
    "xz": (b"\xfd7zXZ\0", _lzma),
    "zstd": (b"\x28\xb5\x2f\xfd", _zstd),
    "lz4": (LZ4_MAGIC, _lz4),
    "lzo": (b"\x89LZO\0\r\n\x1a\n", _lzo),
}
