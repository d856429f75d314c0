# SPDX-License-Identifier: GPL-2.0-only
"""Entry: finds the command's module, parses, runs, and turns errors into one line and a status. Only `cli` exits."""

from __future__ import annotations

import os
import sys

from unikvm.errors import CANNOT_RUN, VMM_ERROR, CannotRun, UnikvmError

# Name → one line. The modules are imported when they are called for: start-up time is a feature.
COMMANDS = {
    "run": "boot a kernel or a payload, with a command if you like",
    "bisect": "find the commit that broke a test, and which half of it",
    "check": "builds, tests and KVM's own suites for a range of commits: the gate for a patch",
    "list": "the guests that run",
    "stat": "what a running guest is, and how it is",
    "exec": "run a command in a running guest",
    "shell": "a login shell in a running guest",
    "cp": "copy files into a running guest, and out of it",
    "set": "change a running guest",
    "attach": "plug a device into a running guest",
    "detach": "take a device out of a running guest",
    "stop": "end running guests",
    "doctor": "what this machine can do, and what is missing",
    "version": "both halves, their commits, and whether they match",
    "completion": "print a shell's completion script",
}


TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from typing import Any, Protocol

    class Command(Protocol):
        """What a module in `cli` offers."""

        def add_arguments(self, parser: ArgumentParser) -> None: ...

        def main(self, args: Any) -> int: ...


def load(name: str) -> Command:
    module: Command = __import__(f"unikvm.cli.{name}", fromlist=["main"])
    return module


def usage() -> str:
    """The overview that `unikvm --help` prints."""
    lines = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return (
        "usage: unikvm COMMAND [OPTION...]\n\n"
        "A KVM-only virtual machine monitor and the dev kit around it, one tree with its kernel half.\n\n"
        f"{lines}\n\n"
        "examples:\n"
        "  unikvm run payload.elf                   a bare-metal payload on /dev/kvm\n"
        "  unikvm run -- uname -a                   a command in a Linux guest\n"
        "  unikvm run -k arch/x86/boot/bzImage      your own kernel, with a shell\n"
        "  unikvm bisect --good v0.1 -- TEST        which commit broke it, and which half\n"
        "  unikvm check                             what is not upstream yet, commit by commit\n\n"
        "`unikvm COMMAND --help` says more of each.\n"
    )


def dispatch(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help", "help"):
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] == "--help":
        sys.stdout.write(usage())
        return 0 if argv else CANNOT_RUN
    if argv[0] in ("-V", "--version"):
        argv = ["version", *argv[1:]]
    name = argv[0]
    if name not in COMMANDS:
        from unikvm.cli.elsewhere import command as find

        meant = find(name, COMMANDS)
        hint = f"use `unikvm {meant}`" if meant else f"one of {', '.join(COMMANDS)}"
        raise CannotRun(f"no command {name!r}", hint=hint)
    module = load(name)
    options: list[str] = argv[1:]
    command: list[str] = []
    if takes_command(getattr(module, "USAGE", None)):
        options, command = split_command(options)
    quick = getattr(module, "quick_parse", None)
    args = quick(options) if quick else None
    if args is None:
        from unikvm.cli.parser import command_parser

        parser = command_parser(name)
        if getattr(module, "BARE_COMMAND", False) and "--" not in argv:
            options, command = parser.split(options)
        args = parser.parse_args(options)
    args.command = command
    return module.main(args)


def takes_command(usage: str | None) -> bool:
    """Whether what follows `--` is a command, by the command's USAGE."""
    return "-- " in (usage or "")


def split_command(argv: list[str]) -> tuple[list[str], list[str]]:
    """Options, and what follows the first `--`: argparse would take its first word for a positional."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except UnikvmError as error:
        sys.stderr.write(f"unikvm: {error}\n")
        return error.outcome
    except KeyboardInterrupt:
        sys.stderr.write("unikvm: interrupted\n")
        return CANNOT_RUN
    except BrokenPipeError:
        return CANNOT_RUN  # nobody reads on
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"unikvm: {sys.executable} has no package {error.name} (`make setup` installs what is missing)\n"
        )
        return CANNOT_RUN
    except Exception as error:
        if os.environ.get("UNIKVM_DEBUG"):
            raise
        sys.stderr.write(
            f"unikvm: defect: {type(error).__name__}: {error} (UNIKVM_DEBUG=1 shows where; please report it)\n"
        )
        return VMM_ERROR


def open_standard_descriptors() -> None:
    """Have all three: what is opened first would else take the place of one that the caller closed."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8", closefd=False))


def entry() -> None:
    """Run the command line and end the process with its status."""
    open_standard_descriptors()
    try:
        status = main()
    except SystemExit as end:  # argparse's way out, after --help as well
        status = int(end.code or 0)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # nobody reads on: the status counts
    except OSError as error:
        sys.stderr.write(f"unikvm: stdout cannot be written: {error.strerror}\n")
        status = status or CANNOT_RUN
    try:
        sys.stderr.flush()
    except OSError:
        pass
    # Nothing is left to do, and the interpreter's own tear-down takes longer than a payload.
    os._exit(status)
