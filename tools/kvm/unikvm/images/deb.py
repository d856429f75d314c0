# SPDX-License-Identifier: GPL-2.0-only
"""Reads a .deb where there is no dpkg: an ar archive (deb(5)) whose data.tar holds the files.

For a Debian kernel on another distribution. Where dpkg-deb is, packages.py prefers it: it is what Debian trusts.
"""

from __future__ import annotations

import io

from unikvm.errors import CannotRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

MAGIC = b"!<arch>\n"
HEADER_SIZE = 60
SIZE_AT = slice(48, 58)  # decimal digits
END_AT = slice(58, 60)
END = b"`\n"
DATA = "data.tar"


def unpack(path: str, target: str) -> None:
    """Unpack the files of the package `path` below `target`. CannotRun when it is damaged; OSError as it comes."""
    import lzma
    import tarfile
    import zlib

    name, data = _data_member(path)
    try:
        with tarfile.open(fileobj=_decompressed(path, name, data), mode="r|") as tar:
            if hasattr(tarfile, "tar_filter"):  # nothing outside of `target`; later 3.11s have it
                tar.extractall(target, filter="tar")
            else:
                tar.extractall(target)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        raise CannotRun(f"{path} is not a sound package: {error}") from error


def _data_member(path: str) -> tuple[str, bytes]:
    """Name and content of the archive's data.tar.*."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CannotRun(f"{path} is not a sound package: it is no ar archive")
        while head := file.read(HEADER_SIZE):
            digits = head[SIZE_AT].strip()
            if head[END_AT] != END or not digits.isdigit():
                break
            name, size = head[:16].decode("latin-1").strip().rstrip("/"), int(digits)
            if name.startswith(DATA):
                data = file.read(size)
                if len(data) == size:
                    return name, data
                break
            file.seek(size + size % 2, 1)
    raise CannotRun(f"{path} is not a sound package: it ends early")


def _decompressed(path: str, name: str, data: bytes) -> IO[bytes]:
    packed = io.BytesIO(data)
    if name == DATA:
        return packed
    if name.endswith((".xz", ".lzma")):  # Debian's: not all of it at once in memory
        import lzma

        return lzma.LZMAFile(packed)
    from unikvm.images.compression import decompress

    return io.BytesIO(decompress(path, data))
