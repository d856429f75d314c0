# SPDX-License-Identifier: GPL-2.0-only
"""kvm-unit-tests: reads x86/unittests.cfg of a built tree, and makes of each test a command for unikvm and for QEMU.

What a test asks of QEMU and unikvm does not have is a reason to skip it, never to run another test in its place.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from unikvm.check.job import BY_QEMU, BY_UNIKVM, HOST, IN_TREE, Task
from unikvm.errors import CannotRun, UnikvmError
from unikvm.units import MIB, parse_size

MAX_CPUS = 8  # of unikvm's machines
ARCH = "x86_64"
QEMU_MEMORY = "128M"  # its default, which the tests are written for
BY_HAND = "nodefault"  # the group of tests that are run by name alone
GRACE = 10.0  # seconds after a VMM's own time-out, for it to end by itself

_SECTION = re.compile(r"\[(.+)\]$")
_SETTING = re.compile(r"(\w+)\s*=\s*(.*)$")
# The keys of newer trees are what extra_params was: qemu_params, and test_args for the rest of -append.
_PARAMS = ("extra_params", "qemu_params")
# CPU models that stand for "all that KVM has", which is what a guest of unikvm gets.
_ALL_FEATURES = ("max", "host", "kvm64", "qemu64")
_NOTHING_TO_DO = {"-enable-kvm": 0, "-nodefaults": 0, "-nographic": 0, "-no-reboot": 0, "-display": 1, "-vnc": 1,
                  "-serial": 1, "-overcommit": 1}  # fmt: skip


@dataclass(frozen=True)
class UnitTest:
    """A section of unittests.cfg. `params` are for QEMU, in a shell's words; `check` are PATH=VALUE."""

    name: str
    file: str = ""
    smp: str = "1"
    params: str = ""
    args: str = ""
    groups: tuple[str, ...] = ()
    arch: str = ""
    accel: str = ""
    timeout: str = ""
    check: tuple[str, ...] = ()


class Unsupported(Exception):
    """What a test asks for and unikvm does not have."""


def parse(text: str) -> list[UnitTest]:
    """The tests of a unittests.cfg, by the rules of scripts/common.bash: a line is [NAME], KEY = VALUE, or nothing."""
    found: list[tuple[str, dict[str, str], list[str]]] = []
    for line in map(str.strip, text.splitlines()):
        if section := _SECTION.match(line):
            found.append((section[1], {}, []))
        elif found and (setting := _SETTING.match(line)):
            if setting[1] == "check":  # comes more than once in some
                found[-1][2].extend(setting[2].split())
            else:
                found[-1][1][setting[1]] = setting[2]
    # A name that comes twice is one test, the last: results go by name.
    return list({name: _test(name, settings, checks) for name, settings, checks in found}.values())


def _test(name: str, settings: dict[str, str], checks: Sequence[str]) -> UnitTest:
    known = {key: settings[key] for key in ("file", "smp", "arch", "accel", "timeout") if key in settings}
    return UnitTest(
        name,
        params=" ".join(settings[key] for key in _PARAMS if key in settings),
        args=settings.get("test_args", ""),
        groups=tuple(settings.get("groups", "").split()),
        check=tuple(checks),
        **known,
    )


@dataclass(frozen=True)
class Machine:
    """What a test's parameters ask for, as far as unikvm has it."""

    cpus: int
    memory: str
    args: str


def words_of(test: UnitTest) -> list[str]:
    """The parameters as QEMU gets them. Unsupported where they are a shell's work."""
    text = test.params.replace("`date +%s`", str(int(time.time()))).replace("$MAX_SMP", "1")
    if "`" in text or "$(" in text:
        raise Unsupported("its parameters are a shell's work")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Unsupported(f"its parameters cannot be read: {error}") from None
    if test.args:
        words += ["-append", shlex.split(test.args)[0] if test.args[:1] in "'\"" else test.args]
    return words


def machine_of(test: UnitTest) -> Machine:
    """The machine that `test` wants. Raises Unsupported."""
    memory, args, smp = QEMU_MEMORY, "", test.smp.replace("$MAX_SMP", "1")
    words = iter(words_of(test))
    for word in words:
        option = f"-{word.lstrip('-')}"
        if option in _NOTHING_TO_DO:
            for _ in range(_NOTHING_TO_DO[option]):
                next(words, "")
            continue
        value = next(words, "")
        if option == "-append":
            args = value
        elif option == "-m":
            memory = value.removeprefix("size=")
        elif option == "-smp":
            smp = value
        elif option == "-cpu":
            _check_cpu(value)
        else:
            raise Unsupported(f"unikvm has no `{option} {value}`".rstrip())
    if not smp.isdigit() or not 1 <= int(smp) <= MAX_CPUS:
        raise Unsupported(f"unikvm has no `-smp {smp}`")
    try:
        parse_size(memory)
    except UnikvmError as error:
        raise Unsupported(error.message) from None
    return Machine(int(smp), memory, args)


