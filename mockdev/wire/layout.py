# SPDX-License-Identifier: GPL-2.0-or-later
"""How a C struct is described, once, for every reader.

A struct is a NamedTuple whose annotations say how each field lies in memory; `Layout` reads the
annotations and can pack, unpack and tell where each field is::

    class Ping(NamedTuple):
        value: U32

    PING = Layout(Ping, c_name="", order=BIG, source="QEMU migration/savevm.c: qemu_savevm_send_ping")

Nothing here knows about QEMU or the kernel, and nothing here judges a value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_type_hints

BIG = ">"
LITTLE = "<"


@dataclass(frozen=True)
class Spec:
    """One field's place in memory: a struct-module code, and how many of them (an array if not None)."""

    code: str
    count: int | None = None

    @property
    def size(self) -> int:
        """Bytes that the field takes."""
        return struct.calcsize("<" + self.code) * (1 if self.count is None else self.count)


U8 = Annotated[int, Spec("B")]
U16 = Annotated[int, Spec("H")]
U32 = Annotated[int, Spec("I")]
U64 = Annotated[int, Spec("Q")]
S32 = Annotated[int, Spec("i")]


class FieldPlace(NamedTuple):
    """A field of a layout: name, offset and size in bytes, and the spec it was made from."""

    name: str
    offset: int
    size: int
    spec: Spec


T = TypeVar("T", bound=tuple[Any, ...])


class Layout(Generic[T]):
    """The described struct: `size` in bytes, `fields` with their places, pack and unpack.

    c_name: what the C source calls it. order: BIG or LITTLE; there is never padding (a C struct with
    padding describes it as a reserved field). source: project, file and symbol it was read from.
    """

    def __init__(self, record: type[T], *, c_name: str, order: str, source: str) -> None:
        self.record = record
        self.c_name = c_name
        self.order = order
        self.source = source
        places: list[FieldPlace] = []
        offset = 0
        fmt = order
        for name, hint in get_type_hints(record, include_extras=True).items():
            (spec,) = (m for m in hint.__metadata__ if isinstance(m, Spec))
            places.append(FieldPlace(name, offset, spec.size, spec))
            offset += spec.size
            fmt += spec.code if spec.count is None else f"{spec.count}{spec.code}"
        self.fields: tuple[FieldPlace, ...] = tuple(places)
        self.size = offset
        self._struct = struct.Struct(fmt)
        # Arrays come out of `struct` flat; without any, the flat tuple is the record.
        self._has_arrays = any(p.spec.count is not None for p in places)
        self._by_name = {p.name: p for p in places}

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0) -> T:
        """Read one record at `offset`. struct.error when fewer than `size` bytes are there."""
        flat = self._struct.unpack_from(data, offset)
        if self._has_arrays:
            flat = tuple(self._grouped(flat))
        return tuple.__new__(self.record, flat)  # as the named tuple does, without its call in between

    def pack(self, record: T) -> bytes:
        """The record's bytes. struct.error when a value does not fit its field."""
        if not self._has_arrays:
            return self._struct.pack(*record)
        flat: list[Any] = []
        for place, value in zip(self.fields, record, strict=True):
            if place.spec.count is None:
                flat.append(value)
            else:
                flat.extend(value)
        return self._struct.pack(*flat)

    def place(self, name: str) -> FieldPlace:
        """Where the field `name` lies. KeyError when there is none."""
        return self._by_name[name]

    def field_at(self, offset: int) -> FieldPlace | None:
        """The field that covers the byte at `offset`, or None past the end."""
        return next((p for p in self.fields if p.offset <= offset < p.offset + p.size), None)

    def _grouped(self, flat: tuple[Any, ...]) -> Iterator[Any]:
        at = 0
        for place in self.fields:
            count = place.spec.count
            if count is None:
                yield flat[at]
                at += 1
            else:
                yield flat[at : at + count]
                at += count

    def __repr__(self) -> str:
        return f"<Layout {self.c_name or self.record.__name__}, {self.size} bytes>"
