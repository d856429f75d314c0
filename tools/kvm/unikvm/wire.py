# SPDX-License-Identifier: GPL-2.0-only
"""The line protocol between the user half and init (tools/kvm/guest): encoding, and one command's course. Pure.

A line is words with one space between them, and a newline. In a word, every byte that is not printable ASCII, and '%',
is written %XX (upper case), so a word may be empty or hold anything but NUL (`data` lines: NUL as well). Text is
UTF-8; bytes that are none pass through as surrogate escapes. The requests are in Documentation/guest-init.md.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROTOCOL = "3"  # init.h: PROTOCOL
PORT_CTL, PORT_STDIN, PORT_STDOUT, PORT_STDERR = PORTS = (
    "unikvm.ctl",
    "unikvm.stdin",
    "unikvm.stdout",
    "unikvm.stderr",
)
PORT_RELAY = "unikvm.relay"  # of a host VM: not init's, but the way to the control of the guest there

_ENCODED = [bytes((b,)) if 0x20 < b < 0x7F and b != 0x25 else b"%%%02X" % b for b in range(256)]
_DECODED = {b"%02X" % b: bytes((b,)) for b in range(256)}


def hangup(port: str) -> tuple[str, str]:
    """The request for init to close the command's end of an output port: nobody reads on."""
    return "hangup", port.rpartition(".")[2]


class WireError(ValueError):
    """The other end sent a line that is none of this protocol."""


def encode_word(word: str | bytes) -> bytes:
    """One word as it stands in a line."""
    data = word.encode("utf-8", "surrogateescape") if isinstance(word, str) else word
    return b"".join(map(_ENCODED.__getitem__, data))


def encode(*words: str | bytes) -> bytes:
    """A line with its newline."""
    return b" ".join(map(encode_word, words)) + b"\n"


def decode_word(word: bytes) -> bytes:
    """The bytes of one word of a line; WireError where an escape is malformed."""
    first, *rest = word.split(b"%")
    try:
        return first + b"".join([_DECODED[part[:2]] + part[2:] for part in rest])
    except KeyError:
        raise WireError(f"malformed word {word[:40]!r}") from None


def decode(line: bytes) -> list[str]:
    """The words of a line without its newline. `raw` gives back a word's bytes exactly."""
    return [decode_word(word).decode("utf-8", "surrogateescape") for word in line.split(b" ")]


def raw(word: str) -> bytes:
    """The bytes that a decoded word stands for."""
    return word.encode("utf-8", "surrogateescape")


class LineReader:
    """Cuts a byte stream into decoded lines."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []

    def feed(self, data: bytes) -> list[list[str]]:
        """The lines that `data` completes."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._partial, lines[0]))
            self._partial = []
        if rest:
            self._partial.append(rest)
        return [decode(line) for line in lines]


def exec_line(
    argv: Sequence[str],
    *,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    user: str = "",
    tty: str = "none",
    size: tuple[int, int] = (0, 0),
) -> bytes:
    """The request that runs `argv`. `tty` is none (three ports), pty (stdin and stdout ports) or console; `size` is
    (columns, rows) of a tty; `user` is UID:GID,GROUP... or empty for root. ValueError where a word holds a NUL or there
    is no command."""
    words = ["exec"]
    if tty != "none":
        words += [f"tty={tty}", f"cols={size[0]}", f"rows={size[1]}"]
    words.append(f"cwd={cwd}")
    words += [f"user={user}"] if user else []
    words += [f"env={name}={value}" for name, value in (env or {}).items()]
    words += ["--", *argv]
    if not argv:
        raise ValueError("no command")
    if any("\0" in word for word in words):
        raise ValueError("a NUL in a command, its directory or its environment")
    return encode(*words)


class Command:
    """One command's course, as its two ends agree on it. Feed it what arrives; `done` says when everything has.

    `error` is set instead of a status where init could not start it. `signal` is the signal that ended it, or 0.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.status = 0
        self.signal = 0
        self.error = ""
        self.exited = False
        self._missing = {PORT_STDOUT: 0, PORT_STDERR: 0}  # announced minus arrived, in bytes

    def on_line(self, words: Sequence[str]) -> bool:
        """Take a line of the ctl port; False where it is not about this command."""
        if words[0] == "exit" and len(words) == 5:
            kind, value, stdout, stderr = words[1:]
            self.status, self.signal = (0, int(value)) if kind == "signal" else (int(value), 0)
            self._missing[PORT_STDOUT] += int(stdout)
            self._missing[PORT_STDERR] += int(stderr)
            self.exited = True
        elif words[0] == "ok" and len(words) == 2 and not self.pid:
            self.pid = int(words[1])
        elif words[0] == "error" and len(words) == 2 and not self.pid:
            self.error = words[1]
        else:
            return False
        return True

    def on_output(self, port: str, count: int) -> None:
        """`count` bytes arrived on the port named `port`."""
        self._missing[port] -= count

    @property
    def done(self) -> bool:
        """It could not start, or it ended and every byte it wrote has arrived."""
        return bool(self.error) or (self.exited and not any(self._missing.values()))

    @property
    def shell_status(self) -> int:
        """The status as a shell gives it: 128 + N after signal N."""
        return 128 + self.signal if self.signal else self.status
