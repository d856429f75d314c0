# SPDX-License-Identifier: GPL-2.0-only
"""The memory of a machine that has more than RAM from start to end: what comes and goes while it runs, and images.

Imported for machines that have any of it.
"""

from __future__ import annotations

from unikvm.arch.x86_64 import layout
from unikvm.errors import UnikvmError
from unikvm.memory import PAGE
from unikvm.record import State
from unikvm.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unikvm.machine.config import Config
    from unikvm.memory import GuestMemory
    from unikvm.sys.kvm import Vm
    from unikvm.virtio.balloon import Balloon
    from unikvm.virtio.device import VirtioDevice
    from unikvm.virtio.mem import Mem
    from unikvm.virtio.pmem import Pmem

    Schedule = Callable[[float, Callable[[], object]], None]

MIN_TARGET = 16 << 20  # a guest that is left less is only killed
PULL_SECONDS = 10.0  # that a guest has for memory that it is to pull out, before the balloon is filled regardless


class Ram(State):
    """Devices that are memory, or change how much there is of it. `size`: bytes there are from the start, `most` that
    can be; `pluggable`: (start, bytes) of the region for the rest."""

    size: int
    most: int
    pluggable: tuple[int, int] | None = None
    balloon: Balloon | None = None
    mem: Mem | None = None
    pmems: tuple[Pmem, ...] = ()
    end: int = 0  # of all of it in the guest's address space
    asked: int = 0  # by the last `resize` of this process: the devices know of one before a snapshot
    times: int = 0  # that it was called

    @property
    def devices(self) -> list[VirtioDevice]:
        return [device for device in (self.balloon, self.mem, *self.pmems) if device is not None]

    def attach(self, memory: GuestMemory, vm: Vm, schedule: Schedule) -> None:
        """Give the images their places, and KVM slots after those of RAM. `schedule` calls back on the io thread."""
        self._schedule = schedule
        from unikvm.uapi.kvm import KVM_MEM_READONLY

        for slot, pmem in enumerate(self.pmems, len(memory.regions)):
            gpa = layout.above(self.end)
            pmem.place(gpa)
            region = memory.attach(gpa, pmem.mapping.view, pmem.mapping.address)
            flags = KVM_MEM_READONLY if pmem.readonly else 0
            vm.set_user_memory_region(slot, region.gpa, region.size, region.hva, flags)
            self.end = gpa + pmem.size

    def resize(self, size: int) -> None:
        """Ask the guest to have `size` bytes in all: what is over `self.size` is plugged in, what is under it goes into
        the balloon. It follows as it can; `actual` says how far. UnikvmError where there is nothing to ask it with."""
        least = MIN_TARGET if self.balloon is not None else self.size
        if not least <= size <= self.most:
            hint = "" if size > self.most or self.balloon is not None else "--mem ...,balloon takes memory away"
            if size > self.most:
                hint = "--mem ...,max= sets how far it can grow"
            span = f"from {format_size(least)} to {format_size(self.most)}"
            raise UnikvmError(f"the guest's memory goes {span}, not to {format_size(size)}", hint=hint)
        from unikvm.virtio.mem import BLOCK

        if (size - self.size) % (BLOCK if size > self.size else PAGE):
            raise UnikvmError(
                f"the guest's memory grows from {format_size(self.size)} by multiples of {format_size(BLOCK)}",
                hint=f"{format_size(self.size + (size - self.size) // BLOCK * BLOCK)}, for example",
            )
        self.asked = size
        self.times += 1
        if self.mem is not None:
            self.mem.requested = max(size - self.size, 0)
        self._fill()
        if self._waiting:
            times = self.times
            self._schedule(PULL_SECONDS, lambda: self._fill(regardless=times == self.times))

    @property
    def _waiting(self) -> bool:
        """Whether the guest has yet to pull memory out."""
        return self.mem is not None and self.mem.plugged > self.mem.requested

    def _fill(self, *, regardless: bool = False) -> None:
        """Set the balloon's target, but not before what is to be pulled out is.

        The guest would fill the balloon with pages from there, and its driver would try again a minute later.
        """
        if self.asked and self.balloon is not None and (regardless or not self._waiting):
            target = max(self.size - self.asked, 0)
            if target != self.balloon.target:
                self.balloon.target = target

    @property
    def wanted(self) -> int:
        """Bytes that the guest is asked to have."""
        if self.asked:
            return self.asked
        ballooned = self.balloon.target if self.balloon is not None else 0
        return self.size - ballooned + (self.mem.requested if self.mem is not None else 0)

    @property
    def actual(self) -> int:
        """Bytes that the guest has, by its own word as far as the balloon goes."""
        ballooned = self.balloon.actual if self.balloon is not None else 0
        return self.size - min(ballooned, self.size) + (self.mem.plugged if self.mem is not None else 0)

    def statistics(self, answer: Callable[[dict[str, int]], object]) -> None:
        """Have the guest look at its memory; `answer` is called on the io thread. UnikvmError where it cannot."""
        if self.balloon is None:
            raise UnikvmError("the guest has no balloon to ask", hint="--mem ...,balloon")
        self.balloon.ask(answer)


def prepare(config: Config) -> Ram:
    """Open and make what `config` asks for, with nothing connected yet; CannotRun where that cannot be."""
    ram = Ram(size=config.memory, most=max(config.memory, config.max_memory))
    ram.end = layout.ram_end(config.memory)
    if config.balloon:
        from unikvm.virtio.balloon import Balloon

        ram.balloon = Balloon()
    if ram.most > ram.size:
        from unikvm.virtio.mem import Mem

        start, size = ram.pluggable = layout.pluggable(ram.size, ram.most - ram.size)
        ram.mem = Mem(start, size)
        ram.mem.changed = ram._fill  # type: ignore[method-assign]
        ram.end = start + size
    try:
        for pmem in config.pmems:
            from unikvm.virtio.pmem import Pmem

            ram.pmems += (Pmem(pmem.path, mode=pmem.mode),)
    except BaseException:
        for opened in ram.pmems:
            opened.discard()
        raise
    return ram
