# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from unikvm.arch.x86_64 import models
from unikvm.errors import CannotRun
from unikvm.uapi.kvm import kvm_cpuid_entry2 as Entry

ALL = 0xFFFF_FFFF


def host() -> list[Entry]:
    """One that has everything."""
    return [
        Entry(0, 0, 0, 0x1F, 0, 0, 0),
        Entry(1, 0, 0, ALL, ALL, ALL, ALL),
        Entry(7, 0, 1, 2, ALL, ALL, ALL),
        Entry(7, 1, 1, ALL, ALL, ALL, ALL),
        Entry(0xA, 0, 0, ALL, 0, 0, 0),
        Entry(0xD, 0, 1, 0x602E7, 0x2B00, 0x2B00, 0),
        Entry(0xD, 1, 1, 0xF, 0, 0x1800, 0),
        Entry(0xD, 2, 1, 256, 576, 0, 0),
        Entry(0xD, 5, 1, 64, 1088, 0, 0),
        Entry(0xD, 6, 1, 512, 1152, 0, 0),
        Entry(0xD, 7, 1, 1024, 1664, 0, 0),
        Entry(0xD, 9, 1, 8, 2688, 0, 0),
        Entry(0xD, 18, 1, 8192, 2816, 0, 0),
        Entry(0x8000_0001, 0, 0, ALL, ALL, ALL, ALL),
        Entry(0x8000_0008, 0, 0, ALL, ALL, ALL, ALL),
        Entry(0x8000_000A, 0, 0, 1, 8, 0, 0),
    ]


def leaf(entries: list[Entry], function: int, index: int = 0) -> Entry:
    (entry,) = [e for e in entries if (e.function, e.index) == (function, index)]
    return entry


def test_host_is_all_of_it() -> None:
    entries = host()
    assert [bytes(e) for e in models.subset(entries, "host")] == [bytes(e) for e in entries]


def test_levels_have_what_they_promise_and_no_more() -> None:
    entries = host()
    before = [bytes(e) for e in entries]
    one, two, three, four = (models.subset(entries, name) for name in models.MODELS[1:])
    assert [bytes(e) for e in entries] == before
    sse42, avx, avx2, avx512f, lm = 1 << 20, 1 << 28, 1 << 5, 1 << 16, 1 << 29
    assert [bool(leaf(m, 1).ecx & sse42) for m in (one, two, three, four)] == [False, True, True, True]
    assert [bool(leaf(m, 1).ecx & avx) for m in (one, two, three, four)] == [False, False, True, True]
    assert [bool(leaf(m, 7).ebx & avx2) for m in (one, two, three, four)] == [False, False, True, True]
    assert [bool(leaf(m, 7).ebx & avx512f) for m in (one, two, three, four)] == [False, False, False, True]
    for model in (one, two, three, four):
        assert leaf(model, 0x8000_0001).edx & lm
        assert leaf(model, 7).edx & 1 << 26  # SPEC_CTRL
        assert not leaf(model, 1).ecx & 1 << 5  # VMX
        assert not [e for e in model if e.function in (0xA, 0x8000_000A) or (e.function == 7 and e.index)]


def test_state_components_follow_the_level() -> None:
    entries = host()
    assert not [e for e in models.subset(entries, "x86-64-v2") if e.function == 0xD]
    three = models.subset(entries, "x86-64-v3")
    assert [e.index for e in three if e.function == 0xD] == [0, 1, 2]
    assert (leaf(three, 0xD).eax, leaf(three, 0xD).ecx, leaf(three, 0xD, 1).ecx) == (7, 832, 0)
    four = models.subset(entries, "x86-64-v4")
    assert (leaf(four, 0xD).eax, leaf(four, 0xD).ecx) == (0xE7, 2688)


def test_a_host_that_has_less() -> None:
    entries = host()
    leaf(entries, 7).ebx &= ~(1 << 5)
    with pytest.raises(CannotRun, match="cannot be x86-64-v3: it lacks avx2"):
        models.subset(entries, "x86-64-v3")
    assert models.subset(entries, "x86-64-v2")


def test_an_unknown_model_names_those_that_there_are() -> None:
    with pytest.raises(CannotRun, match="no CPU model 'i486'") as caught:
        models.check("i486")
    assert "x86-64-v2" in caught.value.hint
