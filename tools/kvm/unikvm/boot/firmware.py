# SPDX-License-Identifier: GPL-2.0-only
"""PC firmware: an image that ends at 4 GiB, where a CPU starts after its reset, and its variables in flash below it.

SeaBIOS is one image. OVMF is two: its code, and the variables that it writes to.
"""

from __future__ import annotations

import os
from struct import Struct, pack

from unikvm.arch.x86_64 import layout
from unikvm.arch.x86_64.state import RESET
from unikvm.boot.image import PAGE, Entry, Image
from unikvm.memory import GuestMemory

_MIN_SIZE = 64 << 10  # what a CPU can reach right after its reset
_RESET_CODE = 16  # bytes from its first instruction to the end of memory
# EFI_FIRMWARE_VOLUME_HEADER (UEFI PI 1.7, volume 3, §3.2.1): FvLength and Signature
_VOLUME = Struct("<Q4s")
_VOLUME_AT = 32
_VOLUME_SIGNATURE = b"_FVH"
_SERIAL_PORT_FILE = "etc/sercon-port"  # SeaBIOS: there is no VGA, use this


def load(code_path: str, variables_path: str, memory: GuestMemory) -> tuple[Entry, GuestMemory]:
    """Read the images. Returns the entry and the flash: its last region is the code, one before it are the variables.

    CannotRun when a file is missing, or is no such image.
    """
    opened: list[Image] = []
    try:
        code = Image.open(code_path)
        opened.append(code)
        stretches = [(layout.HIGH_MEMORY - code.size, code.size)]
        _check_code(code)
        if variables_path:
            variables = Image.open(variables_path)
            opened.append(variables)
            _check_variables(variables, code)
            stretches.insert(0, (stretches[0][0] - variables.size, variables.size))
        flash = GuestMemory(stretches)
        for image, region in zip(reversed(opened), flash.regions, strict=True):
            flash.readinto_from(image.fd, 0, region.gpa, image.size)
    finally:
        for each in opened:
            os.close(each.fd)
    # Real mode reaches the end of the image just below 1 MiB, in RAM here: see devices/i440fx.py.
    if memory.size >= layout.BIOS_END:
        size = min(code.size, layout.BIOS_END - layout.BIOS)
        memory.write(layout.BIOS_END - size, flash.read(layout.HIGH_MEMORY - size, size))
    return Entry(RESET, {}), flash


def _check_code(image: Image) -> None:
    if not _MIN_SIZE <= image.size <= layout.FLASH_MAX or image.size % PAGE:
        raise image.bad(
            f"it is not a firmware image: it has {image.size} bytes",
            f"one has {_MIN_SIZE >> 10} KiB to {layout.FLASH_MAX >> 20} MiB, in pages of 4 KiB",
        )
    if len(set(image.pread(_RESET_CODE, image.size - _RESET_CODE))) == 1:
        raise image.bad("it is not a firmware image: there is no code where a CPU starts, 16 bytes before its end")


def _check_variables(image: Image, code: Image) -> None:
    length, signature = _VOLUME.unpack(image.pread(_VOLUME.size, _VOLUME_AT).ljust(_VOLUME.size, b"\0"))
    if signature != _VOLUME_SIGNATURE or image.size % PAGE or image.size + code.size > layout.FLASH_MAX:
        raise image.bad("it is not a store of UEFI variables", "copy OVMF's OVMF_VARS_4M.fd, or name a new file")
    if length != image.size:
        # The store ends where the code begins, so all of it would be at the wrong address.
        raise image.bad(f"it has {image.size} bytes of a store of UEFI variables of {length}", "name a new file")


def files(memory_size: int) -> dict[str, bytes]:
    """The fw_cfg files that tell firmware of RAM and of the console."""
    ram = b"".join(pack("<QQI", start, size, layout.E820_RAM) for start, size in layout.ram_layout(memory_size))
    return {"etc/e820": ram, _SERIAL_PORT_FILE: layout.COM1.to_bytes(8, "little")}
