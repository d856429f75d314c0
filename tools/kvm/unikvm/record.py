# SPDX-License-Identifier: GPL-2.0-only
"""Dataclasses without `dataclasses`: that module alone costs as much start-up as the rest of a payload's run.

    class Disk(Record):
        path: str
        readonly: bool = False

To a type checker these are frozen (`State`: mutable) dataclasses. `replace` and `asdict` are as theirs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


class _Fields:
    """Collects the annotated names of a class, its bases' first, and fills them from keywords."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = [name for name, kind in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
        cls._fields = (*cls._fields, *(name for name in own if name not in cls._fields))

    def __init__(self, *in_order: Any, **values: Any) -> None:
        target = self.__dict__
        values.update(zip(self._fields, in_order, strict=False))
        for name in self._fields:
            if name in values:
                target[name] = values.pop(name)
            elif hasattr(type(self), name):
                target[name] = getattr(type(self), name)
            else:
                raise TypeError(f"{type(self).__name__} needs {name!r}")
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(map(repr, values))}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values; raise when they do not fit together."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({values})"

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`."""
        return type(self)(**{**self.__dict__, **changes})

    def asdict(self) -> dict[str, Any]:
        """Names to values, records inside turned likewise."""
        return {name: _plain(value) for name, value in self.__dict__.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, _Fields):
        return value.asdict()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


@dataclass_transform(frozen_default=True, eq_default=True)
class Record(_Fields):
    """Immutable values: configs, plans, what a run was asked to do."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: use replace({name}=...)")


@dataclass_transform(eq_default=True)
class State(_Fields):
    """Values that change: a device's state, which a snapshot copies with `replace()`."""