def _check_cpu(model: str) -> None:
    """A guest of unikvm has all that KVM supports: a model that takes something away is another processor."""
    name, *features = model.split(",")
    lacks = [part for part in features if not (part.startswith("+") or part in ("host-phys-bits", "migratable=no"))]
    if name not in _ALL_FEATURES or lacks:
        raise Unsupported(f"unikvm has no `-cpu {model}`")


def read(folder: str) -> list[UnitTest]:
    """The tests of a built tree of kvm-unit-tests. CannotRun where it is none."""
    path = os.path.join(folder, "x86/unittests.cfg")
    try:
        with open(path, encoding="utf-8") as file:
            tests = parse(file.read())
    except OSError as error:
        raise CannotRun(
            f"{folder} is no tree of kvm-unit-tests: {path}: {error.strerror}", hint="--kvm-unit-tests DIR, built"
        ) from None
    if not any(os.path.exists(os.path.join(folder, "x86", test.file)) for test in tests if test.file):
        raise CannotRun(f"{folder} is not built", hint="./configure && make, there")
    return tests


def chosen(tests: Sequence[UnitTest], patterns: Sequence[str]) -> list[UnitTest]:
    """Those that one of `patterns` names, or a group of theirs; without patterns all but those to be run by hand."""
    if not patterns:
        return [test for test in tests if BY_HAND not in test.groups]
    return [test for test in tests if any(fnmatchcase(word, p) for word in (test.name, *test.groups) for p in patterns)]


def tasks(folder: str, tests: Sequence[UnitTest], seconds: float, *, qemu: bool) -> list[Task]:
    """A task for each of `tests`, for unikvm or for QEMU. `seconds`: of a test without a time of its own."""
    return [_task(os.path.join(folder, "x86"), test, seconds, qemu) for test in tests]


def _task(folder: str, test: UnitTest, seconds: float, qemu: bool) -> Task:
    path = os.path.join(folder, test.file)
    limit = max(seconds, float(re.sub(r"\D", "", test.timeout) or 0))
    try:
        _check(test, path)
        command = _qemu(path, test) if qemu else _unikvm(path, test, limit)
        skip = ""
    except Unsupported as error:
        command, skip = (), str(error)
    return Task(
        test.name,
        HOST,
        command,
        cwd=folder,
        timeout=limit + (0.0 if qemu else GRACE),
        reads=BY_QEMU if qemu else BY_UNIKVM,
        requires=test.check,
        skip=skip,
    )


def _check(test: UnitTest, path: str) -> None:
    if test.arch and test.arch != ARCH:
        raise Unsupported(f"for {test.arch} only")
    if test.accel and test.accel != "kvm":
        raise Unsupported(f"for {test.accel} only")
    if not test.file or not os.path.exists(path):
        raise Unsupported(f"not built: {path}")


def _unikvm(path: str, test: UnitTest, seconds: float) -> tuple[str, ...]:
    """As QEMU does, the command line begins with the file's name: the tests count on it."""
    machine = machine_of(test)
    words = ["-k", path, "-m", machine.memory, "-c", str(machine.cpus), "-p", f"{path} {machine.args}".strip()]
    return (f"{IN_TREE}/scripts/unikvm", "run", "--host", "local", "--testdev", "--timeout", f"{seconds:g}", *words)


def _qemu(path: str, test: UnitTest) -> tuple[str, ...]:
    """As x86/run of kvm-unit-tests starts it."""
    own = ["-nodefaults", "-machine", "accel=kvm", "-display", "none", "-serial", "stdio", "-no-reboot"]
    devices = ["-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-device", "pci-testdev"]
    return ("qemu-system-x86_64", *own, *devices, "-kernel", path, "-smp", test.smp, *words_of(test))


def most_memory(tests: Sequence[UnitTest]) -> int:
    """The memory of the largest machine, in bytes."""
    sizes = [128 * MIB]
    for test in tests:
        try:
            sizes.append(parse_size(machine_of(test).memory))
        except Unsupported:
            continue
    return max(sizes)
