# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people write them."""

from __future__ import annotations

import re

import click

from verifier.report.sizes import size_text

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}


class Size(click.ParamType[int]):
    """A number of bytes: 4096, 64KiB, 100MiB, 1.5GiB, 200MB. minimum: the least that is taken."""

    name = "size"

    def __init__(self, minimum: int = 0) -> None:
        self.minimum = minimum

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; a usage error when it is no size."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
        unit = _UNITS.get(match[2].upper()) if match else None
        if match is None or unit is None:
            self.fail(f"{value!r} is not a size; write 4096, 64KiB, 100MiB, 1GiB or 200MB", param, ctx)
        size = int(float(match[1]) * unit)
        if size < self.minimum:
            self.fail(f"{value} is less than {size_text(self.minimum)}", param, ctx)
        return size


class Rate(Size):
    """Bytes a second: 380MB/s, 1GiB, 12500000."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes a second; a usage error when it is no rate."""
        return super().convert(value if isinstance(value, int) else str(value).removesuffix("/s"), param, ctx)
