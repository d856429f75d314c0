# SPDX-License-Identifier: GPL-2.0-only
"""What users of other tools type, and what it is called here. Imported for mistakes alone."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

COMMANDS = {
    "attach-device": "attach",
    "attach-disk": "attach",
    "attach-interface": "attach",
    "balloon": "set",
    "block_resize": "set",
    "blockresize": "set",
    "boot": "run",
    "console": "shell",
    "copy": "cp",
    "create": "run",
    "destroy": "stop",
    "detach-device": "detach",
    "detach-disk": "detach",
    "dominfo": "stat",
    "info": "stat",
    "inspect": "stat",
    "kill": "stop",
    "ls": "list",
    "ps": "list",
    "rm": "stop",
    "scp": "cp",
    "setmem": "set",
    "setvcpus": "set",
    "shutdown": "stop --power",
    "ssh": "shell",
    "start": "run",
}
# QEMU's with one dash, then those of virtme-ng, kvmtool, docker and others.
OPTIONS = {
    "-accel": "--host",
    "-bios": "--firmware",
    "-chardev": "--console",
    "-cpu": "--cpus N,model=M",
    "-drive": "--disk",
    "-hda": "--disk",
    "-machine": "--transport",
    "-monitor": "`unikvm stat`, `set`, `attach` and `stop` of another terminal",
    "-netdev": "--net",
    "-nic": "--net",
    "-nographic": "none, the terminal is the guest's",
    "-serial": "--console serial",
    "-smp": "--cpus",
    "-virtfs": "--rwdir",
    "--blk": "--disk",
    "--cmdline": "--append",
    "--detach": "`unikvm run -n NAME … &`",
    "--exec": "`-- CMD`",
    "--memory": "--mem",
    "--network": "--net",
    "--params": "--append",
    "--publish": "--forward",
    "--pwd": "--root / (it begins where you are), or --cwd DIR",
    "--rodir": "--root DIR",
    "--run": "--kernel",
    "--rw": "--root / --rwdir DIR",
    "--script-sh": "`-- sh -c SCRIPT`",
    "--ssh": "`unikvm shell NAME`",
    "--volume": "--rwdir",
    "--workdir": "--cwd",
}
CLOSE = 0.7  # of 1: --nonsense is not --console


def command(word: str, known: Collection[str]) -> str:
    """The command that `word` is likely to mean, or an empty string."""
    return COMMANDS.get(word) or "".join(get_close_matches(word, known, 1, CLOSE))


def option(word: str, known: Collection[str]) -> str:
    """The same for an option, of a command with the options `known`."""
    doubled = f"-{word}"
    if doubled in known:
        return doubled  # QEMU's -kernel
    meant = OPTIONS.get(word, "--")
    if not meant.startswith("--") or meant.split()[0] in known:
        return meant
    return "".join(get_close_matches(word, known, 1, CLOSE)) if word.startswith("--") else ""


def one_dash(word: str, known: Collection[str]) -> bool:
    """Whether `word` is QEMU's -name or the like, and not the value of a short option behind it (-c4)."""
    return word not in known and word[:1] == "-" != word[1:2] and (f"-{word}" in known or word in OPTIONS)
